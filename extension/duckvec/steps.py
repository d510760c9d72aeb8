"""The steps that all changes of an index are made of; in background threads only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import duckdb
import numpy as np
from numpy.typing import NDArray

from duckvec import catalog, stored_plans
from duckvec.catalog import IndexRow
from duckvec.chains import commit_epoch
from duckvec.errors import NotIndexableError
from duckvec.instance import Instance
from duckvec.keeper import POLL_SECONDS, Task
from duckvec.metrics import METRICS
from duckvec.plan_text import Target
from duckvec.segments import Segment
from duckvec.states import DatabaseState, IndexState
from duckvec.tables import Table, VectorColumn, find_column
from duckvec.tracking import UNSEALED, LiveSegment, live_segment

_FIND_TABLE = """
SELECT table_oid, sql
FROM duckdb_tables()
WHERE database_name = $database AND schema_name = $schema AND table_name = $name
"""


@contextlib.contextmanager
def snapshot(
    task: Task, instance: Instance, state: DatabaseState, table: Table
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Hold a read-only transaction that sees the table, if it is still the one."""
    cursor = instance.background_cursor()
    try:
        task.beginning(lambda: cursor.execute("BEGIN TRANSACTION READ ONLY"))
        found = cursor.execute(
            _FIND_TABLE,
            {"database": state.name, "schema": table.schema, "name": table.name},
        ).fetchall()
        if [table.identity] != found:
            raise NotIndexableError(
                f"table {table.label} was replaced meanwhile; try again"
            )
        cursor.execute(f"SELECT count(*) FROM {table.path}").fetchall()
        yield cursor
    finally:
        cursor.close()


@contextlib.contextmanager
def changing(task: Task, index: IndexState) -> Iterator[None]:
    """Keep other background threads from changing an index meanwhile."""
    while not index.changing.acquire(timeout=POLL_SECONDS):
        task.waits_like(index.changer)
    try:
        index.changer = task
        task.waits_like(None)
        yield
    finally:
        index.changer = None
        index.changing.release()


def commit(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    row: IndexRow,
    segments: tuple[Segment, ...],
) -> int:
    """Commit the catalog rows; return the epoch that came with them."""
    rows = [segment.row for segment in segments]
    return commit_epoch(
        task,
        instance,
        state,
        lambda cursor: catalog.replace_index(cursor, state.name, row, rows),
    )


def begin_seal(instance: Instance, state: DatabaseState) -> int:
    """Return the number of a transaction of a database that begins now.

    All snapshots of a read-only one are the same, and later than UNSEALED.
    """
    return UNSEALED if state.read_only else instance.seal_transaction(state.name)


def advance_epoch(task: Task, instance: Instance, state: DatabaseState) -> int:
    """Commit a new epoch where the database can be written, and return it."""
    return UNSEALED if state.read_only else commit_epoch(task, instance, state)


def without_gone(part: LiveSegment, there: NDArray[np.int64]) -> LiveSegment:
    """Return the segment without the entries whose row id is not in `there`."""
    if len(there) == 0:
        return live_segment(part.segment, np.full_like(part.rowids, -1))
    at = np.minimum(np.searchsorted(there, part.rowids), len(there) - 1)
    return live_segment(part.segment, np.where(there[at] == part.rowids, there[at], -1))


def store_plan(
    task: Task, instance: Instance, state: DatabaseState, row: IndexRow, table: Table
) -> None:
    """Keep the plan of searches by an index."""
    if row.dimension is not None:
        target = Target(
            table, column_of(table, row), METRICS[row.metric], row.dimension
        )
        stored_plans.store(task, instance, state, target)


def column_of(table: Table, row: IndexRow) -> VectorColumn:
    """Return the column of a table that an index is on."""
    return find_column(table, row.column_name)
