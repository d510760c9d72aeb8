"""IVF_SQ8H: IVF_SQ8 whose centroids are compared on the GPU for many queries."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types._ivf import NLIST, IvfType
from duckvec.index_types._ivf_estimate import Training, scalar_training
from duckvec.index_types._ivf_segment import NPROBE, IvfSegment
from duckvec.index_types._quantised import Errors
from duckvec.index_types.base import Sketch
from duckvec.metrics import Metric
from duckvec.parameters import Parameter

DEFAULT_THRESHOLD = 1000
LARGEST_GPU_NPROBE = 2048  # faiss's GPU kernels select no more than that
GPU_SEARCH_THRESHOLD = Parameter(
    name="gpu_search_threshold",
    phase="search",
    minimum=0,
    maximum=None,
    allowed=None,
    mandatory=False,
    default=DEFAULT_THRESHOLD,
    description=(
        "From how many queries at once the centroids are compared on the GPU, where "
        "the installed faiss has one; smaller batches, and all others, use the CPU."
    ),
)


class IvfSq8hSegment(IvfSegment):
    """An IvfSegment with a copy of its centroids on the GPU, made when first needed."""

    def __init__(
        self,
        faiss: Any,
        index: Any,
        metric: Metric,
        *,
        mapped: bool,
        errors: Errors | None,
    ) -> None:
        super().__init__(
            faiss, index, metric, exact=False, mapped=mapped, errors=errors
        )
        self._has_gpu = has_gpu(faiss)
        self._gpu_quantizer: Any = None
        self._gpu_resources: Any = None
        self._gpu_lock = threading.Lock()  # faiss's GPU indexes take one call at a time
        self.library_note += " (GPU)" if self._has_gpu else " (CPU)"

    def close(self) -> None:
        """Let go of the GPU's copy too."""
        self._gpu_quantizer = self._gpu_resources = None
        super().close()

    def _probe(
        self,
        queries: NDArray[np.float32],
        wanted: int,
        nprobe: int,
        chosen: Any,
        params: Mapping[str, int],
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        threshold = params.get("gpu_search_threshold", DEFAULT_THRESHOLD)
        on_cpu = (
            not self._has_gpu
            or len(queries) < threshold
            or nprobe > LARGEST_GPU_NPROBE
            or wanted == 0
        )
        if on_cpu:
            return super()._probe(queries, wanted, nprobe, chosen, params)
        to_lists, lists = self._compare_centroids(queries, nprobe)
        parameters = self._faiss.SearchParametersIVF(sel=chosen, nprobe=nprobe)
        pointer = self._faiss.swig_ptr
        raw = np.empty((len(queries), wanted), dtype=np.float32)
        ids = np.empty((len(queries), wanted), dtype=np.int64)
        self._index.search_preassigned_c(  # the Python wrapper takes no parameters
            len(queries),
            pointer(queries),
            wanted,
            pointer(lists),
            pointer(to_lists),
            pointer(raw),
            pointer(ids),
            False,
            parameters,
        )
        return raw, ids

    def _compare_centroids(
        self, queries: NDArray[np.float32], nprobe: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        with self._gpu_lock:
            if self._gpu_quantizer is None:
                self._gpu_resources = self._faiss.StandardGpuResources()
                self._gpu_quantizer = self._faiss.index_cpu_to_gpu(
                    self._gpu_resources, 0, self._index.quantizer
                )
            distances, lists = self._gpu_quantizer.search(queries, nprobe)
        return (
            np.ascontiguousarray(distances, dtype=np.float32),
            np.ascontiguousarray(lists, dtype=np.int64),
        )


class IvfSq8h(IvfType):
    """IVF_SQ8, with the coarse comparison on the GPU where there is one."""

    name: ClassVar[str] = "IVF_SQ8H"
    aliases: ClassVar[tuple[str, ...]] = ("IVFSQ8H", "SQ8H")
    parameters: ClassVar[tuple[Parameter, ...]] = (NLIST, NPROBE, GPU_SEARCH_THRESHOLD)
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

    def segment(
        self,
        faiss: Any,
        index: Any,
        metric: Metric,
        *,
        mapped: bool,
        errors: Errors | None,
    ) -> IvfSq8hSegment:
        """Return the segment around a faiss index."""
        return IvfSq8hSegment(faiss, index, metric, mapped=mapped, errors=errors)


def has_gpu(faiss: Any) -> bool:
    """Say whether this faiss was built for GPUs and sees one."""
    count = getattr(faiss, "get_num_gpus", lambda: 0)()
    return count > 0 and hasattr(faiss, "index_cpu_to_gpu")
