"""Which rows are equal, and how long they are; in blocks, without a second copy.

Graphs are built over the distinct rows: equal rows would link to each other alone, and
a search that comes among them finds no way out. Which row holds which distinct vector
is written behind the library's file: a little-endian 32-bit number per row, and a mark.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

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


MARK = b"COPIES01"
STORED = np.dtype("<i4")


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


def repeated_rows(vectors: NDArray[np.float32]) -> NDArray[np.int32] | None:
    """Number the distinct rows (n, d) from 0 by first appearance, None if all are."""
    _, first, inverse = np.unique(
        row_hashes(vectors), return_index=True, return_inverse=True
    )
    if len(first) == len(vectors):
        return None
    number = np.empty(len(first), dtype=np.int32)
    number[np.argsort(first, kind="stable")] = np.arange(len(first), dtype=np.int32)
    return number[inverse.reshape(-1)]


def append_numbers(path: Path, numbers: NDArray[np.int32] | None) -> None:
    """Write behind a library's file which distinct vector each row holds."""
    if numbers is not None:
        with path.open("ab") as file:
            file.write(numbers.astype(STORED).tobytes() + MARK)


def copies_bytes(rows: int, distinct: int) -> tuple[int, int]:
    """Return what the numbers of repeated rows take: in the file, and in memory."""
    if distinct >= rows:
        return 0, 0
    return rows * STORED.itemsize + len(MARK), rows * 12 + distinct * 8


def read_numbers(path: Path, rows: int) -> tuple[NDArray[np.int32] | None, int]:
    """Return what append_numbers wrote, None if nothing, and the length before it."""
    size = path.stat().st_size
    before = size - rows * STORED.itemsize - len(MARK)
    if before < 0:
        return None, size
    with path.open("rb") as file:
        file.seek(-len(MARK), os.SEEK_END)
        if file.read() != MARK:
            return None, size
        file.seek(before)
        stored = file.read(rows * STORED.itemsize)
    return np.frombuffer(stored, STORED).astype(np.int32), before
