"""A packed copy of vectors, searched exactly."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types._exact import ExactSearch
from duckvec.index_types._faiss import (
    faiss_threads,
    multiplied_from,
    note,
    selector,
    write_index,
)
from duckvec.index_types._range import allowed_positions
from duckvec.index_types._rows import largest_norm
from duckvec.index_types.base import Hits, InRange, SegmentIndex
from duckvec.metrics import ROWS_PER_BLOCK, Metric

FARTHEST_COSINE = 2.0
NEARER_THAN_ZEROS = 0.99


class FlatSegment(SegmentIndex):
    """A faiss IndexFlat; many queries go through a blocked product of matrices."""

    def __init__(self, faiss: Any, index: Any, metric: Metric, mapped: bool) -> None:
        self._faiss = faiss
        self._index = index
        self._metric = metric
        self._mapped = mapped
        self.rows = int(index.ntotal)
        self.dimension = int(index.d)
        self.library_note = note(faiss)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        params: Mapping[str, int],
        *,
        threads: int = 1,
        allowed: NDArray[np.bool_] | None = None,
    ) -> Hits:
        """Return every position that may be among the k nearest of each query."""
        hits = self._search(queries, k, threads, allowed)
        if not self._metric.normalizes:
            return hits
        # A row of zeros has the distance 1 here: it can only be among rows that far.
        far = (hits.positions >= 0) & (hits.distances > NEARER_THAN_ZEROS)
        if far.any() and len(self._zero_rows):
            return self._search_beside_zeros(queries, k, threads, allowed)
        return hits

    def search_range(
        self,
        queries: NDArray[np.float32],
        radius: float,
        params: Mapping[str, int],
        *,
        threads: int = 1,
        allowed: NDArray[np.bool_] | None = None,
    ) -> InRange:
        """Return every position that may be within the radius: all there are.

        With COSINE a row of zeros has the distance 1 here, and is a candidate from
        there on. DuckDB 2 gives it NaN, which is within no radius, and DuckDB 1.5 gives
        it 2: both find what they want among the candidates.
        """
        everything = allowed_positions(self.rows, allowed)
        with faiss_threads(self._faiss, threads):
            exact = self._exhaustive(allowed)
            return InRange.of(exact.search_range(queries, radius, everything))

    def save(self, path: Path) -> None:
        """Write faiss's file of an IndexFlat."""
        write_index(self._faiss, self._index, path)

    def memory_bytes(self) -> int:
        """Return the size of the packed copy, 0 where it is mapped."""
        return 0 if self._mapped else self.rows * self.dimension * 4

    def entries_visited(
        self,
        queries: NDArray[np.float32],
        params: Mapping[str, int],
        allowed: NDArray[np.bool_] | None = None,
    ) -> int | None:
        """Return all that are allowed, for each query."""
        allowed_rows = self.rows if allowed is None else int(np.count_nonzero(allowed))
        return len(queries) * allowed_rows

    def close(self) -> None:
        """Let go of the vectors."""
        self._index = None

    def _search(
        self,
        queries: NDArray[np.float32],
        k: int,
        threads: int,
        allowed: NDArray[np.bool_] | None,
    ) -> Hits:
        with faiss_threads(self._faiss, threads):
            return self._exhaustive(allowed).search(queries, k)

    def _exhaustive(self, allowed: NDArray[np.bool_] | None) -> ExactSearch:
        chosen = selector(self._faiss, allowed)
        product = multiplied_from(self._faiss, self.dimension)
        return ExactSearch(
            index=self._index,
            metric=self._metric,
            parameters=chosen and self._faiss.SearchParameters(sel=chosen),
            total=self.rows if allowed is None else int(np.count_nonzero(allowed)),
            longest=self._longest,
            multiplied_from=None if chosen else product,
            vectors=self._index.reconstruct_batch,
        )

    def _search_beside_zeros(
        self,
        queries: NDArray[np.float32],
        k: int,
        threads: int,
        allowed: NDArray[np.bool_] | None,
    ) -> Hits:
        """Search with COSINE where some rows are zeros: they come last, if at all.

        DuckDB gives no angle to a zero vector, and sorts it behind all others.
        """
        if allowed is None:
            allowed = np.ones(self.rows, dtype=np.bool_)
        zeros = self._zero_rows[allowed[self._zero_rows]]
        others = allowed.copy()
        others[zeros] = False
        hits = self._search(queries, k, threads, others)
        lacking = min(k - min(k, int(np.count_nonzero(others))), len(zeros))
        if not lacking:
            return hits
        shape = (len(queries), lacking)
        last = np.full(shape, FARTHEST_COSINE, dtype=np.float32)
        return Hits(
            np.hstack([hits.positions, np.broadcast_to(zeros[:lacking], shape)]),
            np.hstack([hits.distances, last]),
        )

    def _longest(self) -> float:
        return 1.0 if self._metric.normalizes else self._largest_norm

    @cached_property
    def _largest_norm(self) -> float:
        blocks = range(0, self.rows, ROWS_PER_BLOCK)
        return max((largest_norm(self._block(start)) for start in blocks), default=0.0)

    @cached_property
    def _zero_rows(self) -> NDArray[np.int64]:
        found = [
            start + np.flatnonzero(~self._block(start).any(axis=1))
            for start in range(0, self.rows, ROWS_PER_BLOCK)
        ]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def _block(self, start: int) -> NDArray[np.float32]:
        count = min(ROWS_PER_BLOCK, self.rows - start)
        vectors: NDArray[np.float32] = self._index.reconstruct_n(start, count)
        return vectors


def pack(faiss: Any, vectors: NDArray[np.float32], metric: Metric) -> FlatSegment:
    """Return a packed copy of vectors (n, d), prepared as for an index."""
    index = faiss.IndexFlat(vectors.shape[1], getattr(faiss, metric.faiss))
    index.add(vectors)
    return FlatSegment(faiss, index, metric, mapped=False)
