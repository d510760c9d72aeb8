"""Inverted files: what IVF_FLAT, IVF_SQ8, IVF_SQ8H and IVF_PQ share.

k-means divides the rows into nlist lists; a search looks into the nprobe lists whose
centroids are nearest to the query.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types._exact import ExactSearch
from duckvec.index_types._faiss import (
    HEADER_BYTES,
    faiss_threads,
    load_faiss,
    map_index,
    note,
    selector,
    write_index,
)
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
ROWS_PER_ADD = 65_536
TRAINING_SHARE = 0.5
QUERIES_PER_RANKING = 64
# faiss trains centroids on so many rows each at most (Clustering.h), in so many rounds
# (IndexIVF.cpp), and compares blocks of rows and centroids (utils/distances.cpp).
MOST_POINTS_PER_CENTROID = 256
TRAINING_ROUNDS = 10
ROWS_PER_PRODUCT, CENTROIDS_PER_PRODUCT = 4096, 1024
# Its lists double their room when they are full: so much is touched on the average,
# the holes that their growth leaves included (measured: 1.1 to 1.4).
LIST_SLACK = 1.25
LIST_BYTES = 64  # what an empty list takes
# Seconds for one component of one comparison in a product of matrices, and to put one
# byte of a row into its list, on one thread (measured).
PRODUCT_SECONDS = 2.5e-11
APPEND_SECONDS = 1e-9
MOST_SCALAR_ROWS = 100_000
SCALAR_SECONDS = 1e-8  # to learn from one component and to code it (measured)

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


@dataclass(frozen=True)
class Training:
    """What a type adds to an inverted file: learning its codes, and computing them.

    Attributes:
        file_bytes: what it has learnt, in the file.
        held_bytes: the same in memory, with what is computed from it.
        training_bytes: memory while it learns.
        adding_bytes: memory while codes are computed, `held_bytes` not included.
        seconds: of one thread, for both.
    """

    file_bytes: int = 0
    held_bytes: int = 0
    training_bytes: int = 0
    adding_bytes: int = 0
    seconds: float = 0.0


def residual_bytes(sketch: Sketch, most: int) -> int:
    """Return the memory of the residuals that faiss learns codes from.

    Those of so many rows at most; of these it makes a copy first where there are more.
    """
    rows = min(sketch.rows, most)
    return rows * (sketch.vector_bytes + 8) * (2 if rows < sketch.rows else 1)


def scalar_training(sketch: Sketch) -> Training:
    """Return what the range of each component takes, for codes of 8 bits.

    faiss learns it from the residuals of 100,000 rows at most
    (IndexScalarQuantizer.cpp), and codes the rows of an `add` before it appends them.
    """
    ranges = 8 * sketch.dimension
    return Training(
        file_bytes=ranges + HEADER_BYTES,
        held_bytes=ranges,
        training_bytes=residual_bytes(sketch, MOST_SCALAR_ROWS),
        adding_bytes=min(sketch.rows, ROWS_PER_ADD) * sketch.dimension,
        seconds=SCALAR_SECONDS * sketch.values,
    )


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
        """Return the sizes of lists and centroids, and of the largest step of a build.

        The file (index_write.cpp, write_ivf_header and write_InvertedLists) holds the
        centroids, a length for each list, and for each row its code and a number of 8
        bytes. A build trains the centroids, on a copy of some rows where there are more
        than it can use; then the codes; then it adds the rows (IndexIVF.cpp, train and
        add_with_ids). What one step took is given back before the next.
        """
        rows, nlist, wide = sketch.rows, params["nlist"], sketch.vector_bytes
        trained = min(rows, MOST_POINTS_PER_CENTROID * nlist)
        own = self.training(params, sketch)
        entries = rows * (self.code_bytes(sketch.dimension, params) + 8)
        centroids = nlist * wide
        file_bytes = 3 * HEADER_BYTES + entries + centroids + 8 * nlist + own.file_bytes
        held = int(LIST_SLACK * entries) + centroids + LIST_BYTES * nlist
        held += own.held_bytes
        product = min(rows, ROWS_PER_PRODUCT) * min(nlist, CENTROIDS_PER_PRODUCT) * 4
        kmeans = 2 * centroids + 12 * trained + product
        if trained < rows:
            kmeans += trained * wide
        adding = held + max(product, own.adding_bytes)
        compared = (TRAINING_ROUNDS * trained + rows) * nlist * sketch.dimension
        seconds = PRODUCT_SECONDS * compared + APPEND_SECONDS * entries + own.seconds
        return Estimate(
            file_bytes,
            held,
            max(kmeans, centroids + own.training_bytes, adding),
            seconds / sketch.threads,
        )

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
