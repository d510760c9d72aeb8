"""Inverted files: what IVF_FLAT, IVF_SQ8, IVF_SQ8H and IVF_PQ share.

k-means divides the rows into nlist lists; a search looks into the nprobe lists whose
centroids are nearest to the query.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types._faiss import (
    faiss_threads,
    load_faiss,
    map_index,
)
from duckvec.index_types._ivf_estimate import ROWS_PER_ADD, Training, estimate_lists
from duckvec.index_types._ivf_segment import LARGEST_NLIST, IvfSegment, default_nprobe
from duckvec.index_types._quantised import Errors, read_errors
from duckvec.index_types.base import (
    Cancelled,
    Estimate,
    IndexType,
    Progress,
    Sketch,
    geometric_steps,
    report,
    stop_if_cancelled,
)
from duckvec.metrics import Metric
from duckvec.parameters import Parameter

POINTS_PER_CENTROID = 39  # fewer, and faiss warns that the centroids are badly trained
TRAINING_SHARE = 0.5

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


class IvfType(IndexType):
    """What the four types have in common; they differ in how a row is stored.

    Attributes:
        covered: of a compressed type, for which share of neighbours just within the
            radius a range search allows for the error of their codes.
    """

    library: ClassVar[str] = "faiss"
    maps_files: ClassVar[bool] = True
    covered: ClassVar[float] = 1.0

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
        self,
        faiss: Any,
        index: Any,
        metric: Metric,
        *,
        mapped: bool,
        errors: Errors | None,
    ) -> IvfSegment:
        """Return the segment around a faiss index."""
        return IvfSegment(
            faiss,
            index,
            metric,
            exact=not self.compressed,
            mapped=mapped,
            errors=errors,
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
            errors = None
            if self.compressed:
                errors = Errors.measure(
                    vectors,
                    metric,
                    lambda some: index.sa_decode(index.sa_encode(some)),
                    self.covered,
                )
        report(progress, 1.0)
        return self.segment(faiss, index, metric, mapped=False, errors=errors)

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
        errors = read_errors(path) if self.compressed else None
        return self.segment(faiss, index, metric, mapped=True, errors=errors)

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
