"""Choosing the default search parameters of an index when it is built.

Two samples are searched with settings of the type's grid and compared with the exact
answer over the same segment; the cheapest setting with which both reach the target
becomes the default. One sample is stored rows, each left out of its own answer. The
other is mixtures, a row plus half of another one: a stored row is an easy query for a
graph that holds it (on 20,000 sentence embeddings NSG found 0.99 of the neighbours of
stored rows, 0.90 of mixtures', and 0.87 of held-out queries'), while trees and cells
find more for a mixture than for a new query.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types.base import IndexType, SegmentIndex
from duckvec.metrics import Metric, normalize_rows

# Above the recall of 0.95 that is wanted for new queries, by the noise of a sample.
TARGET_RECALL = 0.96
SAMPLE = 100  # of each kind
FEW_OF = 5
K = 10
BLOCK_ROWS = 2048
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
    *,
    threads: int,
) -> dict[str, int]:
    """Return the cheapest search parameters that reach the target on both samples.

    Args:
        index_type: the type that built `index`.
        index: a segment's index over `vectors`.
        vectors: float32 (n, d), prepared as for the build.
        metric: the index's metric.
        params: the segment's effective build parameters.
        threads: how many threads the searches may use.

    Returns:
        Search parameters, with "overfetch" for compressed types; the most thorough
        setting where none reaches the target.
    """
    rows = len(vectors)
    k = min(K, rows - 1)
    grid = index_type.search_grid(params, rows, K)
    factors = OVERFETCH if index_type.compressed else (1,)
    if k < 1 or not grid or (len(grid) == 1 and len(factors) == 1):
        return dict(grid[0] if grid else index_type.default_search_params(params, rows))
    sample = _draw(vectors, metric, k)

    def attempt(
        at: int, queries: _Sample = sample
    ) -> tuple[dict[str, int], float] | None:
        return _attempt(index_type, index, queries, grid[at], params, factors, threads)

    # Recall grows along the grid: bisect with a few of the queries, then let all of
    # them confirm, one step down where that does, upwards where it does not.
    few = sample.every(FEW_OF) if len(sample.queries) == 2 * SAMPLE else sample
    low, high = 0, len(grid) - 1
    while low < high:
        middle = (low + high) // 2
        if attempt(middle, few) is None:
            low = middle + 1
        else:
            high = middle
    best = attempt(low)
    if best is not None:
        best = (attempt(low - 1) if low else None) or best
    while best is None and low + 1 < len(grid):
        low += 1
        best = attempt(low)
    if best is None:
        return {**grid[-1], **({"overfetch": factors[-1]} if len(factors) > 1 else {})}
    if best[0].get("overfetch", 1) > 1:
        # A step more of probing may be cheaper than a long list to rescore.
        for at in range(low + 1, min(low + 3, len(grid))):
            other = attempt(at)
            if other is not None and other[1] < best[1]:
                best = other
    return best[0]


@dataclass(frozen=True)
class _Sample:
    """Queries (s, d), their own rows (s,) or -1, and their neighbours (s, k)."""

    queries: NDArray[np.float32]
    own: NDArray[np.int64]
    truth: NDArray[np.int64]

    def every(self, step: int) -> _Sample:
        """Return every `step`-th query."""
        return _Sample(self.queries[::step], self.own[::step], self.truth[::step])

    def recall(self, found: NDArray[np.bool_]) -> float:
        """Return the smaller of both kinds' shares of neighbours found, from (s,)."""
        share = found.sum(axis=1) / self.truth.shape[1]
        return float(min(share[self.own >= 0].mean(), share[self.own < 0].mean()))


def _draw(vectors: NDArray[np.float32], metric: Metric, k: int) -> _Sample:
    rng = np.random.default_rng(0)
    count = min(SAMPLE, len(vectors))
    rows = rng.choice(len(vectors), count, replace=False)
    base, other = rng.choice(len(vectors), (2, count))
    mixed = vectors[base] + vectors[other] / 2
    if metric.normalizes:
        mixed = normalize_rows(mixed)
    queries = np.concatenate([vectors[rows], mixed])
    own = np.concatenate([rows, np.full(count, -1)])
    return _Sample(queries, own, exact_neighbours(vectors, queries, own, metric, k))


def exact_neighbours(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    own: NDArray[np.int64],
    metric: Metric,
    k: int,
) -> NDArray[np.int64]:
    """Return int64 (nq, k): the exact nearest rows of each query.

    Blocked matrix products in float32; ties may fall either way.

    Args:
        vectors: float32 (n, d).
        queries: float32 (nq, d).
        own: int64 (nq,), a row that is left out of each answer, or -1.
        metric: how to measure.
        k: neighbours of each query.
    """
    best = np.full((len(queries), k), np.inf, dtype=np.float32)
    found = np.full((len(queries), k), -1, dtype=np.int64)
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS]
        scores = queries @ block.T
        if metric.is_similarity:
            np.negative(scores, out=scores)
        else:
            scores *= -2
            scores += np.einsum("ij,ij->i", block, block)
        inside = (own >= start) & (own < start + len(block))
        scores[np.flatnonzero(inside), own[inside] - start] = np.inf
        width = min(k, len(block))
        near = np.argpartition(scores, width - 1, axis=1)[:, :width]
        joined = np.concatenate([best, np.take_along_axis(scores, near, 1)], axis=1)
        numbers = np.concatenate([found, near + start], axis=1)
        keep = np.argpartition(joined, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(joined, keep, axis=1)
        found = np.take_along_axis(numbers, keep, axis=1)
    return found


def _attempt(
    index_type: IndexType,
    index: SegmentIndex,
    sample: _Sample,
    setting: Mapping[str, int],
    params: Mapping[str, int],
    factors: Sequence[int],
    threads: int,
) -> tuple[dict[str, int], float] | None:
    """Return the setting with its smallest sufficient over-fetch, and its cost."""
    count = len(sample.queries)
    wanted = min(K * factors[-1] + 1, index.rows)
    own = index_type.clamp_search_params(setting, params, wanted)
    started = time.perf_counter()
    positions = index.search(sample.queries, wanted, own, threads=threads).positions
    seconds = (time.perf_counter() - started) / count
    others = positions != sample.own[:, None]
    # The place of each hit among those that are not the sampled row itself.
    place = np.cumsum(others, axis=1) - 1
    hit = others & np.array(
        [np.isin(row, near) for row, near in zip(positions, sample.truth, strict=True)]
    )
    for factor in factors:
        if sample.recall(hit & (place < K * factor)) >= TARGET_RECALL:
            chosen = dict(setting)
            if len(factors) > 1:
                chosen["overfetch"] = factor
            return chosen, seconds + K * factor * RESCORE_SECONDS
    return None
