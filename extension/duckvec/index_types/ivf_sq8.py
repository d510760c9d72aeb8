"""IVF_SQ8: inverted lists of vectors of one byte per component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from duckvec.index_types._ivf import NLIST, IvfType
from duckvec.index_types._ivf_estimate import Training, scalar_training
from duckvec.index_types._ivf_segment import NPROBE
from duckvec.index_types.base import Sketch
from duckvec.parameters import Parameter


class IvfSq8(IvfType):
    """A quarter of the memory of IVF_FLAT; distances are approximate."""

    name: ClassVar[str] = "IVF_SQ8"
    aliases: ClassVar[tuple[str, ...]] = ("IVFSQ8", "SQ8")
    parameters: ClassVar[tuple[Parameter, ...]] = (NLIST, NPROBE)
    compressed: ClassVar[bool] = True

    def new_index(
        self, faiss: Any, dimension: int, metric: int, params: Mapping[str, int]
    ) -> Any:
        """Return an untrained IndexIVFScalarQuantizer of 8 bits."""
        return faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlat(dimension, metric),
            dimension,
            params["nlist"],
            faiss.ScalarQuantizer.QT_8bit,
            metric,
        )

    def code_bytes(self, dimension: int, params: Mapping[str, int]) -> int:
        """Return a byte for each component."""
        return dimension

    def training(self, params: Mapping[str, int], sketch: Sketch) -> Training:
        """Return what it takes to learn the range of each component."""
        return scalar_training(sketch)
