"""Queries with known answers, drawn from the rows of a segment.

One sample is stored rows, each left out of its own answer. The other is mixtures, a row
plus half of another one: a stored row is an easy query for a graph that holds it (on
20,000 sentence embeddings NSG found 0.99 of the neighbours of stored rows, 0.90 of
mixtures', and 0.87 of held-out queries'), while trees and cells find more for a mixture
than for a new query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duckvec.hashing import hash_vectors
from duckvec.metrics import Metric, normalize_rows

K = 10  # neighbours of each query
SAMPLE = 100  # of each kind
BLOCK_ROWS = 2048
SMALL_BLOCK_ROWS = 256
NOWHERE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Sample:
    """Queries with known answers.

    Attributes:
        queries: float32 (s, d).
        own: int64 (s,), the row that a query is, or -1.
        truth: int64 (s, k), the neighbours.
        groups: int64 (rows,), the same for equal rows; None where no query has equal
            neighbours. One of equal rows is as good as another.
    """

    queries: NDArray[np.float32]
    own: NDArray[np.int64]
    truth: NDArray[np.int64]
    groups: NDArray[np.int64] | None

    def part(self, chosen: NDArray[Any]) -> Sample:
        """Return some of the queries, by a mask or by their numbers."""
        return Sample(
            self.queries[chosen], self.own[chosen], self.truth[chosen], self.groups
        )

    def kinds(self, most: int) -> list[Sample]:
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
            if self.groups is None:
                which, where = np.nonzero(near[:, np.newaxis] == hits)
            else:
                others = (hits >= 0) & (hits != self.own[at])
                which, where = _pairs(self.groups, near, hits, others)
            places[at, which] = place[at, where]
        return places


Places = Callable[..., NDArray[np.int64]]
"""Searches a sample's queries with a setting and an over-fetch; returns its places."""


def draw_sample(vectors: NDArray[np.float32], metric: Metric, k: int) -> Sample:
    """Return both samples of some prepared vectors, with their k neighbours."""
    rng = np.random.default_rng(0)
    count = min(SAMPLE, len(vectors))
    rows = rng.choice(len(vectors), count, replace=False)
    base, other = rng.choice(len(vectors), (2, count))
    mixed = vectors[base] + vectors[other] / 2
    if metric.normalizes:
        mixed = normalize_rows(mixed)
    queries = np.concatenate([vectors[rows], mixed])
    own = np.concatenate([rows, np.full(count, -1)])
    truth = exact_neighbours(vectors, queries, own, metric, k)
    return Sample(queries, own, truth, _equal_rows(vectors, truth))


def _equal_rows(
    vectors: NDArray[np.float32], truth: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Number all rows, equal ones alike; None where no query has equal neighbours."""
    near = np.sort(hash_vectors(vectors[truth.ravel()]).reshape(truth.shape), axis=1)
    if not (near[:, 1:] == near[:, :-1]).any():
        return None
    blocks = range(0, len(vectors), BLOCK_ROWS)
    hashes = [hash_vectors(vectors[start : start + BLOCK_ROWS]) for start in blocks]
    return np.concatenate(hashes).view(np.int64)


def _pairs(
    groups: NDArray[np.int64],
    near: NDArray[np.int64],
    hits: NDArray[np.int64],
    usable: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair neighbours and usable hits that are equal rows, each at most once."""
    where = np.flatnonzero(usable)
    wanted, given = _numbered(groups[near]), _numbered(groups[hits[where]])
    which, found = np.nonzero((wanted[:, np.newaxis] == given).all(axis=2))
    return which, where[found]


def _numbered(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (n, 2): each group, and how many of it came before."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    first = np.searchsorted(ordered, ordered, side="left")
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - first
    return np.stack([groups, rank], axis=1)


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
        near = np.flatnonzero(scores < best.max(axis=1, keepdims=True))
        row, column = np.divmod(near, len(block))
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
