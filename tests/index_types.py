"""Data, settings and checks for the tests of index types."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from duckvec.index_types import INDEX_TYPES, get_index_type
from duckvec.index_types.base import Hits, IndexType, SegmentIndex
from duckvec.metrics import METRICS, Metric, normalize_rows

Vectors = NDArray[np.float32]

ROWS, DIMENSION, QUERIES, K = 3000, 32, 25, 10
PARAMS: dict[str, dict[str, int]] = {
    "FLAT": {},
    "IVF_FLAT": {"nlist": 64},
    "IVF_SQ8": {"nlist": 64},
    "IVF_SQ8H": {"nlist": 64},
    "IVF_PQ": {"nlist": 64, "m": 16},
    "NSG": {
        "search_length": 45,
        "out_degree": 30,
        "candidate_pool_size": 100,
        "knng": 50,
    },
    "HNSW": {"M": 16, "efConstruction": 100},
    "ANNOY": {"n_trees": 8},
}
every_type = pytest.mark.parametrize("name", list(INDEX_TYPES))
every_metric = pytest.mark.parametrize("metric_name", list(METRICS))


def clustered(rows: int, seed: int = 1) -> Vectors:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((40, DIMENSION)) * 2
    noise = random.standard_normal((rows, DIMENSION))
    vectors = centres[random.integers(0, len(centres), rows)] + noise
    return np.ascontiguousarray(vectors, dtype=np.float32)


def as_given(vectors: Vectors, metric: Metric) -> Vectors:
    given = normalize_rows(vectors) if metric.normalizes else vectors.copy()
    given.flags.writeable = False
    return given


def all_distances(
    queries: Vectors, vectors: Vectors, metric: Metric
) -> NDArray[np.float64]:
    left, right = queries.astype(np.float64), vectors.astype(np.float64)
    if metric.is_similarity:
        return np.asarray(metric.offset - left @ right.T)
    differences = left[:, None, :] - right[None, :, :]
    return np.asarray(np.sqrt((differences**2).sum(axis=2)))


def build(
    name: str, metric: Metric, vectors: Vectors
) -> tuple[IndexType, SegmentIndex]:
    kind = get_index_type(name)
    params = kind.effective_params(PARAMS[name], *vectors.shape)
    given = as_given(vectors, metric)
    return kind, kind.build(given, metric, params, threads=1)


def effective(kind: IndexType, rows: int) -> dict[str, int]:
    return kind.effective_params(PARAMS[kind.name], rows, DIMENSION)


def most_thorough(kind: IndexType, rows: int, k: int) -> dict[str, int]:
    return kind.search_grid(effective(kind, rows), rows, k)[-1]


def check_shape(hits: Hits, queries: int, rows: int, k: int) -> None:
    assert hits.positions.dtype == np.int64
    assert hits.distances.dtype == np.float32
    assert hits.positions.shape == hits.distances.shape
    assert len(hits.positions) == queries
    for positions, distances in zip(hits.positions, hits.distances, strict=True):
        found = positions[positions >= 0]
        assert len(found) >= min(k, rows)
        assert len(set(found.tolist())) == len(found)
        assert np.all(np.isinf(distances[positions < 0]))
        assert np.all(np.isfinite(distances[positions >= 0]))
        assert np.all(np.diff(distances[positions >= 0]) >= 0)


def rescored(
    hits: Hits, distances: NDArray[np.float64], k: int
) -> list[NDArray[np.int64]]:
    """The k nearest of each query's hits, by the true distances."""
    nearest = []
    for row, positions in enumerate(hits.positions):
        found = positions[positions >= 0]
        order = np.argsort(distances[row, found], kind="stable")
        nearest.append(found[order[:k]])
    return nearest


def recall(hits: Hits, distances: NDArray[np.float64], k: int) -> float:
    kth = np.sort(distances, axis=1)[:, k - 1]
    nearest = rescored(hits, distances, k)
    good = [
        np.count_nonzero(distances[row, ids] <= kth[row])
        for row, ids in enumerate(nearest)
    ]
    return float(np.mean(good)) / k
