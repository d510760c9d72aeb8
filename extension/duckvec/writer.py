"""Writing segments: building with a library, measuring, and storing the result.

Runs in background threads. Nothing here touches the catalog.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

import duckdb
import numpy as np
from numpy.typing import NDArray

from duckvec import paths
from duckvec.artifacts import FORMAT_VERSION
from duckvec.calibration import calibrate
from duckvec.errors import ArtifactError, ColumnError
from duckvec.index_types.base import IndexType, SegmentIndex
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.ladders import Measured
from duckvec.leftovers import leftovers
from duckvec.metrics import Metric, normalize_rows_inplace
from duckvec.policy import segment_capacity
from duckvec.priority import call_gently
from duckvec.reader import count_rows, read_vectors
from duckvec.segments import (
    Segment,
    SegmentRow,
    hash_vectors,
    write_segment,
)
from duckvec.sql_text import quote_identifier
from duckvec.states import DatabaseState
from duckvec.tables import Table, VectorColumn
from duckvec.tracking import LiveSegment

# Shares of the work on one segment: reading its rows, building, and measuring.
READ_SHARE, BUILD_SHARE = 0.2, 0.7


@dataclass(frozen=True)
class Order:
    """What to build: a checked request.

    `params` are as the user gave them; each segment clamps them to its rows. `threads`
    are for the library, and with `gently` they have a low priority.
    """

    table: Table
    column: VectorColumn
    index_type: IndexType
    metric: Metric
    params: Mapping[str, int]
    index_file_size: int
    threads: int
    gently: bool = False


class SegmentWriter:
    """Builds and stores the segments of one index, one after another.

    A context manager: unless `keep` was called, leaving it deletes their files again.

    Attributes:
        live: the segments written so far, with the row ids of their entries.
        total_rows: how many rows there are to write, for the task's progress.
    """

    def __init__(
        self,
        task: Task,
        instance: Instance,
        state: DatabaseState,
        order: Order,
        index_id: str,
        taken: frozenset[int] = frozenset(),
    ) -> None:
        """Prepare; `taken` are the numbers of segments that stay.

        Raises:
            NotIndexableError: the vectors must not be written there.
        """
        instance.require_safe_folder(state)
        self.task = task
        self.instance = instance
        self.order = order
        self.live: list[LiveSegment] = []
        self.total_rows = 1
        self._folder = instance.folder(state)
        self._index_id = index_id
        self._taken = set(taken)
        self._done_rows = 0
        self._kept = False

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments written so far."""
        return tuple(part.segment for part in self.live)

    def search_params(self) -> dict[str, int]:
        """Return the most thorough of their default search parameters."""
        return most_thorough(self.segments)

    def keep(self) -> None:
        """Leave the files where they are: the catalog names them now."""
        self._kept = True

    def check(self) -> None:
        """Stop where the task was cancelled, or every connection is closed."""
        self.task.check()
        self.instance.require_open()

    def report(self, rows: float) -> None:
        """Show how much is done: so many rows of the segment at work."""
        share = (self._done_rows + rows) / self.total_rows
        self.task.progress = max(self.task.progress, min(0.99, share))

    def write(self, vectors: NDArray[np.float32], rowids: NDArray[np.int64]) -> None:
        """Build and store one segment; `vectors` may be normalised in place."""
        started = time.perf_counter()
        hashes = hash_vectors(vectors)
        order = self.order
        if order.metric.normalizes:
            normalize_rows_inplace(vectors)
        rows, dimension = vectors.shape
        kind = order.index_type
        params = kind.effective_params(order.params, rows, dimension)

        def build() -> SegmentIndex:
            return kind.build(
                vectors,
                order.metric,
                params,
                threads=order.threads,
                progress=lambda share: self.report(
                    rows * (READ_SHARE + BUILD_SHARE * share)
                ),
                cancelled=lambda: self.task.cancelled or not self.instance.is_open,
            )

        built = call_gently(build) if order.gently else build()
        self.check()
        segment_id = paths.new_segment_id()
        library, _, version = built.library_note.partition(" ")
        number = next(n for n in range(len(self._taken) + 1) if n not in self._taken)
        row = SegmentRow(
            segment_id=segment_id,
            index_id=self._index_id,
            segment=number,
            index_type=kind.name,
            metric=order.metric.name,
            dimension=dimension,
            row_count=rows,
            params=params,
            search_params={},
            file=segment_id + paths.INDEX_ENDING,
            map_file=segment_id + paths.MAP_ENDING,
            size_bytes=0,
            checksum="",
            format_version=FORMAT_VERSION,
            library=library,
            library_version=version,
            build_seconds=time.perf_counter() - started,
        )

        def measure() -> Measured:
            return calibrate(
                kind,
                built,
                vectors,
                order.metric,
                params,
                threads=order.threads,
                build_seconds=row.build_seconds,
            )

        kept = rowids.copy()  # what may fail comes before the files are there
        segment = write_segment(row, self._folder, built, rowids, hashes, measure)
        self.live.append(LiveSegment(segment, kept, None))
        self._taken.add(number)
        self._done_rows += rows
        self.report(0)

    def __enter__(self) -> SegmentWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Delete what was not kept."""
        if not self._kept:
            remove_files(self.segments)


def write_table(
    writer: SegmentWriter, cursor: duckdb.DuckDBPyConnection, dimension: int | None
) -> tuple[int, int, int]:
    """Read all rows in one snapshot and write them as segments.

    Returns:
        The last row id, how many rows there are, and how many of those with a vector
        were left out.

    Raises:
        ColumnError: a vector has a NaN or infinite component.
    """
    order = writer.order
    rows, vectors, last = count_rows(cursor, order.table, order.column)
    if dimension is None or vectors == 0:
        return last, rows, 0
    writer.total_rows = vectors
    capacity = segment_capacity(order.index_file_size, dimension)
    buffer = np.empty((min(capacity, vectors), dimension), dtype=np.float32)
    rowids = np.empty(len(buffer), dtype=np.int64)
    filled, read, not_finite = 0, 0, 0
    example = -1
    for batch in read_vectors(
        cursor, order.table, order.column, dimension, order.metric
    ):
        writer.check()
        if len(batch.not_finite):
            example = int(batch.not_finite[0]) if not not_finite else example
            not_finite += len(batch.not_finite)
        start = 0
        while start < len(batch.rowids):
            take = min(len(buffer) - filled, len(batch.rowids) - start)
            buffer[filled : filled + take] = batch.vectors[start : start + take]
            rowids[filled : filled + take] = batch.rowids[start : start + take]
            filled, start = filled + take, start + take
            if filled == len(buffer) and not not_finite:
                writer.write(buffer, rowids)
                filled = 0
            elif filled == len(buffer):
                filled = 0  # only counting goes on
        read += len(batch.rowids)
        writer.report(READ_SHARE * filled)
    if not_finite:
        one = not_finite == 1
        raise ColumnError(
            f"{not_finite} {'vector' if one else 'vectors'} in "
            f"{quote_identifier(order.column.name)} of {order.table.label} "
            f"{'holds' if one else 'hold'} NaN or infinite values, such as the one "
            f"at rowid {example}; set them to NULL"
        )
    if filled:
        writer.write(buffer[:filled], rowids[:filled])
    return last, rows, vectors - read


def most_thorough(segments: tuple[Segment, ...]) -> dict[str, int]:
    """Return the largest of the segments' default search parameters, each by itself."""
    result: dict[str, int] = {}
    for segment in segments:
        for name, value in segment.row.search_params.items():
            result[name] = max(value, result.get(name, value))
    return result


def remove_files(segments: tuple[Segment, ...]) -> None:
    """Delete the files of segments that no catalog row names any more.

    What cannot be deleted now is tried again later. Searches that still run keep what
    they have opened.
    """
    for segment in segments:
        with contextlib.suppress(ArtifactError):  # a name that is not ours stays
            for path in segment.files():
                leftovers.discard(path)
    leftovers.retry()
