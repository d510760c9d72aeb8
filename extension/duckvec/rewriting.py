"""Sealing, merging and compacting: writing some rows of an index as new segments.

What these have in common: rows are read in short snapshots, segments are built while no
cursor is open, and the result takes the place of the segments that held some of the
rows before. The functions run in background threads.

A snapshot is not held while the library builds, so a connection can be closed then.
Rows that go meanwhile are entries without a row, which the generation's seal and its
count of covered rows allow for; rows that come are above the new watermark.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone

import duckdb
import numpy as np
from numpy.typing import NDArray

from duckvec.catalog import IndexRow
from duckvec.chains import current_chain
from duckvec.errors import VectorIndexError
from duckvec.footprints import peak_bytes
from duckvec.index_types import get_index_type
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.metrics import METRICS
from duckvec.policy import segment_capacity
from duckvec.reader import find_dimension, read_rowids, read_vectors
from duckvec.segments import Segment
from duckvec.states import DatabaseState, IndexState
from duckvec.steps import (
    changing,
    column_of,
    commit,
    snapshot,
    store_plan,
    without_gone,
)
from duckvec.tables import Table
from duckvec.tracking import Generation, Seal
from duckvec.writer import (
    READ_SHARE,
    Order,
    Refused,
    SegmentWriter,
    most_thorough,
    remove_files,
)


class OutdatedError(VectorIndexError):
    """Raised when rows moved or the index changed meanwhile: look again, and retry."""


def rewrite_index(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    index: IndexState,
    table: Table,
    base: Generation,
    *,
    merged: Sequence[Segment] = (),
    tail_rows: int | None = 0,
    threads: int,
    gently: bool,
) -> IndexRow:
    """Write the rows of some segments, and of the tail, as new segments.

    Args:
        task: the task that this runs in.
        instance: the DuckDB instance.
        state: the database of the table.
        index: the index.
        table: the table as it is now.
        base: the index's generation, of a chain that holds now.
        merged: segments whose rows that are left are written; they are deleted after.
        tail_rows: how many rows after the watermark are written, the first ones; None:
            all that there are now.
        threads: for the library.
        gently: whether it runs with a low priority.

    Returns:
        The new catalog row.

    Raises:
        OutdatedError: rows moved, or the index was changed by others; nothing was done.
    """
    started = time.perf_counter()
    with instance.lock:
        row, segments = index.row, index.segments
    if row.dropped or {part.segment for part in base.segments} != set(segments):
        raise OutdatedError(f"the index on {table.label} was changed; try again")
    order = Order(
        table,
        column_of(table, row),
        get_index_type(row.index_type),
        METRICS[row.metric],
        row.params,
        row.index_file_size,
        threads,
        gently,
    )
    kept = tuple(segment for segment in segments if segment not in merged)
    taken = frozenset(segment.row.segment for segment in kept)
    writer = SegmentWriter(task, instance, state, order, row.index_id, taken)
    index.work = task
    task.progress = 0.0
    try:
        with writer:
            with snapshot(task, instance, state, table) as cursor:
                seal = instance.seal_transaction(state.name)
                dimension = row.dimension or find_dimension(cursor, table, order.column)
                there, wanted = _choose_rows(cursor, base, table, merged, tail_rows)
                capacity = segment_capacity(row.index_file_size, dimension or 1)
                writer.total_rows = max(1, len(wanted))
                if dimension is not None and len(wanted):
                    writer.reserve(
                        functools.partial(
                            peak_bytes, cursor, order, dimension, len(wanted)
                        )
                    )
                chunk = wanted[:capacity]
                vectors, rowids = _read_chunk(writer, cursor, dimension, chunk)
            for start in range(0, max(1, len(wanted)), capacity):
                if start:
                    with snapshot(task, instance, state, table) as cursor:
                        seal = instance.seal_transaction(state.name)
                        chunk = wanted[start : start + capacity]
                        vectors, rowids = _read_chunk(writer, cursor, dimension, chunk)
                if current_chain(task, instance, state) != base.chain:
                    raise OutdatedError(
                        f"rows of {table.label} moved meanwhile; try again"
                    )
                if len(rowids):
                    writer.write(vectors, rowids)
                del vectors, rowids  # before the next ones are read
            new = tuple(
                sorted((*kept, *writer.segments), key=lambda each: each.row.segment)
            )
            changed = replace(
                row,
                dimension=dimension,
                row_count=sum(segment.row.row_count for segment in new),
                search_params=most_thorough(new),
                build_seconds=row.build_seconds + time.perf_counter() - started,
                updated_at=datetime.now(timezone.utc).replace(tzinfo=None),
            )
            with changing(task, index):
                unchanged = index.row is row and index.segments is segments
                if not unchanged or state.indexes.get(row.key) is not index:
                    raise OutdatedError(
                        f"the index on {table.label} was changed meanwhile; try again"
                    )
                epoch = commit(task, instance, state, changed, new)
                writer.keep()
                with instance.lock:
                    index.row, index.segments = changed, new
                    index.succeeded()
                    index.use(
                        _generation(
                            index, base, writer, merged, there, Seal(seal, epoch)
                        )
                    )
    finally:
        index.work = None
    remove_files(tuple(merged))
    store_plan(task, instance, state, changed, table)
    return changed


def _choose_rows(
    cursor: duckdb.DuckDBPyConnection,
    base: Generation,
    table: Table,
    merged: Sequence[Segment],
    tail_rows: int | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the row ids that the index will cover, and those to write; ascending."""
    there = read_rowids(cursor, table, base.watermark if tail_rows == 0 else None)
    covered = int(np.searchsorted(there, base.watermark, "right"))
    end = len(there) if tail_rows is None else min(len(there), covered + tail_rows)
    there = there[:end]
    parts = [there[covered:]]
    for part in base.segments:
        if part.segment in merged:
            left = without_gone(part, there)
            parts.append(left.rowids[left.rowids >= 0])
    return there, np.sort(np.concatenate(parts))


def _read_chunk(
    writer: SegmentWriter,
    cursor: duckdb.DuckDBPyConnection,
    dimension: int | None,
    wanted: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the vectors and row ids of wanted rows that can be indexed.

    Raises:
        ColumnError: a norm is too large: searches have to find it in the tail.
    """
    order = writer.order
    refused = Refused()
    rowids = np.empty(len(wanted), dtype=np.int64)
    vectors = np.empty((len(wanted), dimension or 1), dtype=np.float32)
    filled = 0
    if dimension is not None and len(wanted):
        for batch in read_vectors(
            cursor,
            order.table,
            order.column,
            dimension,
            order.metric,
            int(wanted[0]) - 1,
            int(wanted[-1]),
        ):
            writer.check()
            at = np.minimum(np.searchsorted(wanted, batch.rowids), len(wanted) - 1)
            mine = wanted[at] == batch.rowids
            refused.note(too_large=np.intersect1d(batch.too_large, batch.rowids[mine]))
            end = filled + int(mine.sum())
            rowids[filled:end] = batch.rowids[mine]
            vectors[filled:end] = batch.vectors[mine]
            filled = end
            writer.report(READ_SHARE * filled)
    refused.check(order)
    return vectors[:filled], rowids[:filled]


def _generation(
    index: IndexState,
    base: Generation,
    writer: SegmentWriter,
    merged: Sequence[Segment],
    there: NDArray[np.int64],
    seal: Seal,
) -> Generation | None:
    """Return the generation that follows; None where the next search has to prove it.

    Another look at the table may have been published since `base`: entries that it
    found gone stay so, and who is older than it gets the exact scan.
    """
    now = index.generation
    if now is None or (now.chain, now.watermark, now.table_identity) != (
        base.chain,
        base.watermark,
        base.table_identity,
    ):
        return None
    parts = [
        without_gone(part, there) for part in now.segments if part.segment not in merged
    ]
    return Generation(
        chain=base.chain,
        seal=Seal(
            max(seal.transaction, now.seal.transaction),
            max(seal.epoch, now.seal.epoch),
        ),
        table_identity=base.table_identity,
        watermark=max(base.watermark, int(there[-1]) if len(there) else -1),
        covered_rows=len(there),
        segments=tuple(parts) + tuple(writer.live),
    )
