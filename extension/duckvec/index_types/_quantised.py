"""How far the distances of a compressed type are off, measured when it is built.

Only the codes are kept, so nothing can be learned of their errors later. What a range
search needs of them stands behind the library's file: three little-endian doubles and
a mark. Files of before have none, and then all rows of the lists that are looked into
are candidates.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types._range import lengths
from duckvec.metrics import Metric

SAMPLED_ROWS = 1024
SAMPLED_QUERIES = 256
BLOCK = 32  # queries at once: distances to the whole sample take memory
NEIGHBOURS = 8
SAME = 1e-6
ROUNDING = 1e-5  # of a row's length: what the library's sums are off by, and more
MARK = b"ERRORS01"
STORED = struct.Struct("<3d8s")


@dataclass(frozen=True)
class Errors:
    """By how much the distances that codes give exceed those of the rows.

    A row that is a neighbour of a query at a usual distance is off by `usual` at most,
    hardly ever more: the error of its code and the way to the query have little to do
    with each other. They have all to do with each other where the query is the row:
    `own` comes on top then. In between, its share falls from 1 at the query to 0 at
    the distance `near`.

    Attributes:
        usual: added to a distance; to a product, times the query's length.
        own: added to a squared distance or a product.
        near: how far sampled neighbours are, less the distance of a row to itself.
    """

    usual: float
    own: float
    near: float

    @classmethod
    def measure(
        cls,
        vectors: NDArray[np.float32],
        metric: Metric,
        decoded: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        covered: float,
    ) -> Errors:
        """Measure on neighbours within a sample of the rows.

        Args:
            vectors: (rows, d), at least one.
            metric: how distances are measured.
            decoded: gives what the codes of vectors stand for.
            covered: which share of the sampled errors `usual` is no smaller than.
        """
        random = np.random.default_rng(0)
        count = min(len(vectors), SAMPLED_ROWS)
        chosen = np.sort(random.choice(len(vectors), count, replace=False))
        rows = np.ascontiguousarray(vectors[chosen])
        true = _Distances(metric, rows.astype(np.float64))
        seen = _Distances(metric, decoded(rows).astype(np.float64))
        off = true.rows - seen.rows
        own = _products(true.rows if metric.is_similarity else off, off)
        queries = min(count, SAMPLED_QUERIES)
        blocks = [
            _neighbour_errors(true, seen, np.arange(start, min(start + BLOCK, queries)))
            for start in range(0, queries, BLOCK)
        ]
        errors, distance, alone = (
            np.concatenate(each) for each in zip(*blocks, strict=True)
        )
        some = np.isfinite(distance)
        if not some.any():
            return cls(0.0, max(float(own.max()), 0.0), 0.0)
        beyond = distance - alone
        off_by = float(np.quantile(errors[some], covered, method="higher"))
        return cls(
            usual=max(off_by, 0.0) + ROUNDING * float(np.sqrt(true.squares.max())),
            own=max(float(own.max()), 0.0),
            near=float(np.median(beyond[some])),
        )

    def widened(
        self, metric: Metric, queries: NDArray[np.float32], cut: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return (nq,) the cuts for distances that the codes give."""
        size = lengths(queries)
        alone = metric.offset - size**2 if metric.is_similarity else 0.0
        beyond = np.maximum(cut - alone, 0)
        if self.near > 0:
            share = np.clip(1 - beyond / self.near, 0, 1)
        else:
            share = np.ones(len(cut))
        if metric.is_similarity:
            return np.asarray(cut + self.usual * size + share * self.own)
        squared = np.maximum(cut + self.usual, 0) ** 2 + share * self.own
        return np.where(cut < 0, cut, np.sqrt(squared))


class _Distances:
    """The distances of queries to some rows (n, d), in doubles."""

    def __init__(self, metric: Metric, rows: NDArray[np.float64]) -> None:
        self.metric = metric
        self.rows = rows
        self.squares = _products(rows, rows)

    def of(self, queries: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (nq, n)."""
        return self._from(queries, queries @ self.rows.T, self.squares)

    def at(
        self, queries: NDArray[np.float64], which: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return (nq, m): the distance of each query to some rows, given by (nq, m)."""
        products = np.einsum("ij,ikj->ik", queries, self.rows[which])
        return self._from(queries, products, self.squares[which])

    def _from(
        self,
        queries: NDArray[np.float64],
        products: NDArray[np.float64],
        squares: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        if self.metric.is_similarity:
            return np.asarray(self.metric.offset - products)
        both = _products(queries, queries)[:, np.newaxis] + squares
        return np.asarray(np.sqrt(np.maximum(both - 2 * products, 0)))


def _products(
    left: NDArray[np.float64], right: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (n,) the inner products of rows with rows."""
    return np.asarray(np.einsum("ij,ij->i", left, right))


def _neighbour_errors(
    true: _Distances, seen: _Distances, queries: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Compare what codes say of the nearest rows of some rows with the truth.

    Returns:
        (nq, NEIGHBOURS) by how much distances that codes give exceed the true ones, for
        products as a share of the query's length; the true ones, infinite where there
        is no such neighbour; and (nq, 1) the distance of each query to itself.
    """
    similar = true.metric.is_similarity
    rows, at = true.rows[queries], np.arange(len(queries))
    exact = true.of(rows)
    alone = np.zeros((len(rows), 1))
    if similar:
        alone[:, 0] = exact[at, queries]
    exact[at, queries] = np.inf
    size = np.sqrt(true.squares[queries])[:, np.newaxis]
    same = SAME * (size**2 if similar else size)
    exact[exact <= alone + same] = np.inf  # copies of the row
    width = min(NEIGHBOURS, len(true.rows))
    nearest = np.argpartition(exact, width - 1, axis=1)[:, :width]
    distance = np.take_along_axis(exact, nearest, axis=1)
    errors = seen.at(rows, nearest) - distance
    if similar:
        errors /= np.maximum(size, np.finfo(np.float32).tiny)
    return errors, distance, alone


def measuring_bytes(rows: int, dimension: int) -> int:
    """Return the memory that `Errors.measure` needs for a moment, about.

    The sample, its codes and their difference; a block's distances.
    """
    count = min(rows, SAMPLED_ROWS)
    return count * ((4 + 3 * 8) * dimension + 4 * 8 * BLOCK)


def append_errors(path: Path, errors: Errors | None) -> None:
    """Write what was measured behind a library's file."""
    if errors is not None:
        with path.open("ab") as file:
            file.write(STORED.pack(errors.usual, errors.own, errors.near, MARK))


def read_errors(path: Path) -> Errors | None:
    """Return what append_errors wrote, None if nothing."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < STORED.size:
            return None
        file.seek(size - STORED.size)
        usual, own, near, mark = STORED.unpack(file.read())
    return Errors(usual, own, near) if mark == MARK else None
