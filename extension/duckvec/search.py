"""Searching one generation: all its segments, merged, as row ids.

Nothing here runs SQL. Distances only rank candidates; the caller joins the row ids to
the live table and computes the distances that it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from duckvec.errors import QueryError
from duckvec.index_types import get_index_type
from duckvec.index_types.base import Hits
from duckvec.metrics import Metric, normalize_rows
from duckvec.selections import SelectedSegment, Selection
from duckvec.tracking import Generation, LiveSegment

# Entries whose row went since the last look at the table are fetched on top of k, up
# to this share of the entries: beyond it every row id is cheaper than a search.
MAX_SURPLUS_SHARE = 0.25
# Joining so many selected rows to the table costs one search less than choosing some.
FEW_SELECTED = 256
# Vectors of selected entries are compared one and all where that is quicker than a
# search wide enough to meet k of them, whose width grows with rows / selected: where
# selected squared is less than this many times the rows. A single search has to copy
# the vectors first, 1 microsecond each; many share the copy.
PACKED_FOR_ONE, PACKED_FOR_MANY = 20, 400


@dataclass(frozen=True)
class Wanted:
    """What one search looks for.

    Attributes:
        metric: the index's metric.
        queries: float32 (nq, d), finite.
        k: rows wanted of each query.
        params: checked settings of the caller's; each segment has its own default for
            the rest, with "overfetch" for compressed types.
        threads: for a batch; one query is searched by the thread that asks, because
            waking another one takes longer.
    """

    metric: Metric
    queries: NDArray[np.float32]
    k: int
    params: Mapping[str, int]
    threads: int

    def settings(self, live: LiveSegment) -> dict[str, int]:
        """Return the search parameters for a segment."""
        return {**live.segment.row.search_params, **self.params}

    def width(self, live: LiveSegment) -> int:
        """Return how many candidates of a segment hold the k nearest."""
        return self.k * self.settings(live).get("overfetch", 1)


Candidates = tuple[NDArray[np.int64], NDArray[np.int32]]
"""Row ids (total,) of all queries one after another, and (nq + 1,) offsets into them.
"""


def search_generation(
    generation: Generation, wanted: Wanted, visible_rows: int
) -> Candidates:
    """Return the row ids of candidates that hold the k nearest covered rows.

    Args:
        generation: what to search.
        wanted: what to look for.
        visible_rows: rows up to the watermark that the caller's snapshot sees; what
            is missing against `covered_rows` may be among the nearest entries, and is
            fetched on top.
    """
    surplus = max(0, generation.covered_rows - visible_rows)
    widths = [wanted.width(live) + surplus for live in generation.segments]
    entries = generation.entries
    few = min(widths, default=0) >= entries
    if few or surplus > MAX_SURPLUS_SHARE * entries:
        return everything(all_rowids(generation), len(wanted.queries))
    searches = [
        _Search(live, live.alive, width)
        for live, width in zip(generation.segments, widths, strict=True)
    ]
    return _search(searches, wanted, entries, lambda: all_rowids(generation))


def search_selection(
    generation: Generation, wanted: Wanted, selection: Selection
) -> Candidates:
    """Return the row ids of candidates that hold the k nearest selected rows.

    Args:
        generation: what to search.
        wanted: what to look for.
        selection: the only rows that may be returned, all of them visible.
    """
    selected = selection.segments(generation)
    widths = [wanted.width(live) for live in generation.segments]
    entries = sum(each.count for each in selected or ())
    few = FEW_SELECTED if len(wanted.queries) == 1 else 0
    if selected is None or entries <= max(few, min(widths, default=0)):
        return everything(selection.rowids, len(wanted.queries))
    searches = [
        _Search(live, each.allowed, width, each)
        for live, width, each in zip(generation.segments, widths, selected, strict=True)
        if each.count
    ]
    return _search(searches, wanted, entries, lambda: selection.rowids)


@dataclass(frozen=True)
class _Search:
    """The search of one segment: its width, and which of its entries may be found."""

    live: LiveSegment
    allowed: NDArray[np.bool_] | None
    width: int
    selected: SelectedSegment | None = None


def _search(
    searches: list[_Search],
    wanted: Wanted,
    entries: int,
    all_of_them: Callable[[], NDArray[np.int64]],
) -> Candidates:
    """Search all segments, and merge what they find.

    Args:
        searches: one for each segment.
        wanted: what to look for.
        entries: how many entries can be found.
        all_of_them: gives their row ids.
    """
    queries = wanted.queries
    if wanted.metric.normalizes:
        queries = normalize_rows(queries)
    found = [_search_segment(each, queries, wanted) for each in searches]
    widths = [each.width for each in searches]
    rowids = found[0][0] if len(found) == 1 else _nearest(found, max(widths))
    valid = rowids >= 0
    counts = valid.sum(axis=1)
    short = counts < min(*widths, entries)
    if bool(short.any()):
        # A type that ran short cannot say what it missed: all rows are candidates.
        return _with_everything(all_of_them(), rowids, valid, np.flatnonzero(short))
    return rowids[valid], _offsets(counts)


def _search_segment(
    search: _Search, queries: NDArray[np.float32], wanted: Wanted
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    live = search.live
    hits = _search_packed(search, queries, wanted)
    if hits is None:
        row = live.segment.row
        own = get_index_type(row.index_type).clamp_search_params(
            wanted.settings(live), row.params, search.width
        )
        hits = live.segment.index().search(
            queries,
            search.width,
            own,
            threads=wanted.threads if len(queries) > 1 else 1,
            allowed=search.allowed,
        )
    rowids = live.rowids[hits.positions]  # position -1 reads the last; masked below
    rowids[hits.positions < 0] = -1
    return rowids, hits.distances


def _search_packed(
    search: _Search, queries: NDArray[np.float32], wanted: Wanted
) -> Hits | None:
    """Search the selected entries' vectors alone, where that is quicker."""
    selected = search.selected
    factor = PACKED_FOR_ONE if len(queries) == 1 else PACKED_FOR_MANY
    if selected is None or selected.count**2 >= factor * len(search.live.rowids):
        return None
    packed = selected.packed(wanted.metric)
    if packed is None:
        return None
    index, positions = packed
    threads = wanted.threads if len(queries) > 1 else 1
    hits = index.search(queries, search.width, {}, threads=threads)
    found = np.where(hits.positions < 0, -1, positions[hits.positions])
    return Hits(found, hits.distances)


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


def everything(rowids: NDArray[np.int64], queries: int) -> Candidates:
    """Return the same row ids for each of so many queries.

    Raises:
        QueryError: they are too many.
    """
    _check_total(len(rowids) * queries)
    return np.tile(rowids, queries), _offsets(np.full(queries, len(rowids)))


def _with_everything(
    all_of_them: NDArray[np.int64],
    rowids: NDArray[np.int64],
    valid: NDArray[np.bool_],
    short: NDArray[np.int64],
) -> Candidates:
    lists = [row[ok] for row, ok in zip(rowids, valid, strict=True)]
    for query in short:
        lists[query] = all_of_them
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
    _check_total(int(offsets[-1]))
    return offsets.astype(np.int32)


def _check_total(candidates: int) -> None:
    if candidates > np.iinfo(np.int32).max:
        raise QueryError(
            f"{candidates} candidates are too many for one batch; join fewer queries"
        )
