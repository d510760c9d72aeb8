"""A segment of inverted files, as all the IVF types search it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types._exact import ExactSearch
from duckvec.index_types._faiss import (
    faiss_threads,
    note,
    selector,
    write_index,
)
from duckvec.index_types._ivf_range import ListRange, list_ids
from duckvec.index_types._quantised import Errors, append_errors
from duckvec.index_types._range import allowed_positions, cuts
from duckvec.index_types.base import (
    Hits,
    InRange,
    SegmentIndex,
)
from duckvec.metrics import Metric
from duckvec.parameters import MEASURED, Parameter

LARGEST_NLIST = 999_999
QUERIES_PER_RANKING = 16  # whose comparisons are in memory at once
THIN_SHARE = 0.8
"""Lists that hold less than this part of their share of the allowed rows are apart from
them."""
PARTIAL_SHARE = 0.95  # what is gone besides does not matter

NPROBE = Parameter(
    name="nprobe",
    phase="search",
    minimum=1,
    maximum="nlist",
    allowed=None,
    mandatory=False,
    default=MEASURED,
    description=(
        "How many lists a search looks into; more find more of the nearest and take "
        "longer. nlist looks at every row; often 1 to 10 percent of nlist are enough."
    ),
    upper=lambda k, build_params: build_params.get("nlist", LARGEST_NLIST),
)


class IvfSegment(SegmentIndex):
    """A faiss IndexIVF; nprobe and the allowed rows go with each call."""

    def __init__(
        self,
        faiss: Any,
        index: Any,
        metric: Metric,
        *,
        exact: bool,
        mapped: bool,
        errors: Errors | None = None,
    ) -> None:
        self._faiss = faiss
        self._index = index
        self._noting = threading.Lock()
        self._metric = metric
        self._exact = exact
        self._mapped = mapped
        self._errors = errors
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
        """Look into nprobe lists, and into more where they hold too few rows.

        Where a part of the rows is allowed, nprobe is divided by the square root of
        that part: the nearest of them are in more lists, and a list costs less (recall
        then stays that of all rows, or above; measured on 20,000 sentence embeddings,
        50 to 0.5 % allowed). Where the lists near a query hold fewer than their share
        of them, the nearest allowed rows are at the edge of what is not: it goes on
        until twice as many lists change nothing.
        """
        nlist = int(self._index.nlist)
        total = self.rows if allowed is None else int(np.count_nonzero(allowed))
        nprobe = self._nprobe(params, total)
        chosen = selector(self._faiss, allowed)
        with faiss_threads(self._faiss, threads):
            if nprobe == nlist and self._exact:
                return self._exhaustive(total, chosen).search(queries, k)
            wanted = min(k, total)
            raw, ids = self._probe(queries, wanted, nprobe, chosen, params)
            apart = self._is_apart(queries, nprobe, allowed)
            again = np.flatnonzero((ids < 0).any(axis=1) | apart)
            while len(again) and nprobe < nlist:
                nprobe = min(2 * nprobe, nlist)
                before = ids[again]
                raw[again], ids[again] = self._probe(
                    queries[again], wanted, nprobe, chosen, params
                )
                lacking = (ids[again] < 0).any(axis=1)
                changed = (ids[again] != before).any(axis=1)
                again = again[lacking | (apart[again] & changed)]
        distances = self._metric.distances(raw)
        distances[ids < 0] = np.inf
        return Hits(ids, distances)

    def entries_visited(
        self,
        queries: NDArray[np.float32],
        params: Mapping[str, int],
        allowed: NDArray[np.bool_] | None = None,
    ) -> int | None:
        """Return how many allowed rows the lists of the first look hold."""
        total = self.rows if allowed is None else int(np.count_nonzero(allowed))
        nprobe = self._nprobe(params, total)
        _, nearest = self._index.quantizer.search(queries, nprobe)
        return int(self._held(allowed)[nearest].sum())

    def search_range(
        self,
        queries: NDArray[np.float32],
        radius: float,
        params: Mapping[str, int],
        *,
        threads: int = 1,
        allowed: NDArray[np.bool_] | None = None,
    ) -> InRange:
        """Return what nprobe lists hold within the radius, and then the next ones.

        It is complete where rows are stored whole and all lists are looked into.
        Compressed types add to the radius by how much their distances were off for
        sampled neighbours when they were built: nearly all that the lists hold within
        it is found, and more is returned than is within. Where that was not measured
        yet, all rows of the nprobe lists are returned.
        """
        everything = allowed_positions(self.rows, allowed)
        chosen = selector(self._faiss, allowed)
        nlist = int(self._index.nlist)
        nprobe = min(params.get("nprobe", default_nprobe(nlist)), nlist)
        lists = ListRange(
            self._faiss,
            self._index,
            self._metric,
            chosen,
            everything,
            nprobe,
            self._errors,
            self._held(allowed) if _is_partial(allowed) else None,
        )
        with faiss_threads(self._faiss, threads):
            if nprobe == nlist and self._exact:
                exact = self._exhaustive(len(everything), chosen)
                return InRange.of(exact.search_range(queries, radius, everything))
            cut = cuts(self._metric, queries, radius, self._longest)
            if self._exact or self._errors is not None:
                return InRange.of(lists.search(queries, cut))
            return InRange.of(lists.members(queries, allowed))

    def reach(
        self,
        queries: NDArray[np.float32],
        positions: NDArray[np.int64],
        *,
        threads: int = 1,
    ) -> tuple[str, NDArray[np.int64]]:
        """Return which rank the list of each position has among a query's lists.

        Rounding may exchange lists that are as far; ranking all lists by the library
        takes many times as long.
        """
        lists = self._lists_of_rows[positions]
        quantizer = self._index.quantizer
        centroids = quantizer.reconstruct_n(0, int(self._index.nlist))
        weights = np.zeros(len(centroids), dtype=np.float32)
        if not self._metric.is_similarity:
            weights = np.einsum("ij,ij->i", centroids, centroids) / 2
        least = np.empty(positions.shape, dtype=np.int64)
        for start in range(0, len(queries), QUERIES_PER_RANKING):
            some = slice(start, start + QUERIES_PER_RANKING)
            scores = weights - queries[some] @ centroids.T
            own = np.take_along_axis(scores, lists[some], axis=1)
            nearer = scores[:, np.newaxis, :] < own[:, :, np.newaxis]
            least[some] = 1 + np.count_nonzero(nearer, axis=2)
        return NPROBE.name, least

    def save(self, path: Path) -> None:
        """Write faiss's file of the lists; behind it, how far codes are off."""
        write_index(self._faiss, self._index, path)
        append_errors(path, self._errors)

    def memory_bytes(self) -> int:
        """Return the size of lists and centroids, or of what mapping cannot spare."""
        tables = getattr(self._index, "precomputed_table", None)
        computed = 0 if tables is None else int(tables.size()) * 4
        if self._mapped:
            return computed
        entries = self.rows * (int(self._index.code_size) + 8)
        return computed + entries + int(self._index.nlist) * self.dimension * 4

    def close(self) -> None:
        """Let go of lists and centroids."""
        self._index = None

    def _nprobe(self, params: Mapping[str, int], total: int) -> int:
        """Return how many lists to look into where so many rows are allowed."""
        nlist = int(self._index.nlist)
        nprobe = min(params.get("nprobe", default_nprobe(nlist)), nlist)
        part = max(total, 1) / self.rows
        return min(nlist, int(nprobe / part**0.5 + 0.5))

    def _is_apart(
        self,
        queries: NDArray[np.float32],
        nprobe: int,
        allowed: NDArray[np.bool_] | None,
    ) -> NDArray[np.bool_]:
        """Tell for each query whether the lists near it hold too few allowed rows.

        A list holds its share where as much of it is allowed as of all rows.
        """
        if not _is_partial(allowed):
            return np.zeros(len(queries), dtype=np.bool_)
        held = self._held(allowed)
        _, nearest = self._index.quantizer.search(queries, nprobe)
        usual = self._sizes[nearest].sum(axis=1) * (held.sum() / self.rows)
        return np.asarray(held[nearest].sum(axis=1) < THIN_SHARE * usual)

    def _held(self, allowed: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        """Return how many allowed rows each list holds."""
        if allowed is None:
            return self._sizes
        lists = self._lists_of_rows[allowed]
        return np.bincount(lists, minlength=int(self._index.nlist))

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        """Return how many rows each list holds."""
        return np.bincount(self._lists_of_rows, minlength=int(self._index.nlist))

    def _probe(
        self,
        queries: NDArray[np.float32],
        wanted: int,
        nprobe: int,
        chosen: Any,
        params: Mapping[str, int],
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return distances or products and positions (nq, wanted), -1 for none."""
        del params
        if wanted == 0:
            return _nothing(len(queries))
        parameters = self._faiss.SearchParametersIVF(sel=chosen, nprobe=nprobe)
        raw, ids = self._index.search(queries, wanted, params=parameters)
        return raw, ids

    def _exhaustive(self, total: int, chosen: Any) -> ExactSearch:
        return ExactSearch(
            index=self._index,
            metric=self._metric,
            parameters=self._faiss.SearchParametersIVF(
                sel=chosen, nprobe=int(self._index.nlist)
            ),
            total=total,
            longest=self._longest,
            multiplied_from=None,
            vectors=self._reconstruct,
        )

    @cached_property
    def _lists_of_rows(self) -> NDArray[np.int32]:
        """Return the number of the list that holds each position."""
        numbers = np.zeros(self.rows, dtype=np.int32)
        for number in range(int(self._index.nlist)):
            numbers[list_ids(self._faiss, self._index, number)] = number
        return numbers

    def _reconstruct(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return rows from their lists; which list holds which is noted once."""
        with self._noting:
            if self._index.direct_map.type == self._faiss.DirectMap.NoMap:
                self._index.make_direct_map()
        rows: NDArray[np.float32] = self._index.reconstruct_batch(positions)
        return rows

    def _longest(self) -> float:
        return 1.0 if self._metric.normalizes else self._largest_norm

    @cached_property
    def _largest_norm(self) -> float:
        """Bound the rows' lengths: from the lists, one after another."""
        if not self._exact:  # an error of rounding is far below that of the codes
            return 0.0
        lists = self._faiss.downcast_InvertedLists(self._index.invlists)
        largest = 0.0
        for number in range(int(self._index.nlist)):
            size = int(lists.list_size(number))
            if not size:
                continue
            codes = lists.get_codes(number)
            count = size * int(self._index.code_size)
            rows = self._faiss.rev_swig_ptr(codes, count).view(np.float32)
            rows = rows.reshape(size, -1)
            squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
            largest = max(largest, float(squares.max()))
            lists.release_codes(number, codes)
        return float(np.sqrt(largest))


def _is_partial(allowed: NDArray[np.bool_] | None) -> TypeGuard[NDArray[np.bool_]]:
    """Tell whether a good part of the rows is not allowed."""
    if allowed is None:
        return False
    return int(np.count_nonzero(allowed)) < PARTIAL_SHARE * len(allowed)


def default_nprobe(nlist: int) -> int:
    """Return a sixteenth of the lists, at least 8 where there are so many."""
    return min(nlist, max(8, -(-nlist // 16)))


def _nothing(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return np.empty((count, 0), dtype=np.float32), np.empty((count, 0), dtype=np.int64)
