"""HNSW: a graph of layers, by hnswlib."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from duckvec.errors import ArtifactError, MissingLibraryError
from duckvec.index_types._faiss import load_faiss
from duckvec.index_types._flat_segment import pack
from duckvec.index_types._range import cuts, sampled_longest, search_range_widening
from duckvec.index_types._rows import (
    Copies,
    append_numbers,
    copies_bytes,
    read_numbers,
    repeated_rows,
)
from duckvec.index_types._setting import SharedSetting
from duckvec.index_types._widening import search_widening
from duckvec.index_types.base import (
    Cancelled,
    Estimate,
    Hits,
    IndexType,
    InRange,
    Progress,
    SegmentIndex,
    Sketch,
    geometric_steps,
    report,
    stop_if_cancelled,
)
from duckvec.metrics import METRICS, Metric
from duckvec.parameters import MEASURED, Parameter

SEED = 100
# Rows are added in blocks that take about so long, beginning with so many.
BLOCK_SECONDS, FIRST_BLOCK_ROWS, MOST_BLOCK_ROWS = 0.25, 512, 8192
DEFAULT_EF = 128
SMALLEST_EF = 16
LARGEST_EF = 4096
LARGEST_WIDENED_EF = 32_768
# What hnswlib keeps of a row besides its record (hnswalg.h): a pointer, a level, a
# mutex, and an entry of the hash table of labels; and once for all, 65,536 mutexes.
ROW_BYTES = 8 + 4 + 40 + 56
LOCKS_BYTES = 65_536 * 40
# Seconds of one thread to weigh one candidate, and for each component of it, in a graph
# of so many rows; in larger ones more of them lie outside of caches (measured).
CANDIDATE_SECONDS, COMPONENT_SECONDS, CACHED_ROWS = 1e-7, 2.2e-9, 20_000

M = Parameter(
    name="M",
    phase="build",
    minimum=5,
    maximum=48,
    allowed=None,
    mandatory=True,
    default=None,
    description=(
        "How many neighbours a row is linked to; more give better recall, more memory "
        "and a slower build. Typically 12 to 32, more for longer vectors."
    ),
)
EF_CONSTRUCTION = Parameter(
    name="efConstruction",
    phase="build",
    minimum=100,
    maximum=500,
    allowed=None,
    mandatory=True,
    default=None,
    description=(
        "How many candidates the build weighs for each row; more give better recall "
        "and a slower build. Typically 200 to 500."
    ),
)
EF = Parameter(
    name="ef",
    phase="search",
    minimum=1,
    maximum="max(k, 4096)",
    allowed=None,
    mandatory=False,
    default=MEASURED,
    description=(
        "How many candidates a search keeps, at least k; more find more of the nearest "
        "and take longer. Typically 2 to 20 times k. Of a segment of up to 4,096 "
        "rows, as many find all."
    ),
    lower=lambda k, build_params: k,
    upper=lambda k, build_params: max(k, LARGEST_EF),
)


class HnswSegment(SegmentIndex):
    """An hnswlib.Index of the distinct rows, and which positions hold each."""

    def __init__(
        self,
        index: Any,
        metric: Metric,
        numbers: NDArray[np.int32] | None,
        dimension: int,
        note: str,
    ) -> None:
        self._index = index
        self._metric = metric
        self._numbers = numbers
        self._copies = None if numbers is None else Copies.of(numbers)
        self._ef = SharedSetting(index.set_ef)
        self._distinct = int(index.get_current_count())
        self.rows = self._distinct if numbers is None else len(numbers)
        self.dimension = dimension
        self.library_note = note

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        params: Mapping[str, int],
        *,
        threads: int = 1,
        allowed: NDArray[np.bool_] | None = None,
    ) -> Hits:
        """Search the graph with ef, and with more where it finds too few."""
        ef = max(params.get("ef", DEFAULT_EF), 1)

        def nearest(
            some: NDArray[np.float32], width: int, effort: float
        ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            return self._nearest(some, width, int(ef * effort), threads)

        most = min(self.rows, LARGEST_WIDENED_EF)
        return search_widening(
            nearest, queries, k, self.rows, allowed, max(1, -(-most // ef))
        )

    def vectors(self, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return the vectors that the graph holds."""
        labels = positions if self._numbers is None else self._numbers[positions]
        return self._distinct_vectors(labels)

    def search_range(
        self,
        queries: NDArray[np.float32],
        radius: float,
        params: Mapping[str, int],
        *,
        threads: int = 1,
        allowed: NDArray[np.bool_] | None = None,
    ) -> InRange:
        """Search for ever more nearest rows; ef grows to as many as are asked for."""
        ef = max(params.get("ef", DEFAULT_EF), 1)

        def nearest(
            some: NDArray[np.float32], width: int
        ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            return self._nearest(some, width, ef, threads)

        cut = cuts(self._metric, queries, radius, self._longest)
        return search_range_widening(nearest, queries, cut, self.rows, allowed)

    def save(self, path: Path) -> None:
        """Write hnswlib's file; behind it, where rows repeat, the number of each."""
        path.touch()  # hnswlib does not tell where it cannot create the file,
        self._index.save_index(str(path))
        written, wanted = path.stat().st_size, int(self._index.index_file_size())
        if written != wanted:  # nor where the disk is full
            raise OSError(f"only {written} of {wanted} bytes fit")
        append_numbers(path, self._numbers)

    def memory_bytes(self) -> int:
        """Return the size of vectors and links."""
        copies = 0 if self._copies is None else self.rows * 12
        return copies + int(self._index.index_file_size())

    def close(self) -> None:
        """Let go of the graph."""
        self._index = None

    def _longest(self) -> float:
        if self._metric.normalizes:
            return 1.0
        return self._largest_norm

    @cached_property
    def _largest_norm(self) -> float:
        return sampled_longest(self._distinct_vectors, self._distinct)

    @cached_property
    def _packed(self) -> SegmentIndex:
        vectors = self._distinct_vectors(np.arange(self._distinct))
        return pack(load_faiss("HNSW"), vectors, self._metric)

    def _distinct_vectors(self, labels: NDArray[np.integer]) -> NDArray[np.float32]:
        found = np.asarray(self._index.get_items(labels), dtype=np.float32)
        return found.reshape(-1, self.dimension)

    def _nearest(
        self, queries: NDArray[np.float32], width: int, ef: int, threads: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        narrow = min(width, self._distinct)
        ids, distances = self._nearest_distinct(queries, narrow, ef, threads)
        if self._copies is None:
            return ids, distances
        return self._copies.expand(ids, distances, width)

    def _nearest_distinct(
        self, queries: NDArray[np.float32], width: int, ef: int, threads: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if self._distinct <= min(max(ef, width), LARGEST_EF):
            # All rows are to be weighed, and the graph need not lead to each.
            hits = self._packed.search(queries, width, {}, threads=threads)
            return hits.positions[:, :width], hits.distances[:, :width]
        found = self._query(queries, width, max(ef, width), threads)
        if found is not None:
            return found
        ids = np.full((len(queries), width), -1, dtype=np.int64)
        distances = np.full((len(queries), width), np.inf, dtype=np.float32)
        for row in range(len(queries)):
            fewer, part = width, None
            while part is None and fewer:
                part = self._query(
                    queries[row : row + 1], fewer, max(ef, width), threads
                )
                fewer = fewer if part is not None else fewer // 2
            if part is not None:
                ids[row, :fewer], distances[row, :fewer] = part[0][0], part[1][0]
        return ids, distances

    def _query(
        self, queries: NDArray[np.float32], width: int, ef: int, threads: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Return the nearest, None where a query finds fewer than the width."""
        with self._ef.hold(ef):
            try:
                labels, raw = self._index.knn_query(
                    queries, k=width, num_threads=threads
                )
            except RuntimeError as error:
                if "contiguous 2D array" in str(error):
                    return None
                raise
        if self._metric.is_similarity:
            raw = 1 - raw  # hnswlib's inner product space gives 1 - product
        return labels.astype(np.int64), self._metric.distances(raw)


class Hnsw(IndexType):
    """Fast searches of high recall, for more memory and a slow build."""

    name: ClassVar[str] = "HNSW"
    library: ClassVar[str] = "hnswlib"
    extra: ClassVar[str | None] = "hnsw"
    parameters: ClassVar[tuple[Parameter, ...]] = (M, EF_CONSTRUCTION, EF)

    def estimate(self, params: Mapping[str, int], sketch: Sketch) -> Estimate:
        """Return the sizes of the graph over the distinct rows.

        The file (hnswalg.h, saveIndex) holds for each of them 2 M links, the vector, a
        label, and a length; and M links for each higher layer it is in, which one of M
        rows reaches, and of those one of M the next. All of it lies in memory. A list
        of two bytes a row marks for each thread what it visited.
        """
        distinct, m = sketch.count_distinct(), params["M"]
        record = 8 * m + 4 + sketch.vector_bytes + 8
        higher = distinct * (4 * m + 4) // (m - 1)
        graph = 96 + distinct * (record + 4) + higher
        numbers, copies = copies_bytes(sketch.rows, distinct)
        held = graph + distinct * (ROW_BYTES + 2 * sketch.threads) + LOCKS_BYTES
        weighed = distinct * (params["efConstruction"] + 40) * (m / 16) ** 0.2
        weighed *= max(1.0, distinct / CACHED_ROWS) ** 0.5
        seconds = weighed * (CANDIDATE_SECONDS + COMPONENT_SECONDS * sketch.dimension)
        return Estimate(
            graph + numbers,
            held + copies,
            held + copies,
            seconds / sketch.threads,
        )

    def build(
        self,
        vectors: NDArray[np.float32],
        metric: Metric,
        params: Mapping[str, int],
        *,
        threads: int,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> HnswSegment:
        """Add the distinct rows; with one thread, always the same graph."""
        stop_if_cancelled(cancelled)
        dimension = vectors.shape[1]
        index = self._new_index(metric, dimension)
        numbers = repeated_rows(vectors)
        first = None if numbers is None else Copies.of(numbers).first()
        rows = len(vectors) if first is None else len(first)
        index.init_index(
            max_elements=rows,
            M=params["M"],
            ef_construction=params["efConstruction"],
            random_seed=SEED,
        )
        start, block = 0, FIRST_BLOCK_ROWS
        while start < rows:
            stop_if_cancelled(cancelled)
            report(progress, start / rows)
            began = time.perf_counter()
            stop = min(rows, start + block)
            chosen = slice(start, stop) if first is None else first[start:stop]
            index.add_items(
                vectors[chosen], np.arange(start, stop), num_threads=threads
            )
            pace = (time.perf_counter() - began) / (stop - start)
            block = int(BLOCK_SECONDS / pace) if pace else MOST_BLOCK_ROWS
            block = max(64, min(block, 2 * (stop - start), MOST_BLOCK_ROWS))
            start = stop
        report(progress, 1.0)
        return HnswSegment(index, metric, numbers, dimension, self._note())

    def open(
        self,
        path: Path,
        metric: Metric,
        rows: int,
        dimension: int,
        params: Mapping[str, int],
    ) -> HnswSegment:
        """Read the graph into memory."""
        index = self._new_index(metric, dimension)
        try:
            numbers, length = read_numbers(path, rows)
            held = rows if numbers is None else int(numbers.max()) + 1
            if numbers is None:
                index.load_index(str(path), max_elements=held)
            else:
                _load_part(index, path, length, held)
        except (RuntimeError, MemoryError, FileNotFoundError) as error:
            raise ArtifactError(
                f"hnswlib cannot read {path.name}; rebuild it"
            ) from error
        if index.get_current_count() != held:
            raise ArtifactError(
                f"{path.name} holds {index.get_current_count()} vectors, not {held}; "
                "rebuild it"
            )
        return HnswSegment(index, metric, numbers, dimension, self._note())

    def search_grid(
        self, params: Mapping[str, int], rows: int, k: int
    ) -> list[dict[str, int]]:
        """Return ef from 16, or k, up to 4096 or the rows."""
        first = max(k, SMALLEST_EF)
        last = max(first, min(LARGEST_EF, rows))
        return [{"ef": ef} for ef in geometric_steps(first, last, 1.5)]

    def default_search_params(
        self, params: Mapping[str, int], rows: int
    ) -> dict[str, int]:
        """Return an ef that is enough for most data and a small k."""
        return {"ef": DEFAULT_EF}

    def clamp_search_params(
        self, search: Mapping[str, int], params: Mapping[str, int], k: int
    ) -> dict[str, int]:
        """Raise ef to k."""
        return {**search, "ef": max(search["ef"], k)} if "ef" in search else {}

    def require_library(self) -> None:
        """Raise MissingLibraryError where the library cannot be imported."""
        self._new_index(METRICS["L2"], 1)

    def _new_index(self, metric: Metric, dimension: int) -> Any:
        try:
            import hnswlib
        except ImportError as error:
            raise MissingLibraryError(self.name, self.extra, self.library) from error
        return hnswlib.Index(space=metric.hnswlib, dim=dimension)

    def _note(self) -> str:
        return f"{self.library} {self.library_version()}"


def _load_part(index: Any, path: Path, length: int, elements: int) -> None:
    """Load the first bytes of a file: hnswlib refuses one with others behind them."""
    place = path.parent if os.access(path.parent, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=path.name, dir=place) as folder:
        part = Path(folder) / path.name
        shutil.copyfile(path, part)
        os.truncate(part, length)
        index.load_index(str(part), max_elements=elements)
