"""Which rows are equal, and how long they are; in blocks, without a second copy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from duckvec.metrics import ROWS_PER_BLOCK


def row_hashes(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return one 64-bit number per row (n, d), the same for equal rows."""
    random = np.random.default_rng(0x5EED)
    shape = (2, vectors.shape[1])
    odd = random.integers(0, 2**64, shape, dtype=np.uint64) | np.uint64(1)
    hashes = np.empty(len(vectors), dtype=np.uint64)
    for start in range(0, len(vectors), ROWS_PER_BLOCK):
        block = vectors[start : start + ROWS_PER_BLOCK] + np.float32(0)  # -0.0 is 0.0
        words = block.view(np.uint32).astype(np.uint64)
        words = (words + odd[0]) * odd[1]
        words ^= words >> np.uint64(32)
        words *= odd[0]
        hashes[start : start + len(block)] = words.sum(axis=1, dtype=np.uint64)
    return hashes


def largest_norm(vectors: NDArray[np.float32]) -> float:
    """Return the length of the longest row (n, d)."""
    largest = 0.0
    for start in range(0, len(vectors), ROWS_PER_BLOCK):
        block = vectors[start : start + ROWS_PER_BLOCK]
        squares = np.einsum("ij,ij->i", block, block, dtype=np.float64)
        largest = max(largest, float(squares.max(initial=0.0)))
    return float(np.sqrt(largest))


@dataclass(frozen=True)
class Copies:
    """Which positions hold the same vector.

    Attributes:
        members: positions, ordered by the distinct vector they hold.
        starts: (distinct + 1,), where the members of each distinct vector begin.
    """

    members: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, groups: NDArray[np.integer]) -> Copies:
        """Return the copies where groups (rows,) numbers the distinct vectors."""
        counts = np.bincount(groups)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        members = np.argsort(groups, kind="stable").astype(np.int64)
        return cls(members, starts)

    def first(self) -> NDArray[np.int64]:
        """Return the first position of each distinct vector."""
        return self.members[self.starts[:-1]]

    def expand(
        self,
        found: NDArray[np.int64],
        distances: NDArray[np.float32],
        width: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return positions for distinct vectors (nq, n), -1 for none, cut to width."""
        positions = np.full((len(found), width), -1, dtype=np.int64)
        spread = np.full((len(found), width), np.inf, dtype=np.float32)
        for row, (ids, values) in enumerate(zip(found, distances, strict=True)):
            ids, values = ids[ids >= 0], values[ids >= 0]
            starts, stops = self.starts[ids], self.starts[ids + 1]
            stops = np.minimum(stops, starts + width)
            sizes = stops - starts
            before = np.cumsum(sizes) - sizes
            places = np.arange(int(sizes.sum())) + np.repeat(starts - before, sizes)
            members = self.members[places][:width]
            positions[row, : len(members)] = members
            spread[row, : len(members)] = np.repeat(values, sizes)[:width]
        return positions, spread


def distinct_rows(vectors: NDArray[np.float32]) -> NDArray[np.int32]:
    """Number the distinct rows (n, d) from 0 by first appearance; (n,) numbers."""
    _, first, inverse = np.unique(
        row_hashes(vectors), return_index=True, return_inverse=True
    )
    number = np.empty(len(first), dtype=np.int32)
    number[np.argsort(first, kind="stable")] = np.arange(len(first), dtype=np.int32)
    return number[inverse.reshape(-1)]
