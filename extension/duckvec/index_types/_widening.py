"""Searching again, wider, where a library found fewer positions than it should."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from duckvec.index_types.base import Hits

WIDEST = 65_536
THIN_SHARE = 0.5
MUCH_MORE = 4

Nearest = Callable[
    [NDArray[np.float32], int, float], tuple[NDArray[np.int64], NDArray[np.float32]]
]
"""Given queries, a width and an effort, 1 or more, that multiplies the search's
setting, return positions and distances of that width, -1 and inf for none."""


def search_widening(
    nearest: Nearest,
    queries: NDArray[np.float32],
    k: int,
    rows: int,
    allowed: NDArray[np.bool_] | None,
    most_effort: int,
) -> Hits:
    """Return k positions for each query, or all that the most effort finds.

    For libraries without a selector: what is not allowed is dropped from wider and
    wider results. Efforts grow to most_effort, from 1 or, where a part is allowed,
    from the fourth root of what it is a part of: the nearest allowed ones are farther
    away (recall then stays that of all rows, or above; measured on 20,000 sentence
    embeddings, 50 to 0.5 % allowed).
    """
    can_be_found = rows if allowed is None else int(np.count_nonzero(allowed))
    wanted = min(k, can_be_found)
    positions = np.full((len(queries), wanted), -1, dtype=np.int64)
    distances = np.full((len(queries), wanted), np.inf, dtype=np.float32)
    if wanted == 0:
        return Hits(positions, distances)
    short = np.arange(len(queries))
    width, effort = wanted, 1.0
    widest = wanted if allowed is None else max(wanted, min(rows, WIDEST))
    if allowed is not None:
        width = min(widest, wanted * -(-rows // can_be_found) + 8)
        effort = min(most_effort, (rows / can_be_found) ** 0.25)
    while True:
        ids, values = nearest(queries[short], width, effort)
        unsure = _few_allowed(ids, wanted, can_be_found / rows, allowed)
        ids, values = _keep_allowed(ids, values, wanted, allowed)
        positions[short], distances[short] = ids, values
        short = short[(ids[:, -1] < 0) | unsure]
        if len(short) == 0 or (effort >= most_effort and width >= widest):
            return Hits(positions, distances)
        effort = min(most_effort, effort * 4)
        width = min(widest, width * 4)


def _few_allowed(
    ids: NDArray[np.int64],
    wanted: int,
    share: float,
    allowed: NDArray[np.bool_] | None,
) -> NDArray[np.bool_]:
    """Tell for each query whether its surroundings are not allowed.

    What was found is at their edge then, and half unseen, unless it is a good deal more
    than is wanted.
    """
    if allowed is None:
        return np.zeros(len(ids), dtype=np.bool_)
    found = ids >= 0
    count = (found & allowed[ids]).sum(axis=1)
    thin = count < THIN_SHARE * share * found.sum(axis=1)
    return np.asarray(thin & (count < MUCH_MORE * wanted))


def _keep_allowed(
    ids: NDArray[np.int64],
    values: NDArray[np.float32],
    wanted: int,
    allowed: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    good = ids >= 0
    if allowed is not None:
        good &= allowed[ids]
    order = np.argsort(~good, axis=1, kind="stable")[:, :wanted]
    good = np.take_along_axis(good, order, axis=1)
    ids = np.where(good, np.take_along_axis(ids, order, axis=1), -1)
    values = np.where(good, np.take_along_axis(values, order, axis=1), np.inf)
    return ids, values.astype(np.float32)
