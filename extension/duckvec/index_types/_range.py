"""Range searches: what every type's share, and the one by ever wider searches.

Distances here are DuckDB's, computed by a library and so off by rounding. What may be
within the radius is returned; DuckDB computes the distances again and drops the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from duckvec.metrics import Metric

UNIT_ROUNDOFF = 2.0**-24
LARGEST_FLOAT = float(np.finfo(np.float32).max)
UNDERFLOW = 2.0**-126  # a product that is smaller may be anything down to zero

FIRST_WIDTH = 64
WIDER = 4
LARGEST_SHARE = 0.25
"""Where a search for so many of the rows stays within the radius, all become
candidates: DuckDB looks at them faster than a graph or tree finds them."""

FIRST_BATCH = 4
LARGEST_BATCH = 64
POSITIONS_AT_ONCE = 2**20

SAMPLED_ROWS = 1024
SAMPLE_FACTOR = 2.0

Search = Callable[
    [NDArray[np.float32], int], tuple[NDArray[np.int64], NDArray[np.float32]]
]
"""Given queries and a width, returns positions and distances as `Hits` has them."""


@dataclass(frozen=True)
class InRange:
    """What a range search found in one segment: candidates, in no order.

    Attributes:
        positions: int64 (total,), of all queries one after another.
        offsets: int64 (nq + 1,), where those of each query begin and end.
    """

    positions: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, found: list[NDArray[np.int64]]) -> InRange:
        """Return the positions of each query as one array."""
        offsets = np.zeros(len(found) + 1, dtype=np.int64)
        np.cumsum([len(positions) for positions in found], out=offsets[1:])
        empty = [np.empty(0, dtype=np.int64)]
        return cls(np.concatenate(empty + found), offsets)


def allowed_positions(
    rows: int, allowed: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    """Return every position that may be returned."""
    if allowed is None:
        return np.arange(rows, dtype=np.int64)
    return np.flatnonzero(allowed).astype(np.int64)


def lengths(queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the length of each query (nq, d)."""
    wide = queries.astype(np.float64)
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", wide, wide)))


def cuts(
    metric: Metric,
    queries: NDArray[np.float32],
    radius: float,
    longest: Callable[[], float],
) -> NDArray[np.float64]:
    """Return (nq,) the largest computed distance that DuckDB may find in the radius.

    The bounds are those of `_exact`: of a library that sums in any order, of DuckDB,
    and of vectors that are doubles in the table. Where a sum may overflow on the way,
    nothing is known of it, and the cut is infinite.

    Args:
        metric: how distances are measured.
        queries: (nq, d).
        radius: DuckDB's largest distance.
        longest: gives the length of the longest row; called for inner products only.
    """
    dimension = queries.shape[1]
    norms = lengths(queries)
    gamma = (dimension + 8) * UNIT_ROUNDOFF
    if metric.is_similarity:
        products = norms * longest()
        slack = 8 * gamma * products + dimension * UNDERFLOW
        return np.where(products < LARGEST_FLOAT / 2, radius + slack, np.inf)
    if radius < 0:
        return np.full(len(queries), -np.inf)
    # A row that is near enough is at most this long: the triangle inequality.
    reach = 2.1 * norms + 1.1 * radius
    rounded = (radius + 2 * UNIT_ROUNDOFF * reach) * (1 + 4 * gamma)
    rounded += math.sqrt(dimension * UNDERFLOW)
    return np.where(rounded < math.sqrt(LARGEST_FLOAT), rounded, np.inf)


def keys_of(metric: Metric, cut: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return cuts as squared distances, or as inner products with their sign turned."""
    if metric.is_similarity:
        return cut - metric.offset
    return np.where(cut < 0, -np.inf, cut * np.abs(cut))


def sampled_longest(
    vectors: Callable[[NDArray[np.int64]], NDArray[np.float32]], rows: int
) -> float:
    """Return a length that hardly a row exceeds, from a sample of the rows.

    For searches that are approximate anyway: a look at every row would read the file.
    """
    count = min(rows, SAMPLED_ROWS)
    sample = np.linspace(0, rows - 1, count).astype(np.int64)
    return SAMPLE_FACTOR * float(lengths(vectors(sample)).max(initial=0.0))


def batches(count: int, found: list[NDArray[np.int64]]) -> Iterator[slice]:
    """Yield slices of this many queries, smaller where the last ones found much.

    What a library finds for a batch is held twice for a while. `found` is the caller's
    list of what each query before found.
    """
    start, size = 0, FIRST_BATCH
    while start < count:
        stop = min(count, start + size)
        yield slice(start, stop)
        most = max((len(one) for one in found[start:stop]), default=0)
        size = max(1, min(LARGEST_BATCH, POSITIONS_AT_ONCE // max(1, most)))
        start = stop


def search_range_widening(
    search: Search,
    queries: NDArray[np.float32],
    cut: NDArray[np.float64],
    rows: int,
    allowed: NDArray[np.bool_] | None,
) -> InRange:
    """Search for more and more nearest rows until the last one is outside the cut.

    A search for k rows looks around further than at k rows, so the last width, up to
    four times what is within, finds the more of it. Only queries whose last one is
    inside are searched again. Where a search is cut short, or the width passes a share
    of the rows, all rows are candidates. What is not allowed is dropped at the end:
    the way through it is the same.

    Args:
        search: finds the nearest rows, allowed or not, by ascending distance.
        queries: (nq, d).
        cut: (nq,), the largest distance that is within.
        rows: how many there are.
        allowed: (rows,), True for the positions that may be returned.
    """
    everything = allowed_positions(rows, allowed)
    found = [everything] * len(queries)
    hopeless = (cut == -np.inf) | (len(everything) == 0)
    for row in np.flatnonzero(hopeless):
        found[row] = everything[:0]
    unsure = np.flatnonzero(~hopeless & (cut < LARGEST_FLOAT))
    width = min(FIRST_WIDTH, rows)
    while len(unsure):
        again = []
        at_once = max(1, POSITIONS_AT_ONCE // width)
        for start in range(0, len(unsure), at_once):
            some = unsure[start : start + at_once]
            positions, distances = search(queries[some], width)
            for row, ids, values in zip(some, positions, distances, strict=True):
                ids, values = ids[ids >= 0], values[ids >= 0]
                inside = values <= cut[row]
                if len(ids) < rows and inside.all():
                    again.append(row)
                    continue
                ids = ids[inside]
                found[row] = ids if allowed is None else ids[allowed[ids]]
        width *= WIDER
        if width > max(FIRST_WIDTH, LARGEST_SHARE * rows):
            break
        unsure = np.asarray(again, dtype=np.int64)
    return InRange.of(found)
