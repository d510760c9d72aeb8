"""Building indexes: reading a snapshot, writing segments, committing the catalog row.

All functions run in the keeper's thread, on cursors of their own. The order that keeps
searches right and the catalog whole: read in one snapshot under a guard, write the
files whole, take the seal, commit the catalog rows, publish the generation, delete
the old files. A failure before the commit leaves only the old index.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone

import duckdb
import numpy as np
from numpy.typing import NDArray

from duckvec import catalog, paths, stored_plans
from duckvec.catalog import IndexRow
from duckvec.errors import ColumnError, NotIndexableError
from duckvec.guards import commit_epoch
from duckvec.index_types import get_index_type
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.metrics import METRICS
from duckvec.plan_text import Target
from duckvec.reader import (
    count_rows,
    find_dimension,
    read_rowids,
    read_vectors,
    require_equal_lengths,
)
from duckvec.segments import (
    Segment,
    hash_vectors,
)
from duckvec.states import DatabaseState, IndexState
from duckvec.tables import Table, VectorColumn, find_column
from duckvec.tracking import (
    UNSEALED,
    Generation,
    LiveSegment,
    Seal,
    live_segment,
    prove,
)
from duckvec.writer import Order, remove_files, write_segments

_FIND_TABLE = """
SELECT table_oid, sql
FROM duckdb_tables()
WHERE database_name = $database AND schema_name = $schema AND table_name = $name
"""


def build_index(
    task: Task, instance: Instance, state: DatabaseState, order: Order, chain: int
) -> IndexRow:
    """Build an index over all committed rows, and put it in place of the old one.

    Args:
        task: the task that this runs in.
        instance: the DuckDB instance.
        state: the database of the table.
        order: what to build.
        chain: the chain of an armed guard that the caller holds.

    Returns:
        The new catalog row.

    Raises:
        ColumnError: the vectors cannot be indexed; nothing was changed.
    """
    started = time.perf_counter()
    table = order.table
    key = catalog.index_key(table.schema, table.name, order.column.name)
    old = state.indexes.get(key)
    index_id = old.row.index_id if old else paths.new_segment_id()
    with _snapshot(task, instance, state, table) as cursor:
        dimension = find_dimension(cursor, table, order.column)
        if dimension is not None:
            require_equal_lengths(cursor, table, order.column, dimension)
        seal_transaction = instance.seal_transaction(task, state.name)
        written = write_segments(
            task, instance, state, order, cursor, dimension, index_id, strict=True
        )
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    row = IndexRow(
        index_id=index_id,
        schema_name=table.schema,
        table_name=table.name,
        column_name=order.column.name,
        index_type=order.index_type.name,
        metric=order.metric.name,
        params=dict(order.params),
        search_params=written.search_params,
        dimension=dimension,
        index_file_size=order.index_file_size,
        row_count=sum(live.segment.row.row_count for live in written.live),
        skipped_rows=written.skipped_rows,
        build_seconds=time.perf_counter() - started,
        created_at=now,
        updated_at=now,
    )
    segments = tuple(live.segment for live in written.live)
    try:
        epoch = _commit(task, instance, state, row, segments)
    except BaseException:
        remove_files(segments)
        raise
    generation = Generation(
        chain=chain,
        seal=Seal(seal_transaction, epoch),
        table_identity=table.identity,
        watermark=written.watermark,
        covered_rows=written.covered_rows,
        segments=tuple(written.live),
    )
    with instance.lock:
        replaced = old.segments if old else ()
        index = old if old else IndexState(row)
        index.row, index.segments, index.last_error = row, segments, None
        index.failed, index.seen, index.looked = None, table, None
        index.use(generation)
        state.indexes[key] = index
    remove_files(replaced)
    _store_plan(task, instance, state, row, table)
    return row


def drop_index(
    task: Task, instance: Instance, state: DatabaseState, index: IndexState
) -> IndexRow:
    """Go back to FLAT by plain scan; the metric stays. Return the new catalog row."""
    row = replace(
        index.row,
        index_type="FLAT",
        params={},
        search_params={},
        row_count=0,
        skipped_rows=0,
        build_seconds=0.0,
        updated_at=datetime.now(timezone.utc).replace(tzinfo=None),
    )
    _commit(task, instance, state, row, ())
    with instance.lock:
        replaced = index.segments
        index.row, index.segments, index.last_error = row, (), None
        index.use(None)
        index.previous = None
    remove_files(replaced)
    return row


def forget_index(
    task: Task, instance: Instance, state: DatabaseState, index: IndexState
) -> None:
    """Remove an index whose table or column is gone: catalog rows and artifacts."""
    commit_epoch(
        task,
        instance,
        state,
        lambda cursor: catalog.delete_index(cursor, state.name, index.row),
    )
    with instance.lock:
        state.indexes.pop(index.row.key, None)
    remove_files(index.segments)


def prove_index(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    index: IndexState,
    table: Table,
    chain: int,
) -> None:
    """Match the entries of an index to the rows of its table, and publish the result.

    After opening a database nothing else says where its rows are.

    Args:
        task: the task that this runs in.
        instance: the DuckDB instance.
        state: the database of the table.
        index: the index; its segments' map files are read and verified.
        table: the table as it is now.
        chain: the chain of an armed guard, or READ_ONLY_CHAIN.
    """
    row = index.row
    column = _column_of(table, row)
    if not index.segments:
        # Created before any row was there: every row is in the tail.
        with instance.lock:
            index.use(
                Generation(chain, Seal(UNSEALED, UNSEALED), table.identity, -1, 0, ())
            )
        return
    if row.dimension is None:
        return
    if column.length not in (None, row.dimension):
        raise ColumnError(
            f"the vectors of {table.label} have {column.length} dimensions now, and "
            f"{row.dimension} in the index; create it again"
        )
    with _snapshot(task, instance, state, table) as cursor:
        seal_transaction = (
            UNSEALED if state.read_only else instance.seal_transaction(task, state.name)
        )
        rowids, hashes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        for batch in read_vectors(
            cursor, table, column, row.dimension, METRICS[row.metric]
        ):
            task.check()
            instance.require_open()
            rowids.append(batch.rowids)
            hashes.append(hash_vectors(batch.vectors))
        _, _, last = count_rows(cursor, table, column)
        ids = np.concatenate(rowids)
        order = np.argsort(ids)
        live, watermark = prove(
            index.segments, ids[order], np.concatenate(hashes)[order], last
        )
        covered = len(read_rowids(cursor, table, watermark))
    epoch = _advance_epoch(task, instance, state)
    with instance.lock:
        index.last_error = None
        index.use(
            Generation(
                chain=chain,
                seal=Seal(seal_transaction, epoch),
                table_identity=table.identity,
                watermark=watermark,
                covered_rows=covered,
                segments=live,
            )
        )
    _store_plan(task, instance, state, row, table)


def refresh_index(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    index: IndexState,
    table: Table,
) -> None:
    """Look which rows of a generation are gone, so that searches skip them."""
    old = index.generation
    if old is None or old.table_identity != table.identity:
        return
    with _snapshot(task, instance, state, table) as cursor:
        seal_transaction = instance.seal_transaction(task, state.name)
        there = read_rowids(cursor, table, old.watermark)
    epoch = _advance_epoch(task, instance, state)
    live = tuple(_without_gone(part, there) for part in old.segments)
    with instance.lock:
        if index.generation is old:
            index.use(
                replace(
                    old,
                    seal=Seal(seal_transaction, epoch),
                    covered_rows=len(there),
                    segments=live,
                    number=Generation.next_number(),
                )
            )


def extend_index(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    index: IndexState,
    table: Table,
) -> None:
    """Seal the tail: build segments over the rows that came after the watermark."""
    old = index.generation
    row = index.row
    if old is None or old.table_identity != table.identity:
        return
    order = Order(
        table,
        _column_of(table, row),
        get_index_type(row.index_type),
        METRICS[row.metric],
        row.params,
        row.index_file_size,
    )
    started = time.perf_counter()
    with _snapshot(task, instance, state, table) as cursor:
        seal_transaction = instance.seal_transaction(task, state.name)
        there = read_rowids(cursor, table, old.watermark)
        dimension = row.dimension or find_dimension(cursor, table, order.column)
        written = write_segments(
            task,
            instance,
            state,
            order,
            cursor,
            dimension,
            row.index_id,
            strict=False,
            after=old.watermark,
            first_number=len(index.segments),
        )
    segments = index.segments + tuple(live.segment for live in written.live)
    extended = replace(
        row,
        dimension=dimension,
        row_count=sum(segment.row.row_count for segment in segments),
        search_params=dict(row.search_params) or written.search_params,
        skipped_rows=row.skipped_rows + written.skipped_rows,
        build_seconds=row.build_seconds + time.perf_counter() - started,
        updated_at=datetime.now(timezone.utc).replace(tzinfo=None),
    )
    try:
        epoch = _commit(task, instance, state, extended, segments)
    except BaseException:
        remove_files(tuple(live.segment for live in written.live))
        raise
    kept = tuple(_without_gone(part, there) for part in old.segments)
    with instance.lock:
        index.row, index.segments = extended, segments
        index.use(
            replace(
                old,
                seal=Seal(seal_transaction, epoch),
                watermark=written.watermark,
                covered_rows=written.covered_rows,
                segments=kept + tuple(written.live),
                number=Generation.next_number(),
            )
        )
    _store_plan(task, instance, state, extended, table)


# The steps


@contextlib.contextmanager
def _snapshot(
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


def _commit(
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


def _advance_epoch(task: Task, instance: Instance, state: DatabaseState) -> int:
    return UNSEALED if state.read_only else commit_epoch(task, instance, state)


def _without_gone(part: LiveSegment, there: NDArray[np.int64]) -> LiveSegment:
    """Return the segment without the entries whose row id is not in `there`."""
    if len(there) == 0:
        return live_segment(part.segment, np.full_like(part.rowids, -1))
    at = np.minimum(np.searchsorted(there, part.rowids), len(there) - 1)
    return live_segment(part.segment, np.where(there[at] == part.rowids, there[at], -1))


def _store_plan(
    task: Task, instance: Instance, state: DatabaseState, row: IndexRow, table: Table
) -> None:
    if row.dimension is not None:
        column = _column_of(table, row)
        target = Target(table, column, METRICS[row.metric], row.dimension)
        stored_plans.store(task, instance, state, target)


def _column_of(table: Table, row: IndexRow) -> VectorColumn:
    return find_column(table, row.column_name)
