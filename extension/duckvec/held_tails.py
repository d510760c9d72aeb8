"""The first rows of a tail, held in memory as an exact segment.

A join scans the tail once for each of its queries: 10,000 queries beside 4,000 new rows
took 9 s, and 0.35 s without them. A product of matrices does the same in a fraction, so
the rows of a tail that is not sealed yet are copied into a FLAT index without files.
The generation that has it extends the current one: its watermark is higher and its seal
younger, and all else about it is as with any other. Who is older than its seal uses
the current one, and scans the whole tail.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import duckdb
import numpy as np
from numpy.typing import NDArray

from duckvec.artifacts import FORMAT_VERSION
from duckvec.errors import BuildCancelledError, BusyError, ClosedError
from duckvec.hashing import hash_vectors
from duckvec.index_types import get_index_type
from duckvec.instance import Instance
from duckvec.keeper import FAILURES, Task
from duckvec.ladders import Rung
from duckvec.memory import MemoryBudget
from duckvec.metrics import METRICS, normalize_rows_inplace
from duckvec.reader import read_rowids, read_vectors
from duckvec.segments import Segment, SegmentRow
from duckvec.states import DatabaseState, IndexState
from duckvec.steps import begin_seal, column_of, snapshot
from duckvec.tables import Table, VectorColumn, read_only
from duckvec.tracking import Generation, LiveSegment, Seal

logger = logging.getLogger("duckvec")

# Fewer rows are scanned; and what is held is copied anew once the tail grew by a share.
LEAST_ROWS = 64
GROWTH = 0.25
MOST_BYTES = 1 << 25


def count(
    instance: Instance,
    cursor: duckdb.DuckDBPyConnection,
    table: Table,
    index: IndexState,
    generation: Generation,
) -> bool:
    """Count the rows that an index covers, and those of its tail, as they are now.

    Args:
        instance: the DuckDB instance.
        cursor: inside a read-only transaction.
        table: the index's table.
        index: the index, which keeps the counts.
        generation: its current one.

    Returns:
        Whether they were kept: not where the index has another generation by now.
    """
    extended = index.extended
    held_until = extended.watermark if extended else generation.watermark
    covered, tail, held = cursor.execute(
        f"""
        SELECT
            (SELECT count(*) FROM {table.path} WHERE rowid <= {generation.watermark:d}),
            count(*),
            count(*) FILTER (WHERE rowid <= {held_until:d})
        FROM {table.path}
        WHERE rowid > {generation.watermark:d}
        """
    ).fetchall()[0]
    gone = 0
    if extended is not None:
        gone = extended.covered_rows - generation.covered_rows - held
    with instance.lock:
        if index.generation is not generation or index.extended is not extended:
            return False
        index.surplus = generation.covered_rows - covered
        index.tail_rows, index.held_rows, index.held_gone = tail, held, gone
    return True


def is_due(instance: Instance, index: IndexState) -> bool:
    """Tell whether more of a tail is to be held, by the last counts."""
    generation = index.generation
    if instance.memory.limit is not None or generation is None:
        return False
    if not generation.entries:
        return False  # nobody searches it
    new = index.tail_rows - index.held_rows - index.unheld
    many_new = new >= max(LEAST_ROWS, GROWTH * index.held_rows)
    return many_new or index.held_gone > LEAST_ROWS


def extended(
    instance: Instance, index: IndexState, generation: Generation, transaction: int
) -> Generation:
    """Return the generation with held rows where a search may use it, else the given.

    Args:
        instance: the DuckDB instance; with a limit of its memory nothing is held.
        index: the index.
        generation: its current one, which the search may use.
        transaction: the number of the caller's, in the table's database.
    """
    found = index.extended
    if (
        found is None
        or instance.memory.limit is not None
        or found.extends is not generation
        or transaction <= found.seal.transaction
        or index.held_gone > LEAST_ROWS
    ):
        return generation
    return found


def hold_tail(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    index: IndexState,
    table: Table,
    *,
    anyway: bool = True,
) -> None:
    """Copy the first rows of a tail into memory; in background threads only.

    Rows that an index cannot hold, because of a NULL or a NaN, are passed over; before
    one with too large a norm it ends. It is an optimisation: where it fails, as with a
    number that FLOAT cannot hold, searches scan, and it is tried with more rows again.
    Without `anyway` the rows are counted first, and copied where that is due.
    """
    base = index.generation
    if base is None or base.table_identity != table.identity:
        return
    try:
        if not anyway:
            with read_only(instance.background_cursor()) as cursor:
                count(instance, cursor, table, index, base)
            if not is_due(instance, index):
                return
        _hold(task, instance, state, index, table, base)
    except (ClosedError, BusyError, BuildCancelledError):
        raise
    except FAILURES as error:
        logger.debug("the new rows of %s are not held: %s", table.path, error)
        with instance.lock:
            index.unheld = index.tail_rows - index.held_rows


def _hold(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    index: IndexState,
    table: Table,
    base: Generation,
) -> None:
    row = index.row
    if row.dimension is None:
        return
    most = max(1, MOST_BYTES // (4 * row.dimension))
    with snapshot(task, instance, state, table) as cursor:
        transaction = begin_seal(instance, state)
        tail = read_rowids(cursor, table, after=base.watermark)
        if not len(tail):
            return
        last = int(tail[:most][-1])
        before = index.extended
        if before and before.watermark >= last and index.held_gone <= LEAST_ROWS:
            index.unheld = max(0, len(tail) - most)  # there is room for no more
            return
        vectors, rowids, last = _read(
            cursor, table, column_of(table, row), index, base.watermark, last
        )
    covered = int(np.searchsorted(tail, last, "right"))
    segments = base.segments
    if len(rowids):
        segments = (*segments, _held(index, vectors, rowids))
    generation = Generation(
        chain=base.chain,
        seal=Seal(transaction, base.seal.epoch),
        table_identity=base.table_identity,
        watermark=last,
        # Entries of `base` whose row is gone by now are still among the hits.
        covered_rows=base.covered_rows + covered,
        segments=segments,
        extends=base,
    )
    with instance.lock:
        if index.generation is not base:
            return
        index.unheld = len(tail) - covered
        before = index.extended
        if before is None or before.watermark < last or index.held_gone > LEAST_ROWS:
            index.extend(generation)


def _read(
    cursor: duckdb.DuckDBPyConnection,
    table: Table,
    column: VectorColumn,
    index: IndexState,
    after: int,
    last: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    """Return vectors and ascending row ids, and up to which row id they are all."""
    dimension, metric = index.row.dimension or 1, METRICS[index.row.metric]
    vectors = [np.empty((0, dimension), dtype=np.float32)]
    rowids = [np.empty(0, dtype=np.int64)]
    for batch in read_vectors(cursor, table, column, dimension, metric, after, last):
        vectors.append(np.array(batch.vectors))
        rowids.append(batch.rowids)
        if len(batch.too_large):
            last = min(last, int(batch.too_large.min()) - 1)
    ids = np.concatenate(rowids)
    order = np.argsort(ids)
    order = order[ids[order] <= last]
    return np.concatenate(vectors)[order], ids[order], last


def _held(
    index: IndexState, vectors: NDArray[np.float32], rowids: NDArray[np.int64]
) -> LiveSegment:
    """Return a segment without files over some vectors, normalised in place."""
    started = time.perf_counter()
    metric, kind = METRICS[index.row.metric], get_index_type("FLAT")
    hashes = hash_vectors(vectors)
    if metric.normalizes:
        normalize_rows_inplace(vectors)
    built = kind.build(vectors, metric, {}, threads=1)
    library, _, version = built.library_note.partition(" ")
    row = SegmentRow(
        segment_id="",
        index_id=index.row.index_id,
        segment=-1,
        index_type=kind.name,
        metric=metric.name,
        dimension=vectors.shape[1],
        row_count=len(rowids),
        params={},
        search_params={},
        file="",
        map_file="",
        size_bytes=0,
        checksum="",
        format_version=FORMAT_VERSION,
        library=library,
        library_version=version,
        build_seconds=time.perf_counter() - started,
        ladder=(Rung(1.0, {}),),
    )
    # A budget of its own: it cannot be closed, having no file to be opened again from.
    segment = Segment(row, Path(), MemoryBudget(), built)
    segment.keep_samples(hashes)
    return LiveSegment(segment, rowids, None)
