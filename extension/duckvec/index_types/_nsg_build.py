"""Building an NSG graph with faiss so that it ends, whatever the data.

Fu et al., Fast Approximate Nearest Neighbor Search with the Navigating Spreading-out
Graph, VLDB 2019. Two loops in faiss's build have no way out. One gathers more
candidates than there are rows: lengths are kept below the rows. The other attaches
rows that cannot be reached to a row with a free link, and runs for ever when there is
none, which happens with a small out_degree or with vectors that are all equally far
from each other.

Where a sample shows that links will be scarce, the links of a row are chosen from
out_degree candidates, and rows are given 2 * out_degree + 2 places. Then a place is
always free: each chosen link fills at most two places, one at each end, and each
attached row one more, so the rows that can be reached cannot fill all of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types.base import Cancelled, Progress, report, stop_if_cancelled

ROWS_PER_BLOCK = 4096
NEIGHBOURS_SHARE = 0.5
LARGEST_EXHAUSTIVE = 50_000
LISTS_PROBED = 16
SAMPLE = 64
SCARCE = 0.95
ATTACH_LENGTH = 100


def build_graph(
    faiss: Any,
    vectors: NDArray[np.float32],
    metric: int,
    params: Mapping[str, int],
    progress: Progress | None,
    cancelled: Cancelled | None,
) -> Any:
    """Return a faiss IndexNSGFlat of at least 128 distinct vectors (n, d)."""
    rows, dimension = vectors.shape
    most = rows - 1
    degree = min(params["out_degree"], most)
    pool = min(params["candidate_pool_size"], most)
    nearest = _nearest_of(faiss, vectors, metric)
    if _links_are_scarce(vectors, metric == faiss.METRIC_L2, nearest, degree, pool):
        pool, degree = degree, min(2 * degree + 2, most)
    neighbours = _neighbours(
        vectors, nearest, min(params["knng"], most), progress, cancelled
    )
    stop_if_cancelled(cancelled)
    index = faiss.IndexNSGFlat(dimension, degree, metric)
    index.nsg.L = min(params["search_length"], most)
    index.nsg.C = pool
    index.nsg.search_L = min(ATTACH_LENGTH, most)
    index.build(vectors, neighbours)
    return index


def _nearest_of(faiss: Any, vectors: NDArray[np.float32], metric: int) -> Any:
    """Return an index that finds nearest rows: exact, or of lists for many rows."""
    rows, dimension = vectors.shape
    flat = faiss.IndexFlat(dimension, metric)
    if rows <= LARGEST_EXHAUSTIVE:
        flat.add(vectors)
        return flat
    lists = round(4 * rows**0.5)
    index = faiss.IndexIVFFlat(flat, dimension, lists, metric)
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors)
    index.nprobe = LISTS_PROBED
    return index


def _neighbours(
    vectors: NDArray[np.float32],
    nearest: Any,
    count: int,
    progress: Progress | None,
    cancelled: Cancelled | None,
) -> NDArray[np.int64]:
    """Return the nearest other rows of each row: (n, count) positions."""
    rows = len(vectors)
    found = np.empty((rows, count), dtype=np.int64)
    for start in range(0, rows, ROWS_PER_BLOCK):
        stop_if_cancelled(cancelled)
        report(progress, NEIGHBOURS_SHARE * start / rows)
        stop = min(rows, start + ROWS_PER_BLOCK)
        _, ids = nearest.search(vectors[start:stop], count + 1)
        own = np.arange(start, stop)[:, np.newaxis]
        found[start:stop] = _without(ids, own, rows, count)
    return found


def _without(
    ids: NDArray[np.int64], own: NDArray[np.int64], rows: int, count: int
) -> NDArray[np.int64]:
    """Drop each row itself; where too few were found, take others at random."""
    good = (ids != own) & (ids >= 0)
    order = np.argsort(~good, axis=1, kind="stable")[:, :count]
    kept = np.take_along_axis(ids, order, axis=1)
    lacking = ~np.take_along_axis(good, order, axis=1)
    if lacking.any():
        random = np.random.default_rng(own[0, 0])
        others = (own + random.integers(1, rows, kept.shape)) % rows
        kept = np.where(lacking, others, kept)
    return kept


def _links_are_scarce(
    vectors: NDArray[np.float32], squared: bool, nearest: Any, degree: int, pool: int
) -> bool:
    """Say whether sampled rows would use nearly all of their links."""
    random = np.random.default_rng(SAMPLE)
    sample = random.choice(len(vectors), min(SAMPLE, len(vectors)), replace=False)
    _, ids = nearest.search(vectors[sample], pool + 1)
    links = []
    for row, line in zip(sample, ids, strict=True):
        candidates = line[(line >= 0) & (line != row)]
        links.append(_count_links(vectors, int(row), candidates, degree, squared))
    return float(np.mean(links)) > SCARCE * degree


def _count_links(
    vectors: NDArray[np.float32],
    row: int,
    candidates: NDArray[np.int64],
    most: int,
    squared: bool,
) -> int:
    """Count the candidates, nearest first, that are nearer to row than to a link."""
    chosen: list[int] = []
    others = vectors[candidates]
    if squared:
        others = others - vectors[row]  # near the origin, little is lost by rounding
        squares = np.einsum("ij,ij->i", others, others)
        between = squares[:, np.newaxis] + squares - 2 * (others @ others.T)
        away = squares
    else:
        between, away = -(others @ others.T), -(others @ vectors[row])
    for candidate in range(len(candidates)):
        if len(chosen) == most:
            break
        if not (between[chosen, candidate] < away[candidate]).any():
            chosen.append(candidate)
    return len(chosen)
