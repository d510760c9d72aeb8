"""Inverted files: what IVF_FLAT, IVF_SQ8, IVF_SQ8H and IVF_PQ share.

k-means divides the rows into nlist lists; a search looks into the nprobe lists whose
centroids are nearest to the query.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types._exact import ExactSearch
from duckvec.index_types._faiss import (
    faiss_threads,
    load_faiss,
    map_index,
    note,
    selector,
    write_index,
)
from duckvec.index_types._ivf_estimate import ROWS_PER_ADD, Training, estimate_lists
from duckvec.index_types.base import (
    Cancelled,
    Estimate,
    Hits,
    IndexType,
    Progress,
    SegmentIndex,
    Sketch,
    geometric_steps,
    report,
    stop_if_cancelled,
)
from duckvec.metrics import Metric
from duckvec.parameters import Parameter

LARGEST_NLIST = 999_999
POINTS_PER_CENTROID = 39  # fewer, and faiss warns that the centroids are badly trained
TRAINING_SHARE = 0.5
QUERIES_PER_RANKING = 64

NLIST = Parameter(
    name="nlist",
    phase="build",
    minimum=1,
    maximum=LARGEST_NLIST,
    allowed=None,
    mandatory=True,
    default=None,
    description=(
        "Into how many lists the vectors are divided; more make a search of the same "
        "nprobe faster and less exact, and the build slower. About 4 * sqrt(rows)."
    ),
)
NPROBE = Parameter(
    name="nprobe",
    phase="search",
    minimum=1,
    maximum="nlist",
    allowed=None,
    mandatory=False,
    default="measured at the build",
    description=(
        "How many lists a search looks into; more find more of the nearest and take "
        "longer. nlist looks at every row; often 1 to 10 percent of nlist are enough."
    ),
    upper=lambda k, build_params: build_params.get("nlist", LARGEST_NLIST),
)


class IvfSegment(SegmentIndex):
    """A faiss IndexIVF; nprobe and the allowed rows go with each call."""

    def __init__(
        self, faiss: Any, index: Any, metric: Metric, *, exact: bool, mapped: bool
    ) -> None:
        self._faiss = faiss
        self._index = index
        self._metric = metric
        self._exact = exact
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
        """Look into nprobe lists, and into more where they hold too few rows."""
        nlist = int(self._index.nlist)
        nprobe = min(params.get("nprobe", default_nprobe(nlist)), nlist)
        total = self.rows if allowed is None else int(np.count_nonzero(allowed))
        chosen = selector(self._faiss, allowed)
        with faiss_threads(self._faiss, threads):
            if nprobe == nlist and self._exact:
                return self._search_all_lists(queries, k, total, chosen)
            wanted = min(k, total)
            raw, ids = self._probe(queries, wanted, nprobe, chosen, params)
            short = np.flatnonzero((ids < 0).any(axis=1))
            while len(short) and nprobe < nlist:
                nprobe = min(2 * nprobe, nlist)
                raw[short], ids[short] = self._probe(
                    queries[short], wanted, nprobe, chosen, params
                )
                short = short[(ids[short] < 0).any(axis=1)]
        distances = self._metric.distances(raw)
        distances[ids < 0] = np.inf
        return Hits(ids, distances)

    def reach(
        self,
        queries: NDArray[np.float32],
        positions: NDArray[np.int64],
        *,
        threads: int = 1,
    ) -> tuple[str, NDArray[np.int64]]:
        """Return which rank the list of each position has among a query's lists."""
        nlist = int(self._index.nlist)
        lists = self._lists_of_rows()
        least = np.empty(positions.shape, dtype=np.int64)
        for start in range(0, len(queries), QUERIES_PER_RANKING):
            some = slice(start, start + QUERIES_PER_RANKING)
            with faiss_threads(self._faiss, threads):
                _, nearest = self._index.quantizer.search(queries[some], nlist)
            rank = np.empty(nearest.shape, dtype=np.int64)
            np.put_along_axis(rank, nearest, np.arange(1, nlist + 1)[np.newaxis], 1)
            least[some] = np.take_along_axis(rank, lists[positions[some]], axis=1)
        return NPROBE.name, least

    def save(self, path: Path) -> None:
        """Write faiss's file of the inverted lists."""
        write_index(self._faiss, self._index, path)

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

    def _search_all_lists(
        self, queries: NDArray[np.float32], k: int, total: int, chosen: Any
    ) -> Hits:
        exact = ExactSearch(
            index=self._index,
            metric=self._metric,
            parameters=self._faiss.SearchParametersIVF(
                sel=chosen, nprobe=int(self._index.nlist)
            ),
            total=total,
            longest=self._longest,
            multiplies=False,
            can_reconstruct=False,
        )
        return exact.search(queries, k)

    def _lists_of_rows(self) -> NDArray[np.int64]:
        """Return the number of the list that holds each position."""
        lists = self._faiss.downcast_InvertedLists(self._index.invlists)
        numbers = np.zeros(self.rows, dtype=np.int64)
        for number in range(int(self._index.nlist)):
            size = int(lists.list_size(number))
            if size:
                ids = lists.get_ids(number)
                numbers[self._faiss.rev_swig_ptr(ids, size)] = number
                lists.release_ids(number, ids)
        return numbers

    def _longest(self) -> float:
        return 1.0 if self._metric.normalizes else self._largest_norm

    @cached_property
    def _largest_norm(self) -> float:
        """Bound the rows' lengths: from the lists, one after another."""
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


class IvfType(IndexType):
    """What the four types have in common; they differ in how a row is stored."""

    library: ClassVar[str] = "faiss"

    @abstractmethod
    def new_index(
        self, faiss: Any, dimension: int, metric: int, params: Mapping[str, int]
    ) -> Any:
        """Return an untrained faiss index."""

    @abstractmethod
    def code_bytes(self, dimension: int, params: Mapping[str, int]) -> int:
        """Return the bytes that a row takes in its list, besides its number."""

    def training(self, params: Mapping[str, int], sketch: Sketch) -> Training:
        """Return what it takes to learn how rows are stored: here nothing."""
        return Training()

    def estimate(self, params: Mapping[str, int], sketch: Sketch) -> Estimate:
        """Return the sizes of lists and centroids, and of the largest step."""
        code_bytes = self.code_bytes(sketch.dimension, params)
        training = self.training(params, sketch)
        return estimate_lists(params["nlist"], code_bytes, training, sketch)

    def open_flags(self, faiss: Any, params: Mapping[str, int]) -> int:
        """Return faiss's flags for opening, besides those that map the file."""
        del faiss, params
        return 0

    def segment(
        self, faiss: Any, index: Any, metric: Metric, *, mapped: bool
    ) -> IvfSegment:
        """Return the segment around a faiss index."""
        return IvfSegment(
            faiss, index, metric, exact=not self.compressed, mapped=mapped
        )

    def effective_params(
        self, params: Mapping[str, int], rows: int, dimension: int
    ) -> dict[str, int]:
        """Lower nlist to what the rows can train."""
        most = max(1, rows // POINTS_PER_CENTROID)
        return {**params, "nlist": min(params["nlist"], most)}

    def build(
        self,
        vectors: NDArray[np.float32],
        metric: Metric,
        params: Mapping[str, int],
        *,
        threads: int,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> IvfSegment:
        """Train the centroids on a sample that faiss draws, then add the rows."""
        faiss = load_faiss(self.name)
        rows, dimension = vectors.shape
        stop_if_cancelled(cancelled)
        index = self.new_index(faiss, dimension, getattr(faiss, metric.faiss), params)
        index.cp.min_points_per_centroid = 1  # else faiss warns on stderr
        with faiss_threads(faiss, threads):
            index.train(vectors if rows > 1 else np.repeat(vectors, 2, axis=0))
            for start in range(0, rows, ROWS_PER_ADD):
                stop_if_cancelled(cancelled)
                report(progress, TRAINING_SHARE + (1 - TRAINING_SHARE) * start / rows)
                index.add(vectors[start : start + ROWS_PER_ADD])
        report(progress, 1.0)
        return self.segment(faiss, index, metric, mapped=False)

    def open(
        self,
        path: Path,
        metric: Metric,
        rows: int,
        dimension: int,
        params: Mapping[str, int],
    ) -> IvfSegment:
        """Map the inverted lists."""
        faiss = load_faiss(self.name)
        flags = self.open_flags(faiss, params)
        index = map_index(faiss, path, rows, dimension, flags)
        return self.segment(faiss, index, metric, mapped=True)

    def search_grid(
        self, params: Mapping[str, int], rows: int, k: int
    ) -> list[dict[str, int]]:
        """Return nprobe from 1 to nlist, in steps of a half more."""
        return [{"nprobe": n} for n in geometric_steps(1, params["nlist"], 1.5)]

    def default_search_params(
        self, params: Mapping[str, int], rows: int
    ) -> dict[str, int]:
        """Return an nprobe of a sixteenth of the lists, at least 8."""
        return {"nprobe": default_nprobe(params["nlist"])}

    def clamp_search_params(
        self, search: Mapping[str, int], params: Mapping[str, int], k: int
    ) -> dict[str, int]:
        """Lower nprobe to the lists that this segment has."""
        clamped = dict(search)
        if "nprobe" in clamped:
            clamped["nprobe"] = min(clamped["nprobe"], params["nlist"])
        return clamped

    def exhaustive(self, search: Mapping[str, int], params: Mapping[str, int]) -> bool:
        """Say whether all lists are looked into."""
        nlist = params["nlist"]
        return search.get("nprobe", default_nprobe(nlist)) >= nlist


def default_nprobe(nlist: int) -> int:
    """Return a sixteenth of the lists, at least 8 where there are so many."""
    return min(nlist, max(8, -(-nlist // 16)))


def _nothing(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return np.empty((count, 0), dtype=np.float32), np.empty((count, 0), dtype=np.int64)
