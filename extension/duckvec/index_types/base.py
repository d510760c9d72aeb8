"""The contract of an index type.

A new index type is one file with one subclass of `IndexType` and one of
`SegmentIndex`, and a line in `duckvec.index_types`; another package gives its type
through the entry-point group `duckvec.index_types`.

What a type sets: its name in capitals, its aliases, the library that it stands on and
the extra that installs it (None: always there), and its parameters, each declared once
by a `Parameter`, from which checks, help and docs are made. It imports its library
inside the functions that need it. It knows nothing of DuckDB.

What it is given: vectors and queries as C-contiguous float32 (n, d), never to be
written to. With COSINE they arrive normalised (zero rows stay zeros), and the type
takes their inner product. `params` are the effective ones: what `effective_params`
made of the user's, for this many rows.

What it returns: a `SegmentIndex` for the rows in their order: positions count from 0.
A segment never changes, and several threads search it at once, each with settings of
its own.

What it stores: one file in the library's own format, whole and alone at the path that
`save` is given. Nothing else may be needed to open it but the metric, the number of
rows, the dimension and the effective parameters. A library that can map the file into
memory does. When the format or the meaning of an effective parameter changes, the type
must still open what it wrote before, or raise ArtifactError.

What it promises of a search: `min(k, rows)` different positions for every query, the
nearest it found; fewer, and -1 for the rest, only where it cannot find more. It may
return more than k where the order of the last ones is a matter of rounding.

What it promises of a range search: whatever DuckDB finds within the radius, among the
rows that its settings let it look at, and all of it where they are exhaustive. Too
many positions do no harm.

What it should know: how large its files and its builds get (`estimate`). A type that
leaves this out gets a rough guess.
"""

from __future__ import annotations

import importlib.metadata
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from duckvec.errors import BuildCancelledError
from duckvec.index_types._range import InRange as InRange
from duckvec.index_types._range import lengths, search_range_widening
from duckvec.metrics import Metric
from duckvec.parameters import Parameter

Progress = Callable[[float], None]
Cancelled = Callable[[], bool]

UNKNOWN_ROUNDING = 1e-3
"""Of the radius and the query's length: far more than a library's distances are off."""


@dataclass(frozen=True)
class Hits:
    """What a search found in one segment.

    Attributes:
        positions: (nq, width) int64, -1 where fewer were found.
        distances: (nq, width) float32 on the scale of DuckDB's function, but as the
            library computes them: ascending, +inf where the position is -1.
    """

    positions: NDArray[np.int64]
    distances: NDArray[np.float32]


@dataclass(frozen=True)
class Sketch:
    """What can be known of a segment's rows before it is built.

    Attributes:
        rows: how many there are, at least one.
        dimension: their length.
        metric: how they will be compared.
        threads: how many threads the library will use.
        count_distinct: counts the different rows; it reads all of them.
        draw: returns so many rows at random (s, d), or all where there are fewer, as
            a build is given them.
    """

    rows: int
    dimension: int
    metric: Metric
    threads: int
    count_distinct: Callable[[], int]
    draw: Callable[[int], NDArray[np.float32]]

    @property
    def vector_bytes(self) -> int:
        """Bytes of one vector."""
        return 4 * self.dimension

    @property
    def values(self) -> int:
        """How many components all rows have together."""
        return self.rows * self.dimension


@dataclass(frozen=True)
class Estimate:
    """How large a segment and its build will be.

    Attributes:
        file_bytes: size of the file that `save` writes.
        held_bytes: memory of the built index, without what it maps once it is saved.
        build_bytes: memory at the highest point of the build, the index included, the
            vectors that it is given not.
        seconds: how long the build takes on the threads of the sketch; rough.
    """

    file_bytes: int
    held_bytes: int
    build_bytes: int
    seconds: float


class SegmentIndex(ABC):
    """One segment, built or opened; it does not change.

    Attributes:
        rows: how many vectors it holds.
        dimension: their length.
        library_note: what it was built or opened with: 'faiss 1.15.1'.
    """

    rows: int
    dimension: int
    library_note: str

    @abstractmethod
    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        params: Mapping[str, int],
        *,
        threads: int = 1,
        allowed: NDArray[np.bool_] | None = None,
    ) -> Hits:
        """Return the nearest positions of each query, safe to call from any thread.

        Args:
            queries: (nq, d).
            k: how many positions per query; may exceed the rows.
            params: search parameters; those not given take the type's default.
            threads: how many threads the library may use.
            allowed: (rows,), True for the positions that may be returned.
        """

    def search_range(
        self,
        queries: NDArray[np.float32],
        radius: float,
        params: Mapping[str, int],
        *,
        threads: int = 1,
        allowed: NDArray[np.bool_] | None = None,
    ) -> InRange:
        """Return every position found that may be within the radius of each query.

        This default searches for ever more nearest rows. A type overrides it where its
        library can do better, where its settings have to grow with k, or where its
        distances are approximate by more than rounding.

        Args:
            queries: (nq, d).
            radius: the largest distance that DuckDB may compute, on the scale of its
                function; any number but NaN.
            params: search parameters; those not given take the type's default.
            threads: how many threads the library may use.
            allowed: (rows,), True for the positions that may be returned.
        """

        def nearest(
            some: NDArray[np.float32], width: int
        ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            hits = self.search(some, width, params, threads=threads)
            return hits.positions, hits.distances

        scale = lengths(queries) + (abs(radius) if math.isfinite(radius) else 0.0)
        cut = radius + UNKNOWN_ROUNDING * scale
        return search_range_widening(nearest, queries, cut, self.rows, allowed)

    def entries_visited(
        self,
        queries: NDArray[np.float32],
        params: Mapping[str, int],
        allowed: NDArray[np.bool_] | None = None,
    ) -> int | None:
        """Return how many vectors a search of these queries compares, at least.

        None where the library does not tell.

        Args:
            queries: (nq, d).
            params: search parameters, as those of `search`.
            allowed: (rows,), True for the positions that may be returned.
        """
        return None

    def reach(
        self,
        queries: NDArray[np.float32],
        positions: NDArray[np.int64],
        *,
        threads: int = 1,
    ) -> tuple[str, NDArray[np.int64]] | None:
        """Return from which setting on a search looks at certain positions.

        Args:
            queries: (nq, d).
            positions: (nq, n), from 0.
            threads: how many threads the library may use.

        Returns:
            A search parameter, and (nq, n) its smallest value with which a search for
            that query looks at that position; None where only a search can tell.
        """
        return None

    def vectors(self, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return (n, d): the vectors at these positions, as they were given.

        None where they are not kept as they were, and where a search of few allowed
        positions is quick anyway: with this, others need not be found in a graph.
        """
        return None

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the whole segment as one file; it can be searched afterwards."""

    @abstractmethod
    def memory_bytes(self) -> int:
        """Return the bytes held in memory, without what is only mapped."""

    @abstractmethod
    def close(self) -> None:
        """Give back memory and mappings; no search may run or follow."""


class IndexType(ABC):
    """One algorithm: how to build, open and search segments.

    Attributes:
        name: its name, in capitals.
        aliases: other names for it.
        library: the package that it stands on.
        extra: the extra that installs the package; None where it is always there.
        parameters: what users may set.
        compressed: whether its distances are approximate: hits are then fetched in
            excess and rescored from the table.
        maps_files: whether `open` maps most of the file; a segment that was built is
            then closed once it is saved, and opened from its file.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    library: ClassVar[str]
    extra: ClassVar[str | None] = None
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    compressed: ClassVar[bool] = False
    maps_files: ClassVar[bool] = False

    def library_version(self) -> str:
        """Return the version of the installed library, '' without one."""
        for package in (self.library, f"{self.library}-cpu", f"{self.library}-gpu"):
            try:
                return importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return ""

    def require_library(self) -> None:
        """Raise MissingLibraryError where the library cannot be imported."""
        return

    def effective_params(
        self, params: Mapping[str, int], rows: int, dimension: int
    ) -> dict[str, int]:
        """Return the parameters that this many rows can be built with."""
        del rows, dimension
        return dict(params)

    def estimate(self, params: Mapping[str, int], sketch: Sketch) -> Estimate:
        """Return how large a segment with these effective params will be.

        A type that says nothing is taken to keep its vectors whole with 32 links of 4
        bytes each, and to need as much again while it builds; its time is that of a
        graph with 200 candidates a row.
        """
        del params
        held = sketch.rows * (sketch.vector_bytes + 128)
        seconds = sketch.rows * 200 * (5e-8 + 5e-10 * sketch.dimension)
        return Estimate(held, held, 2 * held, seconds / sketch.threads)

    @abstractmethod
    def build(
        self,
        vectors: NDArray[np.float32],
        metric: Metric,
        params: Mapping[str, int],
        *,
        threads: int,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> SegmentIndex:
        """Build a segment of at least one row.

        Args:
            vectors: (rows, d).
            metric: how to compare them.
            params: the effective build parameters.
            threads: how many threads the library may use.
            progress: called with a growing share of the work, 0 to 1.
            cancelled: asked now and then; True ends the build with
                BuildCancelledError.
        """

    @abstractmethod
    def open(
        self,
        path: Path,
        metric: Metric,
        rows: int,
        dimension: int,
        params: Mapping[str, int],
    ) -> SegmentIndex:
        """Open what `save` wrote, by memory map where the library can."""

    def opened_bytes(
        self,
        file_bytes: int,
        metric: Metric,
        rows: int,
        dimension: int,
        params: Mapping[str, int],
    ) -> int:
        """Return about how much memory `open` takes for files of that size.

        By default all of it, or nothing where the library maps them.
        """
        del metric, rows, dimension, params
        return 0 if self.maps_files else file_bytes

    @abstractmethod
    def search_grid(
        self, params: Mapping[str, int], rows: int, k: int
    ) -> list[dict[str, int]]:
        """Return search settings worth trying, from the cheapest to the most thorough.

        The params are the effective ones of a segment of this many rows.
        """

    @abstractmethod
    def default_search_params(
        self, params: Mapping[str, int], rows: int
    ) -> dict[str, int]:
        """Return settings for a segment for which none were measured."""

    def clamp_search_params(
        self, search: Mapping[str, int], params: Mapping[str, int], k: int
    ) -> dict[str, int]:
        """Return the settings as a segment with these effective params can use them."""
        del params, k
        return dict(search)

    def exhaustive(self, search: Mapping[str, int], params: Mapping[str, int]) -> bool:
        """Say whether these settings make a search look at every row.

        A compressed type that does is still approximate: the caller scans instead.
        """
        del search, params
        return False


def stop_if_cancelled(cancelled: Cancelled | None) -> None:
    """Raise BuildCancelledError where the caller wants the build to end."""
    if cancelled is not None and cancelled():
        raise BuildCancelledError("the build was cancelled")


def report(progress: Progress | None, share: float) -> None:
    """Tell the caller which share of the work is done, 0 to 1."""
    if progress is not None:
        progress(min(max(share, 0.0), 1.0))


def geometric_steps(first: int, last: int, factor: float) -> list[int]:
    """Return integers from first to last, both included, each factor times the last."""
    steps = [min(first, last)]
    while steps[-1] < last:
        steps.append(min(last, max(steps[-1] + 1, round(steps[-1] * factor))))
    return steps
