"""Writing segments: reading rows, building with a library, and storing the result.

Runs in the keeper's thread. Nothing here touches the catalog.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import numpy as np
from numpy.typing import NDArray

from duckvec import paths
from duckvec.calibration import calibrate
from duckvec.errors import ArtifactError, ColumnError
from duckvec.index_types.base import IndexType
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.metrics import Metric, normalize_rows_inplace
from duckvec.reader import count_rows, read_vectors
from duckvec.segments import (
    FORMAT_VERSION,
    Segment,
    SegmentRow,
    hash_vectors,
    write_segment,
)
from duckvec.sql_text import quote_identifier
from duckvec.states import DatabaseState
from duckvec.tables import Table, VectorColumn
from duckvec.tracking import LiveSegment


@dataclass(frozen=True)
class Order:
    """What to build: a checked request.

    `params` are as the user gave them; each segment clamps them to its rows.
    """

    table: Table
    column: VectorColumn
    index_type: IndexType
    metric: Metric
    params: Mapping[str, int]
    index_file_size: int


@dataclass
class Written:
    """The segments of one build, with what was learnt on the way."""

    live: list[LiveSegment]
    search_params: dict[str, int]
    skipped_rows: int
    watermark: int
    covered_rows: int


def write_segments(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    order: Order,
    cursor: duckdb.DuckDBPyConnection,
    dimension: int | None,
    index_id: str,
    *,
    strict: bool,
    after: int = -1,
    first_number: int = 0,
) -> Written:
    """Read the rows after a row id and write them as segments.

    Where `strict`, a NaN or infinite component is an error; else the row is skipped.
    """
    rows, vectors, last = count_rows(cursor, order.table, order.column)
    result = Written([], {}, 0, last, rows)
    if dimension is None or vectors == 0 or last <= after:
        return result
    if after >= 0:
        vectors -= _count_up_to(cursor, order, after)
    capacity = max(1, order.index_file_size * (1 << 20) // (4 * dimension))
    buffer = np.empty((min(capacity, vectors), dimension), dtype=np.float32)
    rowids = np.empty(len(buffer), dtype=np.int64)
    filled, read, not_finite = 0, 0, 0
    example = -1

    def seal() -> None:
        result.live.append(
            _write_segment(
                task,
                instance,
                state,
                order,
                buffer[:filled],
                rowids[:filled],
                index_id,
                first_number + len(result.live),
                result,
            )
        )

    try:
        batches = read_vectors(
            cursor, order.table, order.column, dimension, order.metric, after
        )
        for batch in batches:
            task.check()
            instance.require_open()
            if len(batch.not_finite):
                example = int(batch.not_finite[0]) if not not_finite else example
                not_finite += len(batch.not_finite)
            start = 0
            while start < len(batch.rowids):
                take = min(len(buffer) - filled, len(batch.rowids) - start)
                buffer[filled : filled + take] = batch.vectors[start : start + take]
                rowids[filled : filled + take] = batch.rowids[start : start + take]
                filled, start = filled + take, start + take
                if filled == len(buffer) and not (strict and not_finite):
                    seal()
                    filled = 0
            read += len(batch.rowids)
            task.progress = min(0.99, read / max(1, vectors))
        if not_finite and strict:
            one = not_finite == 1
            raise ColumnError(
                f"{not_finite} {'vector' if one else 'vectors'} in "
                f"{quote_identifier(order.column.name)} of {order.table.label} "
                f"{'holds' if one else 'hold'} NaN or infinite values, such as the one "
                f"at rowid {example}; set them to NULL"
            )
        if filled:
            seal()
    except BaseException:
        remove_files(tuple(live.segment for live in result.live))
        raise
    result.skipped_rows = vectors - read
    return result


def _write_segment(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    order: Order,
    vectors: NDArray[np.float32],
    rowids: NDArray[np.int64],
    index_id: str,
    number: int,
    result: Written,
) -> LiveSegment:
    """Build and write one segment; `vectors` is normalised in place where needed."""
    started = time.perf_counter()
    hashes = hash_vectors(vectors)
    if order.metric.normalizes:
        normalize_rows_inplace(vectors)
    rows, dimension = vectors.shape
    kind = order.index_type
    params = kind.effective_params(order.params, rows, dimension)
    built = kind.build(
        vectors,
        order.metric,
        params,
        threads=instance.threads,
        cancelled=lambda: task.cancelled,
    )
    task.check()

    def measure() -> None:
        if not result.search_params:
            result.search_params = calibrate(
                kind, built, vectors, order.metric, params, threads=instance.threads
            )

    segment_id = paths.new_segment_id()
    library, _, version = built.library_note.partition(" ")
    row = SegmentRow(
        segment_id=segment_id,
        index_id=index_id,
        segment=number,
        index_type=kind.name,
        metric=order.metric.name,
        dimension=dimension,
        row_count=rows,
        params=params,
        file=segment_id + paths.INDEX_ENDING,
        map_file=segment_id + paths.MAP_ENDING,
        size_bytes=0,
        checksum="",
        format_version=FORMAT_VERSION,
        library=library,
        library_version=version,
        build_seconds=time.perf_counter() - started,
    )
    folder = instance.folder(state)
    segment = write_segment(row, folder, built, rowids, hashes, measure)
    return LiveSegment(segment, rowids.copy(), None)


def _count_up_to(cursor: duckdb.DuckDBPyConnection, order: Order, rowid: int) -> int:
    name = quote_identifier(order.column.name)
    found = cursor.execute(
        f"SELECT count({name}) FROM {order.table.path} WHERE rowid <= {rowid:d}"
    ).fetchall()
    return int(found[0][0])


def remove_files(segments: tuple[Segment, ...]) -> None:
    """Delete the files of segments that no catalog row names any more.

    Searches that still run keep what they have opened.
    """
    for segment in segments:
        with contextlib.suppress(ArtifactError):  # a name that is not ours stays
            for path in segment.files():
                paths.remove(path)
