"""Choosing the default search parameters of an index when it is built.

Sampled rows of a segment are searched with the settings of the type's grid, cheapest
first, and compared with the exact answer over the same segment, the sampled row
itself left out. The cheapest setting that reaches the target becomes the default.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types.base import IndexType, SegmentIndex
from duckvec.metrics import Metric

# Rows of the table are easier queries than new ones: the target on the sample lies
# above the recall of 0.95 that is promised for new queries.
TARGET_RECALL = 0.975
SAMPLE = 128
K = 10
# A compressed type is fetched this many times k before its candidates are rescored.
OVERFETCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Seconds that DuckDB takes to join and rescore one candidate, in a batch: what a
# larger over-fetch is weighed against (measured: 1 to 3 microseconds).
RESCORE_SECONDS = 2e-6


def calibrate(
    index_type: IndexType,
    index: SegmentIndex,
    vectors: NDArray[np.float32],
    metric: Metric,
    params: Mapping[str, int],
) -> dict[str, int]:
    """Return the cheapest search parameters that reach the target on a sample.

    Args:
        index_type: the type that built `index`.
        index: a segment's index over `vectors`.
        vectors: float32 (n, d), prepared as for the build.
        metric: the index's metric.
        params: the segment's effective build parameters.

    Returns:
        Search parameters, with "overfetch" for compressed types; the most thorough
        setting where none reaches the target.
    """
    rows = len(vectors)
    k = min(K, rows - 1)
    grid = index_type.search_grid(params, rows, K)
    if k < 1 or not grid:
        return dict(index_type.default_search_params(params, rows))
    sample = np.random.default_rng(0).choice(rows, min(SAMPLE, rows), replace=False)
    truth = exact_neighbours(vectors, sample, metric, k)
    factors = OVERFETCH if index_type.compressed else (1,)
    trials: dict[int, tuple[dict[str, int], float] | None] = {}

    def attempt(at: int) -> tuple[dict[str, int], float] | None:
        if at not in trials:
            trials[at] = _attempt(
                index_type, index, vectors, sample, truth, grid[at], params, factors
            )
        return trials[at]

    # Recall grows along the grid: bisect for the first setting that reaches it.
    low, high = 0, len(grid) - 1
    while low < high:
        middle = (low + high) // 2
        if attempt(middle) is None:
            low = middle + 1
        else:
            high = middle
    best = attempt(low)
    if best is None:
        return {**grid[-1], **({"overfetch": factors[-1]} if len(factors) > 1 else {})}
    if index_type.compressed:
        # One step more of probing may be cheaper than a long list to rescore.
        for at in range(low + 1, min(low + 4, len(grid))):
            other = attempt(at)
            if other is not None and other[1] < best[1]:
                best = other
    return best[0]


def exact_neighbours(
    vectors: NDArray[np.float32],
    sample: NDArray[np.int64],
    metric: Metric,
    k: int,
) -> NDArray[np.int64]:
    """Return int64 (s, k): the exact nearest rows of each sampled row, itself left out.

    Blocked matrix products in float32; ties may fall either way.
    """
    queries = vectors[sample]
    best = np.full((len(sample), k), np.inf, dtype=np.float32)
    found = np.full((len(sample), k), -1, dtype=np.int64)
    for start in range(0, len(vectors), 16384):
        block = vectors[start : start + 16384]
        scores = queries @ block.T
        if not metric.is_similarity:
            scores = np.einsum("ij,ij->i", block, block) - 2 * scores
        else:
            scores = -scores
        inside = (sample >= start) & (sample < start + len(block))
        scores[np.flatnonzero(inside), sample[inside] - start] = np.inf
        joined = np.concatenate([best, scores], axis=1)
        numbers = np.concatenate(
            [
                found,
                np.broadcast_to(np.arange(start, start + len(block)), scores.shape),
            ],
            axis=1,
        )
        keep = np.argpartition(joined, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(joined, keep, axis=1)
        found = np.take_along_axis(numbers, keep, axis=1)
    return found


def _attempt(
    index_type: IndexType,
    index: SegmentIndex,
    vectors: NDArray[np.float32],
    sample: NDArray[np.int64],
    truth: NDArray[np.int64],
    setting: Mapping[str, int],
    params: Mapping[str, int],
    factors: Sequence[int],
) -> tuple[dict[str, int], float] | None:
    """Return the setting with its smallest sufficient over-fetch, and its cost."""
    k = truth.shape[1]
    wanted = min(K * factors[-1] + 1, len(vectors))
    own = index_type.clamp_search_params(setting, params, wanted)
    started = time.perf_counter()
    hits = index.search(vectors[sample], wanted, own, threads=1)
    seconds = (time.perf_counter() - started) / len(sample)
    positions = hits.positions
    others = positions != sample[:, None]
    # The place of each hit among those that are not the sampled row itself.
    place = np.cumsum(others, axis=1) - 1
    hit = (positions[:, :, None] == truth[:, None, :]).any(axis=2) & others
    for factor in factors:
        recall = float((hit & (place < K * factor)).sum()) / (len(sample) * k)
        if recall >= TARGET_RECALL:
            chosen = dict(setting)
            if len(factors) > 1:
                chosen["overfetch"] = factor
            return chosen, seconds + K * factor * RESCORE_SECONDS
    return None
