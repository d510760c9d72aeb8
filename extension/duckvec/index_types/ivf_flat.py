"""IVF_FLAT: inverted lists of the vectors themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from duckvec.index_types._ivf import NLIST, IvfType
from duckvec.index_types._ivf_segment import NPROBE
from duckvec.parameters import Parameter


class IvfFlat(IvfType):
    """Every row is stored whole: distances are exact, and so is nprobe = nlist."""

    name: ClassVar[str] = "IVF_FLAT"
    aliases: ClassVar[tuple[str, ...]] = ("IVFLAT", "IVFFLAT")
    parameters: ClassVar[tuple[Parameter, ...]] = (NLIST, NPROBE)

    def new_index(
        self, faiss: Any, dimension: int, metric: int, params: Mapping[str, int]
    ) -> Any:
        """Return an untrained IndexIVFFlat."""
        quantizer = faiss.IndexFlat(dimension, metric)
        return faiss.IndexIVFFlat(quantizer, dimension, params["nlist"], metric)

    def code_bytes(self, dimension: int, params: Mapping[str, int]) -> int:
        """Return the size of the vector itself."""
        return 4 * dimension
