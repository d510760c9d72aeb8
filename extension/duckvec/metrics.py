"""L2, IP and COSINE as data: DuckDB's functions and every library's spelling.

Distances are DuckDB's and sort ascending for all three. COSINE is the inner product
of vectors that were normalised before they reach an index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duckvec.errors import UnknownMetricError

# Small enough that what is computed on the way needs little memory beside the vectors.
ROWS_PER_BLOCK = 1024
# The square of the largest norm that libraries get to see, 2**62: every distance, its
# square and every inner product of two such vectors is within a float32. faiss ends the
# process where its clustering meets an infinite one.
LARGEST_SQUARED_NORM = 2.0**124


@dataclass(frozen=True)
class Metric:
    """One way to measure how far apart two vectors are.

    Attributes:
        name: what users type.
        duckdb_array_function: the distance of two arrays, FLOAT[n] or DOUBLE[n].
        duckdb_list_function: the distance of two lists.
        normalizes: whether vectors and queries are scaled to length 1 first.
        is_similarity: whether libraries give an inner product (larger is nearer)
            where they would give a squared distance.
        offset: distance = offset - inner product, where is_similarity.
        faiss: the name of faiss's metric.
        hnswlib: hnswlib's space.
        annoy: annoy's metric.
    """

    name: str
    duckdb_array_function: str
    duckdb_list_function: str
    normalizes: bool
    is_similarity: bool
    offset: float
    faiss: str
    hnswlib: str
    annoy: str

    def distances(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return DuckDB's distances for squared distances or inner products."""
        if self.is_similarity:
            return np.asarray(self.offset - raw, dtype=np.float32)
        return np.asarray(np.sqrt(np.maximum(raw, 0)), dtype=np.float32)


L2 = Metric(
    name="L2",
    duckdb_array_function="array_distance",
    duckdb_list_function="list_distance",
    normalizes=False,
    is_similarity=False,
    offset=0.0,
    faiss="METRIC_L2",
    hnswlib="l2",
    annoy="euclidean",
)
IP = Metric(
    name="IP",
    duckdb_array_function="array_negative_inner_product",
    duckdb_list_function="list_negative_inner_product",
    normalizes=False,
    is_similarity=True,
    offset=0.0,
    faiss="METRIC_INNER_PRODUCT",
    hnswlib="ip",
    annoy="dot",
)
COSINE = Metric(
    name="COSINE",
    duckdb_array_function="array_cosine_distance",
    duckdb_list_function="list_cosine_distance",
    normalizes=True,
    is_similarity=True,
    offset=1.0,
    faiss="METRIC_INNER_PRODUCT",
    hnswlib="ip",
    annoy="angular",
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in (L2, IP, COSINE)}


def parse_metric(text: str) -> Metric:
    """Return the metric of that name, in any case, or raise UnknownMetricError."""
    try:
        return METRICS[text.strip().upper()]
    except KeyError:
        raise UnknownMetricError(text, tuple(METRICS)) from None


def are_bounded(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which rows (n, d) are finite, and small enough for every library."""
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
        return np.asarray(squares <= LARGEST_SQUARED_NORM)


def normalize_rows(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return a new float32 array of the rows (n, d) scaled to length 1.

    Rows of zeros stay zeros.
    """
    normalized = np.array(vectors, dtype=np.float32, order="C", copy=True)
    normalize_rows_inplace(normalized)
    return normalized


def normalize_rows_inplace(vectors: NDArray[np.float32]) -> None:
    """Scale the rows (n, d) to length 1, in blocks: no second copy is made.

    Rows of zeros stay zeros. Lengths are taken in double precision, so that no row is
    too long or too short for it.
    """
    for start in range(0, len(vectors), ROWS_PER_BLOCK):
        block = vectors[start : start + ROWS_PER_BLOCK]
        wide = block.astype(np.float64)
        lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        lengths[lengths == 0] = 1
        np.divide(wide, lengths[:, np.newaxis], out=wide)
        block[...] = wide
