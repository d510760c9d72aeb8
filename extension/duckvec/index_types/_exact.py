"""Exact nearest neighbours that stay exact when DuckDB computes the distances again.

faiss and DuckDB both round, each in its own order. Where the distances of the k-th
neighbour and of later ones differ by less than that, any of them may be among DuckDB's
k nearest: all are returned. Bounds are the usual ones of sums of n products, n·u each
(Higham, Accuracy and Stability of Numerical Algorithms, chapter 3).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types._faiss import positions_within
from duckvec.index_types._range import (
    UNIT_ROUNDOFF,
    batches,
    cuts,
    keys_of,
    lengths,
)
from duckvec.index_types._rows import row_hashes
from duckvec.index_types.base import Hits
from duckvec.metrics import Metric

SEQUENTIAL_QUERIES = 16
"""So many queries at once are compared one by one, without a product's larger error."""
PADDED_SHARE = 1 / 5
"""A product of matrices takes a fifth of the time: where that share of the queries that
faiss multiplies from is there, it gets the rest as copies (0.44 ms a query one by one,
0.07 ms by the product; 20,000 x 384, two threads)."""
BEARABLE_ERROR = 0.01
"""Of a squared radius: where the product's error is larger, queries go one by one."""


@dataclass(frozen=True)
class ExactSearch:
    """An exhaustive search of one faiss index for one set of allowed rows.

    Attributes:
        index: an IndexFlat, or an IndexIVFFlat whose parameters probe every list.
        metric: how distances are measured.
        parameters: faiss's search parameters, with the selector; None without.
        total: how many rows can be found.
        longest: gives the length of the longest row; called for inner products only.
        multiplied_from: from how many queries on a product of matrices compares them;
            None: never.
        vectors: gives the rows (n, d) at some positions.
    """

    index: Any
    metric: Metric
    parameters: Any
    total: int
    longest: Callable[[], float]
    multiplied_from: int | None
    vectors: Callable[[NDArray[np.int64]], NDArray[np.float32]]

    def search(self, queries: NDArray[np.float32], k: int) -> Hits:
        """Return every position that may be among the k nearest of each query."""
        wanted = min(k, self.total)
        found = self._found_in_batch(queries, wanted)
        width = max((len(keys) for _, keys in found), default=0)
        positions = np.full((len(queries), width), -1, dtype=np.int64)
        keys = np.full((len(queries), width), np.inf)
        for row, (ids, values) in enumerate(found):
            positions[row, : len(ids)] = ids
            keys[row, : len(ids)] = values
        raw = -keys if self.metric.is_similarity else keys
        distances = self.metric.distances(raw)
        return Hits(positions, distances)

    def search_range(
        self,
        queries: NDArray[np.float32],
        radius: float,
        everything: NDArray[np.int64],
    ) -> list[NDArray[np.int64]]:
        """Return, for each query, every position that may be within the radius.

        Args:
            queries: (nq, d).
            radius: on the scale of DuckDB's function.
            everything: all that can be found.
        """
        keys = keys_of(self.metric, cuts(self.metric, queries, radius, self.longest))
        found: list[NDArray[np.int64]] = []
        for some in batches(len(queries), found):
            chosen, own = queries[some], keys[some]
            step = len(chosen)
            if step > self._sequential:
                error = self._product_error(chosen, own)
                if (error <= BEARABLE_ERROR * np.abs(own)).all():
                    own = own + error
                else:
                    step = self._sequential
            for start in range(0, len(chosen), step):
                part = slice(start, start + step)
                found += positions_within(
                    self._range_search,
                    chosen[part],
                    own[part],
                    everything,
                    is_similarity=self.metric.is_similarity,
                )
        return found

    @property
    def _sequential(self) -> int:
        """How many queries at once are surely compared one by one."""
        if self.multiplied_from is None:
            return sys.maxsize
        return max(1, min(SEQUENTIAL_QUERIES, self.multiplied_from - 1))

    def _found_in_batch(
        self, queries: NDArray[np.float32], wanted: int
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        width = min(self.total, wanted + wanted // 8 + 8)
        empty = (np.empty(0, dtype=np.int64), np.empty(0))
        found = [empty] * len(queries)
        if wanted == 0:
            return found
        unsure = self._search_rows(
            queries, np.arange(len(queries)), wanted, width, found
        )
        if len(queries) > self._sequential:
            step = self._sequential
            chunks = np.split(unsure, range(step, len(unsure), step))
            again = [
                self._search_rows(queries, chunk, wanted, width, found)
                for chunk in chunks
            ]
            unsure = np.concatenate(again)
        for row in unsure:
            found[row] = self._found_for_one(queries[row : row + 1], wanted, width)
        return found

    def _search_rows(
        self,
        queries: NDArray[np.float32],
        rows: NDArray[np.int64],
        wanted: int,
        width: int,
        found: list[tuple[NDArray[np.int64], NDArray[np.float64]]],
    ) -> NDArray[np.int64]:
        """Search these queries; return the ones that need a wider search."""
        if len(rows) == 0:
            return rows
        chosen = queries[rows]
        keys, ids = self._nearest(chosen, width)
        cuts = self._cuts(chosen, keys[:, wanted - 1])
        complete = width >= self.total
        pointless = np.full(len(chosen), self.metric.is_similarity)
        pointless &= ~chosen.any(axis=1)  # all rows are equally far from zeros
        unsure = []
        for line, row in enumerate(rows):
            inside = (keys[line] <= cuts[line]) & (ids[line] >= 0)
            if pointless[line]:
                inside[wanted:] = False
            if not complete and inside[-1] and np.isfinite(cuts[line]):
                unsure.append(row)
            else:
                found[row] = ids[line][inside], keys[line][inside]
        return np.asarray(unsure, dtype=np.int64)

    def _found_for_one(
        self, query: NDArray[np.float32], wanted: int, width: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        most = 4 * wanted + 256
        while width < min(most, self.total):
            width = min(4 * width, most, self.total)
            keys, ids = self._nearest(query, width)
            cut = self._cuts(query, keys[:, wanted - 1])[0]
            inside = (keys[0] <= cut) & (ids[0] >= 0)
            if width == self.total or not inside[-1]:
                return ids[0][inside], keys[0][inside]
        keys, _ = self._nearest(query, width)
        cut = self._cuts(query, keys[:, wanted - 1])[0]
        return self._within(query, cut, wanted, most)

    def _within(
        self, query: NDArray[np.float32], cut: float, wanted: int, most: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return all inside the cut, of equal vectors only as many as are wanted."""
        edge = np.nextafter(np.float32(cut), np.float32(np.inf))
        radius = float(-edge if self.metric.is_similarity else edge)
        _, raw, ids = self.index.range_search(query, radius, params=self.parameters)
        keys = np.asarray(-raw if self.metric.is_similarity else raw, dtype=np.float64)
        order = np.argsort(keys, kind="stable")
        ids, keys = ids[order], keys[order]
        if len(ids) > most:
            keep = _first_of_each(self._hashes(ids), wanted)
            ids, keys = ids[keep], keys[keep]
        return ids, keys

    def _hashes(self, ids: NDArray[np.int64]) -> NDArray[np.uint64]:
        blocks = [
            row_hashes(self.vectors(ids[start : start + 8192]))
            for start in range(0, len(ids), 8192)
        ]
        return np.concatenate(blocks)

    def _nearest(
        self, queries: NDArray[np.float32], width: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        count = len(queries)
        product = self.multiplied_from
        if product and max(self._sequential, PADDED_SHARE * product) < count < product:
            copies = np.broadcast_to(queries[:1], (product - count, queries.shape[1]))
            queries = np.concatenate([queries, copies])
        raw, ids = self.index.search(queries, width, params=self.parameters)
        raw, ids = raw[:count], ids[:count]
        keys = np.asarray(-raw if self.metric.is_similarity else raw, dtype=np.float64)
        keys[ids < 0] = np.inf
        return keys, ids

    def _range_search(self, queries: NDArray[np.float32], edge: float) -> Any:
        return self.index.range_search(queries, edge, params=self.parameters)

    def _product_error(
        self, queries: NDArray[np.float32], keys: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Bound what a product of matrices adds to the error of squared distances."""
        if self.metric.is_similarity:
            return np.zeros(len(queries))
        reach = 2.1 * lengths(queries) + 1.1 * np.sqrt(np.maximum(keys, 0))
        return np.asarray((queries.shape[1] + 8) * UNIT_ROUNDOFF * reach**2)

    def _cuts(
        self, queries: NDArray[np.float32], last: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the largest key that may belong to one of the k nearest."""
        wide = queries.astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        gamma = (queries.shape[1] + 8) * UNIT_ROUNDOFF
        if self.metric.is_similarity:
            return np.asarray(last + 8 * gamma * norms * self.longest())
        # A row that is near enough is at most this long: the triangle inequality.
        reach = 2.1 * norms + 1.1 * np.sqrt(np.maximum(last, 0))
        multiplied = len(queries) > self._sequential
        slack = gamma * reach**2 if multiplied else 0.0
        distance = np.sqrt(np.maximum(last, 0) + slack) + 2 * UNIT_ROUNDOFF * reach
        return np.asarray((distance * (1 + 4 * gamma)) ** 2 + slack)


def _first_of_each(groups: NDArray[Any], wanted: int) -> NDArray[np.int64]:
    """Return, in order, the places of the first few members of each group."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(ordered)])
    rank = np.arange(len(ordered)) - np.repeat(starts, sizes)
    return np.asarray(np.sort(order[rank < wanted]), dtype=np.int64)
