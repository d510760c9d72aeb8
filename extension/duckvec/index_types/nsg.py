"""NSG: a navigating spreading-out graph, by faiss."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from duckvec.errors import ArtifactError
from duckvec.index_types._faiss import (
    HEADER_BYTES,
    faiss_threads,
    load_faiss,
    map_index,
    note,
    write_index,
)
from duckvec.index_types._nsg_build import (
    LARGEST_EXHAUSTIVE,
    LISTS_PROBED,
    ROWS_PER_BLOCK,
    build_graph,
)
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
from duckvec.metrics import Metric
from duckvec.parameters import MEASURED, Parameter

SMALLEST_SEARCH_LENGTH = 10
LARGEST_SEARCH_LENGTH = 300
LARGEST_WIDENED_LENGTH = 32_768
DRAWN_ROWS = 2048
LISTS_SLACK = 1.3  # what inverted lists take, of their entries
# Of each neighbour found, while they are put in order (measured); and how many rows
# faiss compares with a block of them at once (utils/distances.cpp).
FOUND_BYTES, ROWS_PER_PRODUCT = 40, 1024
# Seconds of one thread: for each component of one comparison in a product of matrices;
# and to weigh one candidate, and for each component of it, in a graph of so many rows;
# in larger ones more of them lie outside of caches (measured).
CACHED_ROWS = 20_000
PRODUCT_SECONDS, WEIGH_SECONDS, COMPONENT_SECONDS = 2.5e-11, 1.4e-8, 1.5e-10
SMALLEST_GRAPH = 128  # faiss fails to link fewer rows; they are stored without a graph


def _build_parameter(name: str, minimum: int, maximum: int, text: str) -> Parameter:
    return Parameter(name, "build", minimum, maximum, None, True, None, text)


PARAMETERS = (
    _build_parameter(
        "search_length",
        SMALLEST_SEARCH_LENGTH,
        LARGEST_SEARCH_LENGTH,
        "How many candidates the build keeps while it looks for neighbours; more give "
        "a better graph and a slower build. Typically 40 to 80, and smaller than "
        "candidate_pool_size.",
    ),
    _build_parameter(
        "out_degree",
        5,
        300,
        "To how many others a row is linked at most; more give better recall, more "
        "memory and slower searches. Typically 30 to 70.",
    ),
    _build_parameter(
        "candidate_pool_size",
        50,
        1000,
        "How many candidates the links of a row are chosen from; more give a better "
        "graph and a slower build. Typically 200 to 500.",
    ),
    _build_parameter(
        "knng",
        5,
        300,
        "How many nearest neighbours of each row the build starts from; more give a "
        "better graph, more memory and a slower build. out_degree + 20, and never "
        "below out_degree.",
    ),
    Parameter(
        name="search_length",
        phase="search",
        minimum=SMALLEST_SEARCH_LENGTH,
        maximum=LARGEST_SEARCH_LENGTH,
        allowed=None,
        mandatory=False,
        default=MEASURED,
        description=(
            "How many candidates a search keeps; more find more of the nearest and "
            "take longer. Typically 2 to 10 times k."
        ),
    ),
)


class NsgSegment(SegmentIndex):
    """A faiss IndexNSGFlat over the distinct rows, and which positions hold each.

    Equal rows would fill each other's links, and faiss's build of such a graph would
    not end. A segment of few distinct rows is an IndexFlat.
    """

    def __init__(
        self,
        faiss: Any,
        index: Any,
        metric: Metric,
        numbers: NDArray[np.int32] | None,
        rows: int,
        mapped: bool,
    ) -> None:
        self._faiss = faiss
        self._index = index
        self._metric = metric
        self._numbers = numbers
        self._copies = None if numbers is None else Copies.of(numbers)
        self._mapped = mapped
        self._is_graph = hasattr(index, "nsg")
        self._length = SharedSetting(self._set_length)
        self._distinct = int(index.ntotal)
        self.rows = rows
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
        """Search the graph, and with a greater length where it finds too few."""
        length = params.get("search_length", SMALLEST_SEARCH_LENGTH)

        def nearest(
            some: NDArray[np.float32], width: int, effort: float
        ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            return self._nearest(some, width, int(length * effort))

        most = min(self.rows, LARGEST_WIDENED_LENGTH)
        with faiss_threads(self._faiss, threads):
            return search_widening(
                nearest, queries, k, self.rows, allowed, max(1, -(-most // length))
            )

    def vectors(self, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return the vectors behind the graph."""
        distinct = positions if self._numbers is None else self._numbers[positions]
        stored = self._index
        if self._is_graph:
            stored = self._faiss.downcast_index(self._index.storage)
        found: NDArray[np.float32] = stored.reconstruct_batch(distinct.astype(np.int64))
        return found

    def search_range(
        self,
        queries: NDArray[np.float32],
        radius: float,
        params: Mapping[str, int],
        *,
        threads: int = 1,
        allowed: NDArray[np.bool_] | None = None,
    ) -> InRange:
        """Search for ever more nearest rows; search_length grows to as many."""
        length = params.get("search_length", SMALLEST_SEARCH_LENGTH)

        def nearest(
            some: NDArray[np.float32], width: int
        ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            return self._nearest(some, width, length)

        cut = cuts(self._metric, queries, radius, self._longest)
        with faiss_threads(self._faiss, threads):
            return search_range_widening(nearest, queries, cut, self.rows, allowed)

    def save(self, path: Path) -> None:
        """Write faiss's file; behind it, where rows repeat, the number of each row."""
        write_index(self._faiss, self._index, path)
        append_numbers(path, self._numbers)

    def memory_bytes(self) -> int:
        """Return the size of links and vectors, the latter only where not mapped."""
        links = self._distinct * int(self._index.nsg.R) * 4 if self._is_graph else 0
        copies = 0 if self._copies is None else self.rows * 12
        vectors = 0 if self._mapped else self._distinct * self.dimension * 4
        return links + copies + vectors

    def close(self) -> None:
        """Let go of graph and vectors."""
        self._index = None

    def _set_length(self, length: int) -> None:
        self._index.nsg.search_L = length

    def _longest(self) -> float:
        if self._metric.normalizes:
            return 1.0
        return self._largest_norm

    @cached_property
    def _largest_norm(self) -> float:
        return sampled_longest(self._index.reconstruct_batch, self._distinct)

    def _nearest(
        self, queries: NDArray[np.float32], width: int, length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        # faiss never ends looking for more candidates than there are rows
        narrow = min(width, self._distinct)
        if self._is_graph:
            length = min(max(length, narrow), self._distinct)
            with self._length.hold(length):
                raw, ids = self._index.search(queries, narrow)
        else:
            raw, ids = self._index.search(queries, narrow)
        _drop_repeated(ids)
        distances = self._metric.distances(raw)
        if self._copies is not None:
            return self._copies.expand(ids, distances, width)
        distances[ids < 0] = np.inf
        return ids, distances


def _drop_repeated(ids: NDArray[np.int64]) -> None:
    """Put -1 for a position that a query has already: faiss repeats some when short."""
    order = np.argsort(ids, axis=1, kind="stable")
    ordered = np.take_along_axis(ids, order, axis=1)
    repeated = np.zeros(ids.shape, dtype=np.bool_)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    if repeated.any():
        np.put_along_axis(ids, order, np.where(repeated, -1, ordered), axis=1)


class Nsg(IndexType):
    """A graph with fewer links than HNSW's, all in one layer, from one start."""

    name: ClassVar[str] = "NSG"
    aliases: ClassVar[tuple[str, ...]] = ("RNSG",)
    library: ClassVar[str] = "faiss"
    maps_files: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = PARAMETERS

    def effective_params(
        self, params: Mapping[str, int], rows: int, dimension: int
    ) -> dict[str, int]:
        """Lower what counts other rows to the rows there are."""
        most = max(1, rows - 1)
        return {name: min(value, most) for name, value in params.items()}

    def estimate(self, params: Mapping[str, int], sketch: Sketch) -> Estimate:
        """Return the sizes of the graph over the distinct rows.

        The file (index_write.cpp, write_NSG) holds their vectors, and for each the
        links that it uses, 4 bytes each, and an end mark; in memory every row has
        places for out_degree links. How many are used, and whether out_degree has to
        be doubled, is a matter of the data: a graph of rows that are drawn tells.

        A build (`build_graph`) keeps a second copy of the vectors to find neighbours
        in, knng numbers of 8 bytes for each row, and then faiss's own copy, links with
        their distances, and a mutex a row (NSG.cpp, link).
        """
        rows, wide = sketch.count_distinct(), sketch.vector_bytes
        numbers, copies = copies_bytes(sketch.rows, rows)
        vectors = rows * wide
        if rows < SMALLEST_GRAPH:
            flat = HEADER_BYTES + vectors
            return Estimate(flat + numbers, vectors + copies, 2 * vectors + copies, 0.0)
        places, links = self._links_of_drawn(params, sketch)
        places = min(places, rows - 1)
        is_exact = rows <= LARGEST_EXHAUSTIVE
        nearest = vectors if is_exact else int(LISTS_SLACK * (vectors + 8 * rows))
        neighbours = 8 * rows * params["knng"]
        block = min(rows, ROWS_PER_BLOCK)
        finding = block * (params["knng"] + 1) * FOUND_BYTES
        if is_exact:
            finding += 4 * block * min(rows, ROWS_PER_PRODUCT)
        linking = vectors + rows * (8 * places + 40 + 4)
        held = vectors + 4 * places * rows + copies
        building = nearest + neighbours + max(finding, linking)
        if numbers:
            building += vectors + copies  # the distinct rows are copied first
        compared = rows if is_exact else LISTS_PROBED * rows**0.5
        weighed = params["search_length"] * params["knng"] + links * links
        weighed *= max(1.0, rows / CACHED_ROWS) ** 0.5
        seconds = rows * (
            compared * sketch.dimension * PRODUCT_SECONDS
            + weighed * (WEIGH_SECONDS + COMPONENT_SECONDS * sketch.dimension)
        )
        return Estimate(
            2 * HEADER_BYTES + vectors + int(rows * 4 * (links + 1)) + numbers,
            held,
            max(building, held),
            seconds / sketch.threads,
        )

    def _links_of_drawn(
        self, params: Mapping[str, int], sketch: Sketch
    ) -> tuple[int, float]:
        """Return how many places for links rows have, and how many they use.

        Measured on a graph of some rows: that they lie farther from each other than in
        the whole changes their number of links little.
        """
        drawn = sketch.draw(DRAWN_ROWS)
        numbers = repeated_rows(drawn)
        if numbers is not None:
            drawn = drawn[Copies.of(numbers).first()]
        if len(drawn) < SMALLEST_GRAPH:
            return params["out_degree"], params["out_degree"]
        faiss = load_faiss(self.name)
        own = self.effective_params(params, *drawn.shape)
        kind = getattr(faiss, sketch.metric.faiss)
        with faiss_threads(faiss, sketch.threads):
            index = build_graph(faiss, drawn, kind, own, None, None)
        written = len(faiss.serialize_index(index)) - 2 * HEADER_BYTES - drawn.nbytes
        return int(index.nsg.R), max(1.0, written / (4 * len(drawn)) - 1)

    def build(
        self,
        vectors: NDArray[np.float32],
        metric: Metric,
        params: Mapping[str, int],
        *,
        threads: int,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> NsgSegment:
        """Link the distinct rows."""
        faiss = load_faiss(self.name)
        stop_if_cancelled(cancelled)
        rows, dimension = vectors.shape
        numbers = repeated_rows(vectors)
        distinct = vectors if numbers is None else vectors[Copies.of(numbers).first()]
        kind = getattr(faiss, metric.faiss)
        with faiss_threads(faiss, threads):
            if len(distinct) < SMALLEST_GRAPH:
                index = faiss.IndexFlat(dimension, kind)
                index.add(distinct)
            else:
                index = build_graph(faiss, distinct, kind, params, progress, cancelled)
        report(progress, 1.0)
        return NsgSegment(faiss, index, metric, numbers, rows, mapped=False)

    def open(
        self,
        path: Path,
        metric: Metric,
        rows: int,
        dimension: int,
        params: Mapping[str, int],
    ) -> NsgSegment:
        """Map the vectors and read the links."""
        faiss = load_faiss(self.name)
        index = map_index(faiss, path, rows, dimension)
        numbers, _ = read_numbers(path, rows)
        held = rows if numbers is None else int(numbers.max()) + 1
        if index.ntotal != held:
            raise ArtifactError(f"{path.name} is cut or altered; rebuild it")
        return NsgSegment(faiss, index, metric, numbers, rows, mapped=True)

    def opened_bytes(
        self,
        file_bytes: int,
        metric: Metric,
        rows: int,
        dimension: int,
        params: Mapping[str, int],
    ) -> int:
        """Return the size of the places for links: the vectors are mapped."""
        return 4 * rows * params["out_degree"]

    def search_grid(
        self, params: Mapping[str, int], rows: int, k: int
    ) -> list[dict[str, int]]:
        """Return search_length from 10 to 300, in steps of a half more."""
        steps = geometric_steps(SMALLEST_SEARCH_LENGTH, LARGEST_SEARCH_LENGTH, 1.5)
        return [{"search_length": length} for length in steps]

    def default_search_params(
        self, params: Mapping[str, int], rows: int
    ) -> dict[str, int]:
        """Return twice the build's search_length, within the bounds."""
        length = max(2 * params["search_length"], SMALLEST_SEARCH_LENGTH)
        return {"search_length": min(length, LARGEST_SEARCH_LENGTH)}
