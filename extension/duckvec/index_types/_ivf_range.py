"""Range searches of inverted files.

nprobe was chosen for ten neighbours, and a range may hold thousands, which lie in many
more lists: on 20,000 sentence embeddings in 512 lists, 108 lists hold 0.97 of the 5
nearest and 0.70 of the 2,000 nearest. So a search goes on to the next lists as long as
they give more than a small share of what was found: nprobe is where it begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types._faiss import positions_within
from duckvec.index_types._quantised import Errors
from duckvec.index_types._range import LARGEST_FLOAT, batches, keys_of
from duckvec.metrics import Metric

MORE_LISTS = 1.5
FEW_SHARE = 0.5
"""Lists that hold less than this share of the allowed rows that so many lists usually
hold say nothing about the next ones."""
WORTH_MORE = 0.02
"""The share of all found so far that the last lists have to give for more of them."""


@dataclass(frozen=True)
class ListRange:
    """A range search of one faiss IndexIVF for one set of allowed rows.

    Attributes:
        faiss: the module.
        index: the IndexIVF.
        metric: how distances are measured.
        chosen: faiss's selector, None for all rows.
        everything: the allowed positions.
        nprobe: how many lists are looked into at first.
        errors: of a compressed type's distances; None where they are those of the rows.
        held: int64 (nlist,), how many allowed rows each list holds; None for all.
    """

    faiss: Any
    index: Any
    metric: Metric
    chosen: Any
    everything: NDArray[np.int64]
    nprobe: int
    errors: Errors | None
    held: NDArray[np.int64] | None = None

    def search(
        self, queries: NDArray[np.float32], cut: NDArray[np.float64]
    ) -> list[NDArray[np.int64]]:
        """Return what the lists hold within the cut (nq,) of each query."""
        if self.errors is not None:
            cut = self.errors.widened(self.metric, queries, cut)
        keys = keys_of(self.metric, cut)
        found: list[NDArray[np.int64]] = []
        for some in batches(len(queries), found):
            found += self._search_batch(queries[some], keys[some])
        return found

    def members(
        self, queries: NDArray[np.float32], allowed: NDArray[np.bool_] | None
    ) -> list[NDArray[np.int64]]:
        """Return all rows of the nprobe lists nearest to each query."""
        _, nearest = self.index.quantizer.search(queries, self.nprobe)
        found = []
        for numbers in nearest:
            held = [list_ids(self.faiss, self.index, int(number)) for number in numbers]
            ids = np.concatenate(held)
            found.append(ids if allowed is None else ids[allowed[ids]])
        return found

    def _search_batch(
        self, queries: NDArray[np.float32], keys: NDArray[np.float64]
    ) -> list[NDArray[np.int64]]:
        nlist = int(self.index.nlist)
        parts: list[list[NDArray[np.int64]]] = [[] for _ in queries]
        total = np.zeros(len(queries), dtype=np.int64)
        boundless = keys >= LARGEST_FLOAT
        for row in np.flatnonzero(boundless):
            parts[row].append(self.everything)
        active = np.flatnonzero(~boundless & (keys > -np.inf))
        start, stop = 0, self.nprobe
        while len(active) and start < nlist:
            if start == 0:
                to_lists, lists = self.index.quantizer.search(queries, stop)
            elif lists.shape[1] < nlist:
                to_lists, lists = self._rank_all(queries, lists)
            given = self._look_into(
                queries[active],
                keys[active],
                to_lists[active, start:stop],
                lists[active, start:stop],
            )
            for row, ids in zip(active, given, strict=True):
                parts[row].append(ids)
            counts = np.array([len(ids) for ids in given])
            total[active] += counts
            near = lists[active, start:stop]
            worth = counts > WORTH_MORE * total[active]
            active = active[worth | self._hold_few(near)]
            start, stop = stop, min(nlist, int(stop * MORE_LISTS) + 1)
        empty = self.everything[:0]
        return [
            np.concatenate(own) if own else empty  # of a radius that nothing is within
            for own in parts
        ]

    def _hold_few(self, lists: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell for each query whether these lists hold few of the allowed rows."""
        if self.held is None:
            return np.zeros(len(lists), dtype=np.bool_)
        usual = lists.shape[1] * self.held.sum() / len(self.held)
        return np.asarray(self.held[lists].sum(axis=1) < FEW_SHARE * usual)

    def _rank_all(
        self, queries: NDArray[np.float32], first: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Rank all lists, those that come first before others that are as near."""
        to_lists, lists = self.index.quantizer.search(queries, int(self.index.nlist))
        seen = np.zeros(lists.shape, dtype=np.bool_)
        np.put_along_axis(seen, first, values=True, axis=1)
        later = ~np.take_along_axis(seen, lists, axis=1)
        order = np.argsort(later, axis=1, kind="stable")
        return (
            np.take_along_axis(to_lists, order, axis=1),
            np.take_along_axis(lists, order, axis=1),
        )

    def _look_into(
        self,
        queries: NDArray[np.float32],
        keys: NDArray[np.float64],
        to_lists: NDArray[np.float32],
        lists: NDArray[np.int64],
    ) -> list[NDArray[np.int64]]:
        parameters = self.faiss.SearchParametersIVF(
            sel=self.chosen, nprobe=lists.shape[1]
        )
        pointer = self.faiss.swig_ptr
        lists, to_lists = np.ascontiguousarray(lists), np.ascontiguousarray(to_lists)

        def range_search(some: NDArray[np.float32], radius: float) -> Any:
            # faiss's wrapper takes no parameters
            result = self.faiss.RangeSearchResult(len(some))
            self.index.range_search_preassigned_c(
                len(some),
                pointer(some),
                radius,
                pointer(lists),
                pointer(to_lists),
                result,
                False,
                parameters,
            )
            view = self.faiss.rev_swig_ptr
            lims = view(result.lims, len(some) + 1).astype(np.int64)
            size = int(lims[-1])
            raw = view(result.distances, size).copy()
            return lims, raw, view(result.labels, size).copy()

        return positions_within(
            range_search,
            queries,
            keys,
            self.everything,
            is_similarity=self.metric.is_similarity,
        )


def list_ids(faiss: Any, index: Any, number: int) -> NDArray[np.int64]:
    """Return a copy of the positions that a list holds."""
    lists = faiss.downcast_InvertedLists(index.invlists)
    size = int(lists.list_size(number))
    if not size:
        return np.empty(0, dtype=np.int64)
    ids = lists.get_ids(number)
    held: NDArray[np.int64] = faiss.rev_swig_ptr(ids, size).copy()
    lists.release_ids(number, ids)
    return held
