"""Searching one generation: all its segments, merged, as row ids.

Nothing here runs SQL. Distances only rank candidates; the caller joins the row ids to
the live table and computes the distances that it returns.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from duckvec.errors import QueryError
from duckvec.index_types import get_index_type
from duckvec.metrics import Metric, normalize_rows
from duckvec.tracking import Generation, LiveSegment

# Entries whose row went since the last look at the table are fetched on top of k, up
# to this share of the entries: beyond it every row id is cheaper than a search.
MAX_SURPLUS_SHARE = 0.25


def search_generation(
    generation: Generation,
    metric: Metric,
    queries: NDArray[np.float32],
    k: int,
    search_params: Mapping[str, int],
    *,
    visible_rows: int,
    threads: int,
    recall: float | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the row ids of candidates that hold the k nearest covered rows.

    Args:
        generation: what to search.
        metric: the index's metric.
        queries: float32 (nq, d), finite.
        k: rows wanted of each query.
        search_params: checked settings of the caller's; each segment has its own
            default for the rest, with "overfetch" for compressed types.
        visible_rows: rows up to the watermark that the caller's snapshot sees; what
            is missing against `covered_rows` may be among the nearest entries, and is
            fetched on top.
        threads: for a batch; one query is searched by the thread that asks, because
            waking another one takes longer.
        recall: a target that every segment can meet, in place of its default.

    Returns:
        Row ids int64 (total,) of all queries one after another, and int32 (nq + 1,)
        offsets into them.
    """
    surplus = max(0, generation.covered_rows - visible_rows)
    settings = [
        {**live.segment.row.setting(recall), **search_params}
        for live in generation.segments
    ]
    widths = [k * setting.get("overfetch", 1) + surplus for setting in settings]
    wanted = min(widths, default=surplus)
    entries = generation.entries
    if wanted >= entries or surplus > MAX_SURPLUS_SHARE * entries:
        return _everything(generation, len(queries))
    if len(queries) == 1:
        threads = 1
    if metric.normalizes:
        queries = normalize_rows(queries)
    found = [
        _search_segment(live, queries, width, setting, threads)
        for live, width, setting in zip(
            generation.segments, widths, settings, strict=True
        )
    ]
    rowids = found[0][0] if len(found) == 1 else _nearest(found, max(widths))
    valid = rowids >= 0
    counts = valid.sum(axis=1)
    if bool((counts < min(wanted, entries)).any()):
        # A type that ran short cannot say what it missed: all rows are candidates.
        short = np.flatnonzero(counts < min(wanted, entries))
        return _with_everything(generation, rowids, valid, short)
    return rowids[valid], _offsets(counts)


def _search_segment(
    live: LiveSegment,
    queries: NDArray[np.float32],
    wanted: int,
    search_params: Mapping[str, int],
    threads: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    row = live.segment.row
    own = get_index_type(row.index_type).clamp_search_params(
        search_params, row.params, wanted
    )
    hits = live.segment.index().search(
        queries, wanted, own, threads=threads, allowed=live.alive
    )
    rowids = live.rowids[hits.positions]  # position -1 reads the last; masked below
    rowids[hits.positions < 0] = -1
    return rowids, hits.distances


def _nearest(
    found: list[tuple[NDArray[np.int64], NDArray[np.float32]]], wanted: int
) -> NDArray[np.int64]:
    """Merge the segments' candidates, and keep the nearest of each query.

    Twice the wanted number stays, so that rounding in the ranking distances does not
    decide between near ties of different segments.
    """
    wanted = 2 * wanted
    rowids = np.concatenate([rows for rows, _ in found], axis=1)
    distances = np.concatenate([near for _, near in found], axis=1)
    distances = np.where(rowids < 0, np.inf, distances)
    if rowids.shape[1] <= wanted:
        return rowids
    keep = np.argpartition(distances, wanted - 1, axis=1)[:, :wanted]
    return np.take_along_axis(rowids, keep, axis=1)


def _everything(
    generation: Generation, queries: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    rowids = all_rowids(generation)
    return np.tile(rowids, queries), _offsets(np.full(queries, len(rowids)))


def _with_everything(
    generation: Generation,
    rowids: NDArray[np.int64],
    valid: NDArray[np.bool_],
    short: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    complete = all_rowids(generation)
    lists = [row[ok] for row, ok in zip(rowids, valid, strict=True)]
    for query in short:
        lists[query] = complete
    return np.concatenate(lists), _offsets(np.array([len(rows) for rows in lists]))


def all_rowids(generation: Generation) -> NDArray[np.int64]:
    """Return the row ids of all entries that have one."""
    parts = [
        live.rowids if live.alive is None else live.rowids[live.alive]
        for live in generation.segments
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _offsets(counts: NDArray[np.integer]) -> NDArray[np.int32]:
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise QueryError(
            f"{offsets[-1]} candidates are too many for one batch; join fewer queries"
        )
    return offsets.astype(np.int32)
