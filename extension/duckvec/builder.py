"""Creating and dropping indexes: reading a snapshot, writing segments, committing.

All functions run in the keeper's thread, on cursors of their own. The order that keeps
searches right and the catalog whole: read in one snapshot under a guard, write the
files whole, take the seal, commit the catalog rows, publish the generation, delete
the old files. A failure before the commit leaves only the old index.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from datetime import datetime, timezone

from duckvec import catalog, paths
from duckvec.catalog import IndexRow
from duckvec.chains import commit_epoch
from duckvec.footprints import peak_bytes
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.reader import find_dimension, require_equal_lengths
from duckvec.states import Building, DatabaseState, IndexState
from duckvec.steps import changing, commit, snapshot, store_plan
from duckvec.tracking import Generation, Seal
from duckvec.writer import Order, SegmentWriter, remove_files, write_table


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
    table = order.table
    key = catalog.index_key(table.schema, table.name, order.column.name)
    old = state.indexes.get(key)
    index_id = old.row.index_id if old and not old.fault else paths.new_segment_id()
    row = _new_row(order, index_id)
    with instance.lock:
        state.building[key] = Building(row, task)
    try:
        return _build(task, instance, state, order, chain, row)
    finally:
        with instance.lock:
            state.building.pop(key, None)


def _build(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    order: Order,
    chain: int,
    row: IndexRow,
) -> IndexRow:
    started = time.perf_counter()
    table = order.table
    writer = SegmentWriter(task, instance, state, order, row.index_id)
    with writer:
        with snapshot(task, instance, state, table) as cursor:
            dimension = find_dimension(cursor, table, order.column)
            if dimension is not None:
                require_equal_lengths(cursor, table, order.column, dimension)
                writer.reserve(lambda: peak_bytes(cursor, order, dimension))
            seal_transaction = instance.seal_transaction(state.name)
            watermark, covered_rows, skipped_rows = write_table(
                writer, cursor, dimension
            )
        row = replace(
            row,
            search_params=writer.search_params(),
            dimension=dimension,
            row_count=sum(segment.row.row_count for segment in writer.segments),
            skipped_rows=skipped_rows,
            build_seconds=time.perf_counter() - started,
            updated_at=_now(),
        )
        old = state.indexes.get(row.key)
        with changing(task, old) if old else contextlib.nullcontext():
            epoch = commit(task, instance, state, row, writer.segments)
            writer.keep()
            generation = Generation(
                chain=chain,
                seal=Seal(seal_transaction, epoch),
                table_identity=table.identity,
                watermark=watermark,
                covered_rows=covered_rows,
                segments=tuple(writer.live),
            )
            with instance.lock:
                replaced = (*old.segments, *old.unusable) if old else ()
                index = old if old else IndexState(row)
                index.row, index.segments = row, writer.segments
                index.succeeded()
                index.seen, index.looked = table, None
                index.use(generation)
                state.indexes[row.key] = index
    remove_files(replaced)
    store_plan(task, instance, state, row, table)
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
        index_file_size=0,
        row_count=0,
        skipped_rows=0,
        build_seconds=0.0,
        updated_at=_now(),
    )
    with changing(task, index):
        commit(task, instance, state, row, ())
        with instance.lock:
            replaced = (*index.segments, *index.unusable)
            index.row, index.segments = row, ()
            index.succeeded()
            index.forget()
    remove_files(replaced)
    return row


def forget_index(
    task: Task, instance: Instance, state: DatabaseState, index: IndexState
) -> None:
    """Remove an index whose table or column is gone: catalog rows and artifacts."""
    with changing(task, index):
        commit_epoch(
            task,
            instance,
            state,
            lambda cursor: catalog.delete_index(cursor, state.name, index.row),
        )
        with instance.lock:
            state.indexes.pop(index.row.key, None)
            index.forget()
            replaced = (*index.segments, *index.unusable)
            index.segments = index.unusable = ()
    remove_files(replaced)


def _new_row(order: Order, index_id: str) -> IndexRow:
    """Return the catalog row of an index that is being built."""
    now = _now()
    return IndexRow(
        index_id=index_id,
        schema_name=order.table.schema,
        table_name=order.table.name,
        column_name=order.column.name,
        index_type=order.index_type.name,
        metric=order.metric.name,
        params=dict(order.params),
        search_params={},
        dimension=order.column.length,
        index_file_size=order.index_file_size,
        row_count=0,
        skipped_rows=0,
        build_seconds=0.0,
        created_at=now,
        updated_at=now,
    )


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(tzinfo=None)
