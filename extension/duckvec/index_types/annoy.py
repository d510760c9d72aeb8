"""ANNOY: a forest of random trees, by annoy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from duckvec.errors import ArtifactError, MissingLibraryError
from duckvec.index_types._range import (
    FIRST_WIDTH,
    cuts,
    sampled_longest,
    search_range_widening,
)
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

SEED = 1
ROWS_PER_REPORT = 8192
ADDING_SHARE = 0.3
DEFAULT_NODES_PER_TREE = 500
LARGEST_SEARCH_K = 2**31 - 1
# By annoy's metric (annoylib.h): what precedes the vector in a node; the part of it
# that leaves use for row numbers, too; and how full a leaf is on the average. It is
# ln 2 if all sizes from half a leaf to a full one are as likely on a logarithmic
# scale, and is less where splits are unequal (measured: 0.51 to 0.70).
NODES = {
    "euclidean": (16, 8, 0.64),
    "dot": (16, 12, 0.57),
    "angular": (12, 8, 0.6),
}
GROWTH = 1.3
# Seconds to add one component from Python, and to measure with it; and of one thread to
# send a row down one level of a tree, and for each component of it (measured).
ADD_SECONDS = 7e-8
LEVEL_SECONDS, COMPONENT_SECONDS = 4e-8, 1e-10

N_TREES = Parameter(
    name="n_trees",
    phase="build",
    minimum=1,
    maximum=1024,
    allowed=None,
    mandatory=True,
    default=None,
    description=(
        "How many trees are built; more give better recall, more memory and a slower "
        "build. Typically 8 to 100."
    ),
)
SEARCH_K = Parameter(
    name="search_k",
    phase="search",
    minimum=-1,
    maximum=None,
    allowed=None,
    mandatory=False,
    default=MEASURED,
    description=(
        "How many candidates a search gathers, at least k; more find more of the "
        "nearest and take longer. -1 is n_trees * k, which is often too few."
    ),
    lower=lambda k, build_params: k,
    exceptions=(-1,),
)

# annoy's distances as the squared distances or inner products of other libraries
RAW: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "euclidean": lambda distance: distance * distance,
    "dot": lambda product: product,
    "angular": lambda distance: 1 - distance * distance / 2,
}


class AnnoySegment(SegmentIndex):
    """An AnnoyIndex; it lets go of Python's lock while it searches."""

    def __init__(
        self, index: Any, metric: Metric, dimension: int, note: str, size: int
    ) -> None:
        self._index = index
        self._metric = metric
        self._size = size
        self._trees = int(index.get_n_trees())
        self.rows = int(index.get_n_items())
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
        """Search the trees, and deeper where they give too few."""
        search_k = params.get("search_k", DEFAULT_NODES_PER_TREE * self._trees)
        if search_k < 0:
            search_k = self._trees * k
        everything = self.rows * self._trees

        def nearest(
            some: NDArray[np.float32], width: int, effort: float
        ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            deep = min(max(int(search_k * effort), width), LARGEST_SEARCH_K)
            return self._nearest(some, width, deep, threads)

        most = max(1, -(-everything // max(search_k, 1)))
        return search_widening(nearest, queries, k, self.rows, allowed, most)

    def vectors(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of the forest's items."""
        items = [self._index.get_item_vector(int(item)) for item in positions]
        return np.array(items, dtype=np.float32).reshape(-1, self.dimension)

    def search_range(
        self,
        queries: NDArray[np.float32],
        radius: float,
        params: Mapping[str, int],
        *,
        threads: int = 1,
        allowed: NDArray[np.bool_] | None = None,
    ) -> InRange:
        """Search for ever more nearest rows; search_k grows as the cube root of them.

        Without that, trees that give 0.95 of the 5 nearest of 20,000 sentence
        embeddings give 0.93 of the 100 nearest.
        """
        search_k = params.get("search_k", DEFAULT_NODES_PER_TREE * self._trees)

        def nearest(
            some: NDArray[np.float32], width: int
        ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            deeper = search_k * (width / FIRST_WIDTH) ** (1 / 3)
            deep = max(round(deeper), self._trees * width)
            return self._nearest(some, width, min(deep, LARGEST_SEARCH_K), threads)

        cut = cuts(self._metric, queries, radius, self._longest)
        return search_range_widening(nearest, queries, cut, self.rows, allowed)

    def save(self, path: Path) -> None:
        """Write annoy's file, which annoy maps from then on."""
        self._index.save(str(path))
        self._size = 0

    def memory_bytes(self) -> int:
        """Return the size of a forest that was built and not yet saved."""
        return self._size

    def close(self) -> None:
        """Unmap the forest."""
        self._index.unload()

    def _longest(self) -> float:
        if self._metric.normalizes:
            return 1.0
        return self._largest_norm

    @cached_property
    def _largest_norm(self) -> float:
        return sampled_longest(self.vectors, self.rows)

    def _nearest(
        self, queries: NDArray[np.float32], width: int, search_k: int, threads: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        ids = np.full((len(queries), width), -1, dtype=np.int64)
        raw = np.zeros((len(queries), width), dtype=np.float32)

        def search_one(row: int) -> None:
            found, distances = self._index.get_nns_by_vector(
                queries[row].tolist(), width, search_k, include_distances=True
            )
            ids[row, : len(found)] = found
            raw[row, : len(found)] = distances

        if threads > 1 and len(queries) > 1:
            with ThreadPoolExecutor(min(threads, len(queries))) as pool:
                list(pool.map(search_one, range(len(queries))))
        else:
            for row in range(len(queries)):
                search_one(row)
        distances = self._metric.distances(RAW[self._metric.annoy](raw))
        distances[ids < 0] = np.inf
        return ids, distances


class Annoy(IndexType):
    """Small files that many processes share by memory map."""

    name: ClassVar[str] = "ANNOY"
    library: ClassVar[str] = "annoy"
    extra: ClassVar[str | None] = "annoy"
    maps_files: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (N_TREES, SEARCH_K)

    def estimate(self, params: Mapping[str, int], sketch: Sketch) -> Estimate:
        """Return the sizes of the rows and of the nodes of all trees.

        All nodes are as large as one that holds a vector (annoylib.h): those of the
        rows, the inner ones, and leaves, which hold as many row numbers as have room.
        A tree has one inner node less than leaves, and its root is stored twice. The
        array of nodes grows by 1.3, and what it grows by is filled with zeros. Once
        saved, the file is mapped.
        """
        header, shared, full = NODES[sketch.metric.annoy]
        rows, trees, node = sketch.rows, params["n_trees"], header + sketch.vector_bytes
        in_leaf = (shared + sketch.vector_bytes) // 4
        leaves = max(1.0, rows / (full * in_leaf)) if rows > in_leaf else 1.0
        nodes = rows + round(trees * 2 * leaves)
        grown = 0
        while grown < nodes:
            grown = max(int((grown + 1) * GROWTH), grown + 1)
        levels = max(1.0, math.log2(leaves))
        sorting = LEVEL_SECONDS + COMPONENT_SECONDS * sketch.dimension
        seconds = rows * trees * levels * sorting / sketch.threads
        return Estimate(
            nodes * node,
            0,
            grown * node + rows * 12 * sketch.threads,
            ADD_SECONDS * sketch.values + seconds,
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
    ) -> AnnoySegment:
        """Add the rows, then grow the trees, which cannot be interrupted."""
        rows, dimension = vectors.shape
        index = self._new_index(metric, dimension)
        index.set_seed(SEED)
        for row in range(rows):
            if row % ROWS_PER_REPORT == 0:
                stop_if_cancelled(cancelled)
                report(progress, ADDING_SHARE * row / rows)
            # annoy takes a list in half the time of an array.
            index.add_item(row, vectors[row].tolist())
        stop_if_cancelled(cancelled)
        index.build(params["n_trees"], n_jobs=threads)
        report(progress, 1.0)
        size = rows * (4 * dimension + 16) * 2
        return AnnoySegment(index, metric, dimension, self._note(), size)

    def open(
        self,
        path: Path,
        metric: Metric,
        rows: int,
        dimension: int,
        params: Mapping[str, int],
    ) -> AnnoySegment:
        """Map the forest."""
        index = self._new_index(metric, dimension)
        try:
            index.load(str(path), prefault=False)
        except OSError as error:
            raise ArtifactError(f"annoy cannot read {path.name}; rebuild it") from error
        if index.get_n_items() != rows:
            held = index.get_n_items()
            index.unload()
            raise ArtifactError(
                f"{path.name} holds {held} vectors, not {rows}; rebuild it"
            )
        return AnnoySegment(index, metric, dimension, self._note(), 0)

    def search_grid(
        self, params: Mapping[str, int], rows: int, k: int
    ) -> list[dict[str, int]]:
        """Return search_k from n_trees * k by doubling, until it gathers all rows."""
        first = params["n_trees"] * k
        last = max(first, rows * params["n_trees"])
        return [{"search_k": steps} for steps in geometric_steps(first, last, 2.0)]

    def default_search_params(
        self, params: Mapping[str, int], rows: int
    ) -> dict[str, int]:
        """Return a search_k that is enough for most data and a small k."""
        return {"search_k": DEFAULT_NODES_PER_TREE * params["n_trees"]}

    def clamp_search_params(
        self, search: Mapping[str, int], params: Mapping[str, int], k: int
    ) -> dict[str, int]:
        """Raise search_k to k, except -1."""
        search_k = search.get("search_k", -1)
        return {**search, "search_k": max(search_k, k)} if search_k >= 0 else {**search}

    def require_library(self) -> None:
        """Raise MissingLibraryError where the library cannot be imported."""
        self._new_index(METRICS["L2"], 1)

    def _new_index(self, metric: Metric, dimension: int) -> Any:
        try:
            from annoy import AnnoyIndex
        except ImportError as error:
            raise MissingLibraryError(self.name, self.extra, self.library) from error
        kind: Any = AnnoyIndex
        return kind(dimension, metric.annoy)

    def _note(self) -> str:
        return f"{self.library} {self.library_version()}"
