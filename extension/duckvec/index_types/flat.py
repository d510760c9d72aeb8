"""FLAT: a packed copy of the vectors, searched exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types._faiss import HEADER_BYTES, load_faiss, map_index
from duckvec.index_types._flat_segment import FlatSegment, pack
from duckvec.index_types.base import (
    Cancelled,
    Estimate,
    IndexType,
    Progress,
    Sketch,
    report,
    stop_if_cancelled,
)
from duckvec.metrics import Metric

COPY_SECONDS = 5e-10  # to copy one byte into pages that are touched first (measured)


class Flat(IndexType):
    """No approximation: every search looks at every row."""

    name: ClassVar[str] = "FLAT"
    library: ClassVar[str] = "faiss"
    maps_files: ClassVar[bool] = True

    def estimate(self, params: Mapping[str, int], sketch: Sketch) -> Estimate:
        """Return the size of the packed copy, in the file and in memory.

        faiss writes a header and the vectors (index_write.cpp, write_index of an
        IndexFlat); `add` makes room for exactly the rows that it is given.
        """
        held = sketch.rows * sketch.vector_bytes
        return Estimate(HEADER_BYTES + held, held, held, held * COPY_SECONDS)

    def build(
        self,
        vectors: NDArray[np.float32],
        metric: Metric,
        params: Mapping[str, int],
        *,
        threads: int,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> FlatSegment:
        """Copy the vectors."""
        faiss = load_faiss(self.name)
        stop_if_cancelled(cancelled)
        packed = pack(faiss, vectors, metric)
        report(progress, 1.0)
        return packed

    def open(
        self,
        path: Path,
        metric: Metric,
        rows: int,
        dimension: int,
        params: Mapping[str, int],
    ) -> FlatSegment:
        """Map the packed copy."""
        faiss = load_faiss(self.name)
        index = map_index(faiss, path, rows, dimension)
        return FlatSegment(faiss, index, metric, mapped=True)

    def search_grid(
        self, params: Mapping[str, int], rows: int, k: int
    ) -> list[dict[str, int]]:
        """Return the one way to search."""
        return [{}]

    def default_search_params(
        self, params: Mapping[str, int], rows: int
    ) -> dict[str, int]:
        """Return no settings: there are none."""
        return {}

    def exhaustive(self, search: Mapping[str, int], params: Mapping[str, int]) -> bool:
        """Say that every search looks at every row."""
        return True
