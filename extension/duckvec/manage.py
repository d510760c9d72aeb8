"""Creating, dropping, compacting: checking the request, waiting for the keeper."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from dataclasses import dataclass
from typing import Any

import duckdb

from duckvec import background, builder, catalog, finding, moves, upkeep
from duckvec.catalog import MAX_FILE_SIZE, MIN_FILE_SIZE, IndexRow
from duckvec.chains import chain_of
from duckvec.errors import (
    ColumnError,
    NotIndexableError,
    ParameterError,
    ReadOnlyError,
    UnknownCollectionError,
)
from duckvec.guards import pinned
from duckvec.index_types import get_index_type
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.leftovers import remove_orphans
from duckvec.metrics import parse_metric
from duckvec.parameters import check_build_params, parse_params
from duckvec.reader import find_dimension
from duckvec.sql_text import parse_collection
from duckvec.states import DatabaseState, Session
from duckvec.tables import (
    Caller,
    Table,
    VectorColumn,
    databases,
    find_column,
    find_table_at,
    is_generated,
    places,
    read_only,
    require_table,
)
from duckvec.writer import Order


@dataclass(frozen=True)
class CreateRequest:
    """The arguments of create_vector_index as they came from SQL."""

    collection: str | None
    index_type: str | None
    params: str | None
    column_name: str | None
    metric: str | None
    index_file_size: int | None


def create(
    instance: Instance, session: Session, request: CreateRequest, caller: Caller
) -> dict[str, Any]:
    """Build an index over the committed rows of a table, and wait for it.

    Runs inside a call of the user's on the session's connection; the work and the
    writing happen in the keeper's thread. A failure changes nothing.

    Returns:
        The result row of create_vector_index.

    Raises:
        VectorIndexError: the request cannot be met; the sentence says why.
    """
    order, state = check_request(instance, session, request, caller)
    table = order.table
    _require_writable(instance, table, state, "indexed")
    finding.settle(instance, state).wait(cancels=False)
    _ensure_catalog(instance, state)

    def work(task: Task) -> dict[str, Any]:
        chain = chain_of(session, state)
        if chain is None:
            raise NotIndexableError(
                f"the rows of {table.label} cannot be held still; try again"
            )
        moves.settle(task, instance, state)
        row = builder.build_index(task, instance, state, order, chain)
        return result_row(state, row)

    with pinned(instance, session, state):
        task = instance.keeper.submit(f"create_vector_index on {table.path}", work)
        row: dict[str, Any] = task.wait()
    background.watch(instance)
    return row


def check_request(
    instance: Instance, session: Session, request: CreateRequest, caller: Caller
) -> tuple[Order, DatabaseState]:
    """Return what to build, and in which database; it need not be writable.

    Raises:
        VectorIndexError: no such index can be built; the sentence says why.
    """
    kind = get_index_type(request.index_type or "")
    kind.require_library()
    metric = parse_metric(request.metric or "L2")
    size = request.index_file_size
    if size is None or not MIN_FILE_SIZE <= size <= MAX_FILE_SIZE:
        raise ParameterError(
            f"index_file_size = {'NULL' if size is None else size} is outside "
            f"[{MIN_FILE_SIZE}, {MAX_FILE_SIZE}] MB"
        )
    given = parse_params(request.params)
    table, column, state = _find_target(
        instance, session, request.collection, request.column_name, caller, "indexed"
    )
    length = column.length
    if length is None:
        length = _known_dimension(session, table, column)
    params = check_build_params(kind, given, length)
    return Order(table, column, kind, metric, params, size, instance.threads), state


def compact(
    instance: Instance,
    session: Session,
    collection: str | None,
    column_name: str | None,
    caller: Caller,
) -> dict[str, Any]:
    """Merge an index's segments, index the tail, drop deleted rows, and wait for it.

    Returns:
        The result row of vector_compact.

    Raises:
        VectorIndexError: there is no index, or it cannot be compacted.
    """
    table, column, state = _target(
        instance, session, collection, column_name, caller, "compacted"
    )
    key = catalog.index_key(table.schema, table.name, column.name)
    started = time.perf_counter()

    def work(task: Task) -> dict[str, Any]:
        moves.settle(task, instance, state)
        index = state.indexes.get(key)
        if index is None or index.row.dropped:
            raise NotIndexableError(
                f'there is no index on "{column.name}" of {table.label} to compact; '
                "create one with create_vector_index"
            )
        return result_row(state, upkeep.compact_index(task, instance, state, index))

    with pinned(instance, session, state):
        row = instance.keeper.submit(f"vector_compact on {table.path}", work).wait()
    return {**row, "build_seconds": time.perf_counter() - started}


def drop(
    instance: Instance,
    session: Session,
    collection: str | None,
    column_name: str | None,
    caller: Caller,
) -> dict[str, Any]:
    """Drop the index of a table's column; no error where there is none.

    Returns:
        The result row of drop_vector_index, with index_type FLAT.
    """
    try:
        table, column, state = _target(
            instance, session, collection, column_name, caller, "changed"
        )
    except (UnknownCollectionError, ColumnError):
        gone = _drop_of_gone_table(instance, session, collection, column_name, caller)
        if gone is None:
            raise
        return gone
    key = catalog.index_key(table.schema, table.name, column.name)

    def work(task: Task) -> dict[str, Any]:
        moves.settle(task, instance, state)
        index = state.indexes.get(key)
        if index is None:
            return _result(table.name, column.name, "L2", column.length)
        return result_row(state, builder.drop_index(task, instance, state, index))

    row: dict[str, Any] = instance.keeper.submit(
        f"drop_vector_index on {table.path}", work
    ).wait()
    return row


def _drop_of_gone_table(
    instance: Instance,
    session: Session,
    collection: str | None,
    column_name: str | None,
    caller: Caller,
) -> dict[str, Any] | None:
    """Forget an index whose table or column is gone; None where there is none."""
    parts = parse_collection(collection)
    with read_only(session.cursor()) as cursor:
        states = instance.look_at_all(cursor)
    for database, schema in places(parts, caller):
        for state in states:
            if state.name.lower() != database or state.read_only:
                continue
            for index in list(state.indexes.values()):
                row = index.row
                same_table = row.key[:2] == (schema, parts[-1].lower())
                if not same_table or column_name not in (None, row.column_name):
                    continue
                if not _is_there(session, state, row):
                    finding.settle(instance, state).wait(cancels=False)
                    if index.row is not row:
                        return None  # it has another name now
                    if state.indexes.get(row.key) is index:
                        forget = functools.partial(
                            builder.forget_index,
                            instance=instance,
                            state=state,
                            index=index,
                        )
                        name = f"drop_vector_index on {row.table_name}"
                        instance.keeper.submit(name, forget).wait()
                    return _result(
                        row.table_name, row.column_name, row.metric, row.dimension
                    )
    return None


def _is_there(session: Session, state: DatabaseState, row: IndexRow) -> bool:
    """Tell whether the column of an index is there now."""
    with read_only(session.cursor()) as cursor:
        table = find_table_at(cursor, state.name, row.schema_name, row.table_name)
    return table is not None and table.has_column(row.column_name)


def result_row(state: DatabaseState, row: IndexRow) -> dict[str, Any]:
    """Return a catalog row in the form that create_vector_index returns."""
    segments = state.indexes[row.key].segments
    return {
        **_result(row.table_name, row.column_name, row.metric, row.dimension),
        "index_type": row.index_type,
        "params": json.dumps(dict(row.params)),
        "row_count": row.row_count,
        "segment_count": len(segments),
        "size_bytes": sum(segment.row.size_bytes for segment in segments),
        "build_seconds": row.build_seconds,
    }


def _result(
    collection: str, column_name: str, metric: str, dimension: int | None
) -> dict[str, Any]:
    """Return the result row of a column without an index."""
    return {
        "collection": collection,
        "column_name": column_name,
        "index_type": "FLAT",
        "metric": metric,
        "params": "{}",
        "dimension": dimension,
        "row_count": 0,
        "segment_count": 0,
        "size_bytes": 0,
        "build_seconds": 0.0,
    }


def _target(
    instance: Instance,
    session: Session,
    collection: str | None,
    column_name: str | None,
    caller: Caller,
    verb: str,
) -> tuple[Table, VectorColumn, DatabaseState]:
    """Return the table, column and database that DDL is to change.

    Raises:
        NotIndexableError: no index can be kept for it.
        ReadOnlyError: its database is open for reading only.
    """
    table, column, state = _find_target(
        instance, session, collection, column_name, caller, verb
    )
    _require_writable(instance, table, state, verb)
    return table, column, state


def _find_target(
    instance: Instance,
    session: Session,
    collection: str | None,
    column_name: str | None,
    caller: Caller,
    verb: str,
) -> tuple[Table, VectorColumn, DatabaseState]:
    """Return a table, its column and its database, if its rows can be indexed.

    Raises:
        NotIndexableError: they cannot.
    """
    with read_only(session.cursor()) as cursor:
        table = require_table(cursor, collection, caller)
        column = find_column(table, column_name)
        state = instance.database(cursor, table.database, table.database_oid)
    if table.kind != "table" or state.kind != "duckdb" or table.database == "temp":
        what = "a view" if table.kind == "view" else f"a table of kind {state.kind}"
        raise NotIndexableError(
            f"{table.label} is {what} and cannot be {verb}; vector_search scans it "
            "exactly"
        )
    if state.error is not None:
        raise NotIndexableError(state.error)
    if table.schema.lower() == catalog.SCHEMA:
        raise NotIndexableError(f"{table.label} belongs to duckvec's own catalog")
    if table.hides_rowid:
        raise NotIndexableError(
            f'{table.label} has a column "rowid", which hides the row ids that an '
            f"index needs, and cannot be {verb}; vector_search scans it exactly"
        )
    if is_generated(table, column):
        raise NotIndexableError(
            f'column "{column.name}" of {table.label} is generated: its vectors change '
            f"in place, and cannot be {verb}; vector_search scans it exactly"
        )
    return table, column, state


def _require_writable(
    instance: Instance, table: Table, state: DatabaseState, verb: str
) -> None:
    """Check that index files and catalog rows can be written.

    Raises:
        NotIndexableError: the files would not be encrypted.
        ReadOnlyError: the database is open for reading only.
    """
    if state.read_only:
        raise ReadOnlyError(
            f'database "{state.name}" is open read-only, so that {table.label} cannot '
            f"be {verb}; open it for writing"
        )
    instance.require_safe_folder(state)


def _known_dimension(
    session: Session, table: Table, column: VectorColumn
) -> int | None:
    with read_only(session.cursor()) as cursor:
        return find_dimension(cursor, table, column)


def _ensure_catalog(instance: Instance, state: DatabaseState) -> None:
    """Create the catalog where it is missing, in a transaction of its own."""
    if state.has_catalog:
        return

    def work(task: Task) -> None:
        if state.has_catalog:
            return  # another caller came first
        cursor = instance.background_cursor()
        try:
            task.beginning(lambda: cursor.execute("BEGIN TRANSACTION"))
            catalog.create(cursor, state.name)
            cursor.execute("COMMIT")
        finally:
            cursor.close()
        remove_orphans(instance.folder(state), set())
        state.catalog_seals = _seal_all(instance)
        state.has_catalog = True

    instance.keeper.submit(f'the catalog of database "{state.name}"', work).wait()


def _seal_all(instance: Instance) -> dict[str, int]:
    """Return the number of a transaction that begins now, for every database."""
    with read_only(instance.background_cursor()) as cursor:
        names = [name for name, _ in databases(cursor)]
    seals = {}
    for name in names:
        with contextlib.suppress(duckdb.Error):  # detached meanwhile, or not DuckDB's
            seals[name] = instance.seal_transaction(name)
    return seals
