"""Choosing the default search parameters of an index when it is built.

Two samples are searched with settings of the type's grid and compared with the exact
answer over the same segment; the cheapest setting with which both reach the target
becomes the default. Where a type knows from which setting on a search looks at a row,
only compressed ones are searched, for the order of their candidates.

One sample is stored rows, each left out of its own answer. The other is mixtures, a row
plus half of another one: a stored row is an easy query for a graph that holds it (on
20,000 sentence embeddings NSG found 0.99 of the neighbours of stored rows, 0.90 of
mixtures', and 0.87 of held-out queries'), while trees and cells find more for a mixture
than for a new query.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types.base import IndexType, SegmentIndex
from duckvec.metrics import Metric, normalize_rows

# Above the recall of 0.95 that is wanted for new queries, by the noise of a sample.
TARGET_RECALL = 0.96
SAMPLE = 100  # of each kind
SEARCHED = 64  # of each kind, where only searches tell what a setting finds
K = 10
BLOCK_ROWS = 2048
SMALL_BLOCK_ROWS = 256
QUERIES_AT_ONCE = 10
MOST_TRIED = 3
NOWHERE = np.iinfo(np.int64).max
# A compressed type is fetched this many times k before its candidates are rescored.
OVERFETCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
OVERFETCH_STEPS = (4, 16, 64)
# Seconds that DuckDB takes to join and rescore one candidate, in a batch: what a
# larger over-fetch is weighed against (measured: 4 to 5 microseconds, two threads).
RESCORE_SECONDS = 4e-6


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
    if k < 1 or not grid or (len(grid) == 1 and not index_type.compressed):
        return dict(grid[0] if grid else index_type.default_search_params(params, rows))
    sample = _draw(vectors, metric, k)

    def places(
        queries: _Sample, setting: Mapping[str, int], factor: int = 1
    ) -> NDArray[np.int64]:
        width = min(K * factor + 1, rows)
        own = index_type.clamp_search_params(setting, params, width)
        hits = index.search(queries.queries, width, own, threads=threads)
        return queries.places(hits.positions)

    low = 0
    known = index.reach(sample.queries, sample.truth, threads=threads)
    if known is not None:
        name, least = known
        low = next(
            (
                at
                for at, setting in enumerate(grid)
                if sample.recall(least <= setting[name]) >= TARGET_RECALL
            ),
            len(grid) - 1,
        )
    if index_type.compressed:
        return _with_overfetch(sample, grid[low:], places)
    if known is not None:
        return dict(grid[low])
    kinds = sample.kinds(SEARCHED)
    return dict(grid[max(_first(kind, grid, places) for kind in kinds)])


@dataclass(frozen=True)
class _Sample:
    """Queries (s, d), their own rows (s,) or -1, and their neighbours (s, k)."""

    queries: NDArray[np.float32]
    own: NDArray[np.int64]
    truth: NDArray[np.int64]

    def part(self, chosen: NDArray[Any]) -> _Sample:
        """Return some of the queries, by a mask or by their numbers."""
        return _Sample(self.queries[chosen], self.own[chosen], self.truth[chosen])

    def kinds(self, most: int) -> list[_Sample]:
        """Return the stored rows and the mixtures, no more than so many of each."""
        return [
            self.part(np.flatnonzero(kind)[:most])
            for kind in (self.own >= 0, self.own < 0)
        ]

    def recall(self, found: NDArray[np.bool_]) -> float:
        """Return the smaller of both kinds' shares of neighbours found, from (s, k)."""
        share = found.mean(axis=1)
        return float(min(share[self.own >= 0].mean(), share[self.own < 0].mean()))

    def places(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (s, k): the place of each neighbour among the hits, NOWHERE without.

        The sampled row itself has no place.
        """
        place = np.cumsum(positions != self.own[:, np.newaxis], axis=1) - 1
        places = np.full(self.truth.shape, NOWHERE, dtype=np.int64)
        for at, (near, hits) in enumerate(zip(self.truth, positions, strict=True)):
            which, where = np.nonzero(near[:, np.newaxis] == hits)
            places[at, which] = place[at, where]
        return places


_Places = Callable[..., NDArray[np.int64]]
"""Searches a sample's queries with a setting and an over-fetch; returns its places."""


def _first(sample: _Sample, grid: Sequence[Mapping[str, int]], places: _Places) -> int:
    """Return the first setting that finds enough, else the last.

    What a setting finds, more thorough ones find too: queries that lack nothing are
    not searched again. Those that lack most come first, and a setting is given up as
    soon as too much is missing.
    """
    spare = int(sample.truth.size * (1 - TARGET_RECALL) + 1e-6)
    lacking = np.full(len(sample.queries), -1)
    for at, setting in enumerate(grid):
        order = np.argsort(-lacking, kind="stable")
        order = order[lacking[order] != 0]
        missed = 0
        for start in range(0, len(order), QUERIES_AT_ONCE):
            some = order[start : start + QUERIES_AT_ONCE]
            lacking[some] = (places(sample.part(some), setting) >= K).sum(axis=1)
            missed += int(lacking[some].sum())
            if missed > spare:
                break
        else:
            return at
    return len(grid) - 1


def _with_overfetch(
    sample: _Sample, grid: Sequence[Mapping[str, int]], places: _Places
) -> dict[str, int]:
    """Return the first setting that finds enough, with its smallest over-fetch.

    The next ones are weighed against it as long as the shorter lists to rescore may
    be worth the longer search.
    """
    best: dict[str, int] | None = None
    cost = np.inf
    tried = 0
    for setting in grid:
        factor, seconds = _smallest_overfetch(sample, setting, places)
        if factor is not None:
            rescoring = K * factor * RESCORE_SECONDS
            if seconds + rescoring < cost:
                best = {**setting, "overfetch": factor}
                cost = seconds + rescoring
            tried += 1
            if tried == MOST_TRIED or rescoring < seconds / 2:
                break
    return best or {**grid[-1], "overfetch": OVERFETCH[-1]}


def _smallest_overfetch(
    sample: _Sample, setting: Mapping[str, int], places: _Places
) -> tuple[int | None, float]:
    """Return the over-fetch that finds enough, if any, and seconds for one query.

    Few candidates are fetched first: long lists of them take most of the time.
    """
    seconds = 0.0
    for most in OVERFETCH_STEPS:
        started = time.perf_counter()
        place = places(sample, setting, most)
        seconds = (time.perf_counter() - started) / len(place)
        for factor in OVERFETCH:
            if factor <= most and sample.recall(place < K * factor) >= TARGET_RECALL:
                return factor, seconds
    return None, seconds


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

    Blocked matrix products in float32; ties may fall either way. Of each block, only
    what is nearer than the k-th so far is looked at.

    Args:
        vectors: float32 (n, d).
        queries: float32 (nq, d).
        own: int64 (nq,), a row that is left out of each answer, or -1.
        metric: how to measure.
        k: neighbours of each query.
    """
    scaled = queries * np.float32(-1 if metric.is_similarity else -2)
    best = np.full((len(queries), k), np.inf, dtype=np.float32)
    found = np.full((len(queries), k), -1, dtype=np.int64)
    start = 0
    while start < len(vectors):
        # In the first block every row is near: it is a small one.
        block = vectors[start : start + (BLOCK_ROWS if start else SMALL_BLOCK_ROWS)]
        scores = scaled @ block.T
        if not metric.is_similarity:
            scores += np.einsum("ij,ij->i", block, block)
        inside = (own >= start) & (own < start + len(block))
        scores[np.flatnonzero(inside), own[inside] - start] = np.inf
        row, column = np.nonzero(scores < best.max(axis=1, keepdims=True))
        width = k + int(np.bincount(row, minlength=1).max())
        nearer = np.full((len(queries), width), np.inf, dtype=np.float32)
        numbers = np.full(nearer.shape, -1, dtype=np.int64)
        nearer[:, :k], numbers[:, :k] = best, found
        place = k + np.arange(len(row)) - np.searchsorted(row, row)
        nearer[row, place] = scores[row, column]
        numbers[row, place] = column + start
        keep = np.argpartition(nearer, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(nearer, keep, axis=1)
        found = np.take_along_axis(numbers, keep, axis=1)
        start += len(block)
    return found
