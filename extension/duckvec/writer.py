"""Writing segments: building with a library, measuring, and storing the result.

Runs in background threads. Nothing here touches the catalog.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

import duckdb
import numpy as np
from numpy.typing import NDArray

from duckvec import paths
from duckvec.artifacts import FORMAT_VERSION
from duckvec.calibration import calibrate
from duckvec.errors import ArtifactError, ColumnError
from duckvec.hashing import hash_vectors
from duckvec.index_types.base import IndexType, SegmentIndex
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.ladders import Measured
from duckvec.leftovers import leftovers
from duckvec.metrics import Metric, normalize_rows_inplace
from duckvec.policy import segment_capacity
from duckvec.priority import call_apart
from duckvec.reader import count_rows, read_vectors
from duckvec.segments import Segment, SegmentRow, write_segment
from duckvec.sql_text import quote_identifier
from duckvec.states import DatabaseState
from duckvec.tables import Table, VectorColumn
from duckvec.tracking import LiveSegment

# Shares of the work on one segment: reading its rows, building, and measuring.
READ_SHARE, BUILD_SHARE = 0.2, 0.7
_NONE = np.empty(0, dtype=np.int64)


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
        self._reserved = contextlib.ExitStack()

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments written so far."""
        return tuple(part.segment for part in self.live)

    def search_params(self) -> dict[str, int]:
        """Return the most thorough of their default search parameters."""
        return most_thorough(self.segments)

    def reserve(self, peak_bytes: Callable[[], int]) -> None:
        """Keep memory for the work on one segment, where memory is limited.

        Raises:
            MemoryLimitError: it does not fit.
        """
        memory, order = self.instance.memory, self.order
        if memory.limit is not None:
            name = f"building {order.index_type.name} on {order.table.label}"
            self._reserved.enter_context(memory.building(peak_bytes(), name))

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
        self.instance.memory.shrink()  # the segments written before may go
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

        built = call_apart(build, self.check, self._reserved, gently=order.gently)
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
                check=self.check,
            )

        kept = rowids.copy()  # what may fail comes before the files are there
        segment = write_segment(
            row, self._folder, built, rowids, hashes, measure, self.instance.memory
        )
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
        self._reserved.close()
        if not self._kept:
            for segment in self.segments:
                segment.close()  # some systems keep what is mapped
            remove_files(self.segments)


class Refused:
    """The rows whose vectors no index can hold; true where there are any."""

    def __init__(self) -> None:
        """Begin without any."""
        self._not_finite: list[NDArray[np.int64]] = []
        self._too_large: list[NDArray[np.int64]] = []

    def note(
        self,
        not_finite: NDArray[np.int64] = _NONE,
        too_large: NDArray[np.int64] = _NONE,
    ) -> None:
        """Keep the row ids of a batch."""
        self._not_finite += [not_finite] if len(not_finite) else []
        self._too_large += [too_large] if len(too_large) else []

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(self._not_finite or self._too_large)

    def check(self, order: Order) -> None:
        """Refuse the column where there are any.

        Raises:
            ColumnError: with their number, and one of them.
        """
        for parts, verbs, what in (
            (self._not_finite, ("holds", "hold"), "NaN or infinite values"),
            (self._too_large, ("has", "have"), "a norm above 4.6e18"),
        ):
            count = sum(map(len, parts))
            if count:
                one = count == 1
                raise ColumnError(
                    f"{count} {'vector' if one else 'vectors'} in "
                    f"{quote_identifier(order.column.name)} of {order.table.label} "
                    f"{verbs[0] if one else verbs[1]} {what}, such as the one "
                    f"at rowid {int(parts[0][0])}; set them to NULL"
                )


def write_table(
    writer: SegmentWriter, cursor: duckdb.DuckDBPyConnection, dimension: int | None
) -> tuple[int, int, int]:
    """Read all rows in one snapshot and write them as segments.

    Returns:
        The last row id, how many rows there are, and how many of those with a vector
        were left out.

    Raises:
        ColumnError: a vector has a NaN or infinite component, or too large a norm.
    """
    order = writer.order
    rows, vectors, last = count_rows(cursor, order.table, order.column)
    if dimension is None or vectors == 0:
        return last, rows, 0
    writer.total_rows = vectors
    capacity = segment_capacity(order.index_file_size, dimension)
    buffer = np.empty((min(capacity, vectors), dimension), dtype=np.float32)
    rowids = np.empty(len(buffer), dtype=np.int64)
    filled, read = 0, 0
    refused = Refused()
    for batch in read_vectors(
        cursor, order.table, order.column, dimension, order.metric
    ):
        writer.check()
        refused.note(batch.not_finite, batch.too_large)
        start = 0
        while start < len(batch.rowids):
            take = min(len(buffer) - filled, len(batch.rowids) - start)
            buffer[filled : filled + take] = batch.vectors[start : start + take]
            rowids[filled : filled + take] = batch.rowids[start : start + take]
            filled, start = filled + take, start + take
            if filled == len(buffer) and not refused:
                writer.write(buffer, rowids)
                filled = 0
            elif filled == len(buffer):
                filled = 0  # only counting goes on
        read += len(batch.rowids)
        writer.report(READ_SHARE * filled)
    refused.check(order)
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
