"""The libraries by themselves: the same parameters, vectors in memory already."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

HNSW_SEED = 100
ANNOY_SEED = 1


class RawIndex(Protocol):
    """One library's index for one type, measured for L2."""

    def build(self, vectors: NDArray[np.float32]) -> None:
        """Build over vectors (n, d)."""

    def save(self, path: Path) -> None:
        """Write the library's file."""

    def load(self, path: Path) -> None:
        """Read the library's file."""

    def search(
        self, queries: NDArray[np.float32], k: int, params: Mapping[str, int]
    ) -> NDArray[np.int64]:
        """Return positions (nq, k), -1 for none."""


class Faiss:
    """FLAT, the IVF types and NSG."""

    def __init__(
        self, index_type: str, dimension: int, params: Mapping[str, int], threads: int
    ) -> None:
        import faiss

        self._faiss, self._type = faiss, index_type
        self._dimension, self._params = dimension, params
        self._index: Any = None
        self._refined: Any = None
        faiss.omp_set_num_threads(threads)
        self._threads = threads

    def build(self, vectors: NDArray[np.float32]) -> None:
        """Train where the type needs it, and add."""
        self._index = self._new()
        if not self._index.is_trained:
            self._index.train(vectors)
        self._index.add(vectors)

    def save(self, path: Path) -> None:
        """Write faiss's file."""
        self._faiss.write_index(self._index, str(path))

    def load(self, path: Path) -> None:
        """Read faiss's file into memory."""
        self._index = self._faiss.read_index(str(path))

    def refine(self, vectors: NDArray[np.float32]) -> None:
        """Let searches with "overfetch" rescore their candidates from the vectors."""
        pointer = self._faiss.swig_ptr(vectors)
        self._refined = self._faiss.IndexRefineFlat(self._index, pointer)

    def search(
        self, queries: NDArray[np.float32], k: int, params: Mapping[str, int]
    ) -> NDArray[np.int64]:
        """Search; with "overfetch", fetch so many times k and rescore."""
        # A single query is slower with more threads, many times so for FLAT.
        self._faiss.omp_set_num_threads(1 if len(queries) == 1 else self._threads)
        if "nprobe" in params:
            probing = self._faiss.SearchParametersIVF(nprobe=params["nprobe"])
            factor = params.get("overfetch", 1)
            if self._refined is None or factor <= 1:
                return self._index.search(queries, k, params=probing)[1]
            both = self._faiss.IndexRefineSearchParameters(
                k_factor=float(factor), base_index_params=probing
            )
            return self._refined.search(queries, k, params=both)[1]
        if "search_length" in params:
            self._index.nsg.search_L = max(params["search_length"], k)
        return self._index.search(queries, k)[1]

    def _new(self) -> Any:
        faiss, params, dimension = self._faiss, self._params, self._dimension
        if self._type == "FLAT":
            return faiss.IndexFlatL2(dimension)
        if self._type == "NSG":
            index = faiss.IndexNSGFlat(dimension, params["out_degree"])
            index.nsg.L = params["search_length"]
            index.nsg.C = params["candidate_pool_size"]
            index.GK = params["knng"]
            return index
        coarse = faiss.IndexFlatL2(dimension)
        nlist = params["nlist"]
        if self._type == "IVF_FLAT":
            index = faiss.IndexIVFFlat(coarse, dimension, nlist)
        elif self._type == "IVF_PQ":
            index = faiss.IndexIVFPQ(coarse, dimension, nlist, params["m"], 8)
        else:
            bits = faiss.ScalarQuantizer.QT_8bit
            index = faiss.IndexIVFScalarQuantizer(coarse, dimension, nlist, bits)
        return index


class Hnswlib:
    """HNSW."""

    def __init__(
        self, index_type: str, dimension: int, params: Mapping[str, int], threads: int
    ) -> None:
        import hnswlib

        self._params, self._threads = params, threads
        self._index: Any = hnswlib.Index(space="l2", dim=dimension)

    def build(self, vectors: NDArray[np.float32]) -> None:
        """Add all at once."""
        self._index.init_index(
            max_elements=len(vectors),
            M=self._params["M"],
            ef_construction=self._params["efConstruction"],
            random_seed=HNSW_SEED,
        )
        self._index.add_items(vectors, num_threads=self._threads)

    def save(self, path: Path) -> None:
        """Write hnswlib's file."""
        self._index.save_index(str(path))

    def load(self, path: Path) -> None:
        """Read hnswlib's file."""
        self._index.load_index(str(path))

    def search(
        self, queries: NDArray[np.float32], k: int, params: Mapping[str, int]
    ) -> NDArray[np.int64]:
        """Search with ef."""
        self._index.set_ef(params["ef"])
        threads = 1 if len(queries) == 1 else self._threads
        found = self._index.knn_query(queries, k=k, num_threads=threads)[0]
        return found.astype(np.int64)


class Annoy:
    """ANNOY; many queries by as many Python threads, annoy having no other way."""

    def __init__(
        self, index_type: str, dimension: int, params: Mapping[str, int], threads: int
    ) -> None:
        from annoy import AnnoyIndex

        self._params, self._threads = params, threads
        self._index = AnnoyIndex(dimension, "euclidean")

    def build(self, vectors: NDArray[np.float32]) -> None:
        """Add the rows, then grow the trees."""
        self._index.set_seed(ANNOY_SEED)
        for row, vector in enumerate(vectors):
            self._index.add_item(row, vector)
        self._index.build(self._params["n_trees"], n_jobs=self._threads)

    def save(self, path: Path) -> None:
        """Write annoy's file."""
        self._index.save(str(path))

    def load(self, path: Path) -> None:
        """Map annoy's file."""
        self._index.load(str(path))

    def search(
        self, queries: NDArray[np.float32], k: int, params: Mapping[str, int]
    ) -> NDArray[np.int64]:
        """Search one after another, or by several threads."""
        search_k = params["search_k"]
        found = np.full((len(queries), k), -1, dtype=np.int64)

        def one(row: int) -> None:
            ids = self._index.get_nns_by_vector(queries[row], k, search_k)
            found[row, : len(ids)] = ids

        if len(queries) == 1:
            one(0)
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(one, range(len(queries))))
        return found


LIBRARIES: dict[str, Any] = {"HNSW": Hnswlib, "ANNOY": Annoy}


def new_raw(
    index_type: str, dimension: int, params: Mapping[str, int], threads: int
) -> Any:
    """Return the library's own index for a type, still empty."""
    return LIBRARIES.get(index_type, Faiss)(index_type, dimension, params, threads)
