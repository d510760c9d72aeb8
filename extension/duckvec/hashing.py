"""Hashes of vectors, by which entries of an index know their rows again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK_BYTES = 1 << 19


def hash_vectors(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each row of a float32 array (n, d).

    Multilinear hashing (Lemire & Kaser 2014, "Strongly universal string hashing is
    fast") over pairs of components, each mixed by a multiply-xorshift first so that
    components with few significant bits, as integers have, spread over all bits.
    The constants are part of the file format.
    """
    count, dimension = vectors.shape
    width = (dimension + 1) // 2
    weights = np.random.Generator(np.random.PCG64(0xD0C5)).integers(
        0, 1 << 64, size=width + 1, dtype=np.uint64
    ) | np.uint64(1)
    result = np.empty(count, dtype=np.uint64)
    rows = max(1, _BLOCK_BYTES // max(1, 8 * width))
    for start in range(0, count, rows):
        block = vectors[start : start + rows]
        if dimension % 2:
            block = np.pad(block, ((0, 0), (0, 1)))
        words = np.ascontiguousarray(block).view(np.uint64)
        mixed = words * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
        result[start : start + rows] = mixed @ weights[:width] + weights[width]
    result ^= result >> np.uint64(33)
    return result
