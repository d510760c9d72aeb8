"""What is done behind the searches: proving, refreshing, sealing.

Each function queues a task with the keeper and returns at once; a task that is queued
already is not queued again. Failures show in `IndexState.last_error`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import duckdb

from duckvec import builder, moves
from duckvec.errors import BusyError, ClosedError, VectorIndexError
from duckvec.guards import pinned, standing_chain
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.sql_text import quote_path
from duckvec.states import DatabaseState, IndexState, Session
from duckvec.tables import Caller, Table, databases, find_table, has_column, read_only

logger = logging.getLogger("duckvec")

# How long a search waits to learn whether a table that was made again has its index.
SETTLE_SECONDS = 5.0
# Fewer new rows than this stay in the tail: scanning them costs less than a segment.
MINIMUM_SEGMENT_ROWS = 4096


def prepare(instance: Instance, state: DatabaseState) -> Task:
    """Prove the indexes of a database whose guards are armed, in the background."""
    name = f'opening the indexes of database "{state.name}"'
    return instance.keeper.submit_once(
        name, lambda task: _prepare(task, instance, state)
    )


def settle(instance: Instance, state: DatabaseState) -> Task:
    """Let indexes follow renamed tables, and drop those of dropped ones."""
    name = f'following the tables of database "{state.name}"'
    return instance.keeper.submit_once(
        name, lambda task: moves.settle(task, instance, state)
    )


def find_index(
    instance: Instance,
    session: Session,
    state: DatabaseState,
    table: Table,
    column_name: str,
) -> IndexState | None:
    """Return the index of a column, which may have had another name a moment ago.

    Called inside a search; waits where a table was renamed or made again, because
    which metric a search has depends on it.
    """
    if table.kind != "table" or not state.indexes:
        return None
    index = instance.index(table, column_name)
    known = [one for one in (index,) if one is not None]
    if index is None:
        known = [one for one in list(state.indexes.values()) if _may_be(one, table)]
    if state.read_only or all(_is_at(one, table) for one in known):
        if index is not None and not state.read_only:
            _look_into(instance, session, state, index, table)
        return index
    settled = settle(instance, state).wait_briefly(SETTLE_SECONDS)
    if not settled and index is not None:
        return None  # as far as is known, another table took the name
    return instance.index(table, column_name)


def _look_into(
    instance: Instance,
    session: Session,
    state: DatabaseState,
    index: IndexState,
    table: Table,
) -> None:
    """Give up a generation whose rows have other vectors now; a proof mends it."""
    generation, sign = index.generation, state.change_sign()
    if generation is None or generation.table_identity != table.identity:
        return
    if sign is not None and index.witnessed == (generation.number, sign):
        return
    with read_only(session.cursor()) as cursor:
        rewritten = moves.is_rewritten(cursor, index, table)
    with instance.lock:
        index.witnessed = (generation.number, sign)
        if rewritten and index.generation is generation:
            index.use(None)
            index.previous = None


def _is_at(index: IndexState, table: Table) -> bool:
    """Tell whether an index was seen last at a table of this number and name."""
    seen = index.seen
    if seen is None:
        return index.looked is not None and index.looked == table.identity
    return (seen.oid, seen.schema, seen.name) == (
        table.oid,
        table.schema,
        table.name,
    ) and table.has_column(index.row.column_name)


def _may_be(index: IndexState, table: Table) -> bool:
    """Tell whether an index may have come to a table under other names."""
    if index.seen is None:
        return index.looked is None
    return index.seen.oid == table.oid


@contextlib.contextmanager
def guarded(instance: Instance, session: Session) -> Iterator[None]:
    """Hold the guards of all indexed databases for a connection.

    Runs inside the user's call on that connection.
    """
    with read_only(session.cursor()) as cursor:
        states = [
            instance.database(cursor, name, oid) for name, oid in databases(cursor)
        ]
    with contextlib.ExitStack() as stack:
        for state in states:
            if state.indexes:
                stack.enter_context(pinned(instance, session, state))
        yield


def refresh(
    instance: Instance, state: DatabaseState, index: IndexState, table: Table
) -> Task:
    """Look which indexed rows are gone, in the background."""
    name = f"looking for deleted rows of {table.path}"

    def work(task: Task) -> None:
        with _recording(index):
            builder.refresh_index(task, instance, state, index, table)

    return instance.keeper.submit_once(name, work)


def seal_tails(instance: Instance) -> Task:
    """Index the rows that no segment covers yet, in the background."""

    def work(task: Task) -> None:
        for state in list(instance.databases.values()):
            if not state.has_catalog:
                continue
            moves.settle(task, instance, state)
            _prepare(task, instance, state)
            if state.read_only:
                continue
            for index in list(state.indexes.values()):
                task.check()
                with _recording(index):
                    _seal_tail(task, instance, state, index)

    return instance.keeper.submit_once("indexing new rows", work)


def locate(instance: Instance, state: DatabaseState, index: IndexState) -> Table | None:
    """Return the table of an index as it is now; None where it is gone."""
    row = index.row
    path = quote_path((state.name, row.schema_name, row.table_name))
    caller = Caller(0, state.name, row.schema_name, "")
    with read_only(instance.background_cursor()) as cursor:
        table = find_table(cursor, path, caller)
    if table is None or table.database_oid != state.oid or table.kind != "table":
        return None
    return table


def why_stale(index: IndexState, table: Table | None) -> str:
    """Return the sentence for an index whose table or column is not there."""
    row = index.row
    types = [
        data_type
        for name, data_type in (table.columns if table else ())
        if name.lower() == row.column_name.lower()
    ]
    if types:
        return (
            f'column "{row.column_name}" of table "{row.table_name}" is {types[0]} '
            "now; make it a vector column again, or remove its index with "
            "drop_vector_index"
        )
    return (
        f'column "{row.column_name}" of table "{row.table_name}" is gone; '
        "drop_vector_index removes its index"
    )


def _prepare(task: Task, instance: Instance, state: DatabaseState) -> None:
    chain = standing_chain(instance, state)
    if chain is None:
        return
    moves.settle(task, instance, state)
    for index in list(state.indexes.values()):
        task.check()
        if not index.segments and index.row.index_type == "FLAT":
            continue
        with _recording(index):
            table = locate(instance, state, index)
            generation = index.generation
            identity = table.identity if table else None
            proven = generation is not None and generation.chain == chain
            if (table and index.is_for(table) and proven) or (
                index.failed == (chain, identity)
            ):
                continue
            index.failed = (chain, identity)  # unless this succeeds
            if table is None or not has_column(table, index.row.column_name):
                index.last_error = index.last_error or why_stale(index, table)
                continue
            try:
                builder.prove_index(task, instance, state, index, table, chain)
                index.failed = None
            except (BusyError, ClosedError):
                index.failed = None  # it was stopped; the next search asks again
                raise


def _seal_tail(
    task: Task, instance: Instance, state: DatabaseState, index: IndexState
) -> None:
    table = locate(instance, state, index)
    generation = index.generation
    if (
        table is None
        or generation is None
        or generation.table_identity != table.identity
    ):
        return
    with read_only(instance.background_cursor()) as cursor:
        tail = cursor.execute(
            f"SELECT count(*) FROM {table.path} WHERE rowid > {generation.watermark:d}"
        ).fetchall()[0][0]
    if tail >= MINIMUM_SEGMENT_ROWS:
        builder.extend_index(task, instance, state, index, table)


@contextlib.contextmanager
def _recording(index: IndexState) -> Iterator[None]:
    """Keep a failure of background work with the index that it concerns."""
    try:
        yield
    except (BusyError, ClosedError):
        raise
    except (VectorIndexError, duckdb.Error, OSError) as error:
        index.last_error = str(error)
        logger.warning("%s", error)
