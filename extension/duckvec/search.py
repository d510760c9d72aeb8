"""Searching one generation: all its segments, merged, as row ids.

Nothing here runs SQL. Distances only rank candidates; the caller joins the row ids to
the live table and computes the distances that it returns.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from duckvec.errors import QueryError
from duckvec.index_types import get_index_type
from duckvec.index_types.base import SegmentIndex
from duckvec.metrics import Metric, are_bounded, normalize_rows
from duckvec.selections import SelectedSegment, Selection
from duckvec.tracking import Generation, LiveSegment

# Entries whose row went since the last look at the table are fetched on top of k, up
# to this share of the entries: beyond it every row id is cheaper than a search.
MAX_SURPLUS_SHARE = 0.25
# Joining so many selected rows to the table costs one search less than choosing some.
FEW_SELECTED = 256
# The nearest rows that pass a filter are farther away than those that over-fetches were
# measured with, and closer together: codes tell them apart less well.
SELECTED_OVERFETCH = 8
# Vectors of selected entries are compared one and all where that is quicker than a
# search wide enough to meet k of them, whose width grows with rows / selected: where
# selected squared is less than this many times the rows. A single search has to copy
# the vectors first, 1 microsecond each; many share the copy.
PACKED_FOR_ONE, PACKED_FOR_MANY = 20, 400

# Of one batch: Arrow's lists count their elements by 32 bits.
MOST_CANDIDATES = np.iinfo(np.int32).max

# One batch is searched at a time, with all threads: libraries that compute on several
# threads for each of several callers wait for each other in busy loops (two batches of
# 2,048 queries side by side took three times as long as one after the other, FLAT).
_batches = threading.Lock()


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
        recall: a target that every segment can meet, in place of its default.
        radius: the largest distance wanted; then k is not asked for.
    """

    metric: Metric
    queries: NDArray[np.float32]
    k: int
    params: Mapping[str, int]
    threads: int
    recall: float | None = None
    radius: float | None = None

    def settings(self, live: LiveSegment) -> dict[str, int]:
        """Return the search parameters for a segment."""
        return {**live.segment.row.setting(self.recall), **self.params}

    def width(self, live: LiveSegment, *, selected: bool = False) -> int:
        """Return how many candidates of a segment hold the k nearest."""
        overfetch = self.settings(live).get("overfetch")
        if overfetch is None:
            return self.k
        return self.k * max(overfetch, SELECTED_OVERFETCH if selected else 1)


def entries_visited(
    generation: Generation, wanted: Wanted, selection: Selection | None
) -> int | None:
    """Return how many vectors the search of a generation compares, at least.

    None where a library does not tell.
    """
    queries = wanted.queries
    if wanted.metric.normalizes:
        queries = normalize_rows(queries)
    total = 0
    for search in _searches(generation, wanted, 0, selection):
        with _source(search, wanted) as source:
            visited = source.index.entries_visited(
                queries, source.params, source.allowed
            )
        if visited is None:
            return None
        total += visited
    return total


Candidates = tuple[NDArray[np.int64], NDArray[np.int32]]
"""Row ids (total,) of all queries one after another, and (nq + 1,) offsets into them.
"""


def search_generation(
    generation: Generation, wanted: Wanted, visible_rows: int
) -> Candidates:
    """Return the row ids of candidates that hold the covered rows that are wanted.

    Args:
        generation: what to search.
        wanted: what to look for.
        visible_rows: rows up to the watermark that the caller's snapshot sees; what
            is missing against `covered_rows` may be among the nearest entries, and is
            fetched on top.
    """
    surplus = max(0, generation.covered_rows - visible_rows)
    searches = _searches(generation, wanted, surplus, None)
    if wanted.radius is not None:
        return _search_range(searches, wanted, wanted.radius)
    entries = generation.entries
    few = min((search.width for search in searches), default=0) >= entries
    if few or surplus > MAX_SURPLUS_SHARE * entries:
        return everything(all_rowids(generation), len(wanted.queries))
    return _search(searches, wanted, entries, lambda: all_rowids(generation))


def search_selection(
    generation: Generation, wanted: Wanted, selection: Selection
) -> Candidates:
    """Return the row ids of candidates that hold the selected rows that are wanted.

    Args:
        generation: what to search.
        wanted: what to look for.
        selection: the only rows that may be returned, all of them visible.
    """
    selected = selection.segments(generation)
    widths = [wanted.width(live, selected=True) for live in generation.segments]
    entries = sum(each.count for each in selected or ())
    few = FEW_SELECTED if len(wanted.queries) == 1 else 0
    if selected is None or entries <= max(few, min(widths, default=0)):
        return everything(selection.rowids, len(wanted.queries))
    searches = _searches(generation, wanted, 0, selection)
    if wanted.radius is not None:
        return _search_range(searches, wanted, wanted.radius)
    return _search(searches, wanted, entries, lambda: selection.rowids)


@dataclass(frozen=True)
class _Search:
    """The search of one segment: its width, and which of its entries may be found.

    `held` tells whether it is the segment that is held in memory.
    """

    live: LiveSegment
    allowed: NDArray[np.bool_] | None
    width: int
    selected: SelectedSegment | None = None
    held: bool = False


def _searches(
    generation: Generation, wanted: Wanted, surplus: int, selection: Selection | None
) -> list[_Search]:
    """Return a search of each segment; of those where any entry is selected."""
    if selection is None:
        return [
            _Search(
                live,
                live.alive,
                wanted.width(live) + surplus,
                held=live is generation.held,
            )
            for live in generation.segments
        ]
    selected = selection.segments(generation) or ()
    return [
        _Search(
            live,
            each.allowed,
            wanted.width(live, selected=True),
            each,
            held=live is generation.held,
        )
        for live, each in zip(generation.segments, selected, strict=False)
        if each.count
    ]


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
    too_large = np.zeros(len(queries), dtype=np.bool_)
    if wanted.metric.normalizes:
        queries = normalize_rows(queries)
    else:
        too_large = ~are_bounded(queries)
        if bool(too_large.any()):
            queries = np.where(too_large[:, np.newaxis], np.float32(0), queries)
    held = [each for each in searches if each.held]
    stored = [each for each in searches if not each.held]
    found = [_search_segment(each, queries, wanted) for each in stored]
    widths = [each.width for each in stored]
    rowids = found[0][0] if len(found) == 1 else _nearest(found, widths, len(queries))
    for each in held:
        entries -= each.selected.count if each.selected else len(each.live.rowids)
    short = too_large | ((rowids >= 0).sum(axis=1) < min([*widths, entries]))
    # What is held is ranked exactly, and others perhaps by their codes: all of both.
    for each in held:
        rowids = np.hstack([rowids, _search_segment(each, queries, wanted)[0]])
    valid = rowids >= 0
    counts = valid.sum(axis=1)
    if bool(short.any()):
        # A type that ran short cannot say what it missed: all rows are candidates. Nor
        # can one whose distances overflow.
        return _with_everything(all_of_them(), rowids, valid, np.flatnonzero(short))
    return rowids[valid], _offsets(counts)


def _search_segment(
    search: _Search, queries: NDArray[np.float32], wanted: Wanted
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    with _source(search, wanted) as source, _turn(wanted) as threads:
        hits = source.index.search(
            queries,
            search.width,
            source.params,
            threads=threads,
            allowed=source.allowed,
        )
    rowids = source.rowids[hits.positions]  # position -1 reads the last; masked below
    rowids[hits.positions < 0] = -1
    return rowids, hits.distances


def _search_range(searches: list[_Search], wanted: Wanted, radius: float) -> Candidates:
    """Return the row ids of all that may be within the radius, in every segment."""
    queries = wanted.queries
    if wanted.metric.normalizes:
        queries = normalize_rows(queries)
    found, counts = [], []
    for search in searches:
        with _source(search, wanted) as source, _turn(wanted) as threads:
            inside = source.index.search_range(
                queries,
                radius,
                source.params,
                threads=threads,
                allowed=source.allowed,
            )
        found.append(source.rowids[inside.positions])
        counts.append(np.diff(inside.offsets))
    rowids = np.concatenate([np.empty(0, dtype=np.int64), *found])
    if len(found) > 1:
        query = np.concatenate([np.repeat(np.arange(len(c)), c) for c in counts])
        rowids = rowids[np.argsort(query, kind="stable")]
    return rowids, _offsets(np.sum(counts, axis=0, dtype=np.int64))


@dataclass(frozen=True)
class _Source:
    """What is searched for a segment: its index, or the packed vectors of a few."""

    index: SegmentIndex
    params: Mapping[str, int]
    rowids: NDArray[np.int64]
    allowed: NDArray[np.bool_] | None


@contextlib.contextmanager
def _source(search: _Search, wanted: Wanted) -> Iterator[_Source]:
    """Hold what is searched for a segment open."""
    live, selected = search.live, search.selected
    factor = PACKED_FOR_ONE if len(wanted.queries) == 1 else PACKED_FOR_MANY
    if selected is not None and selected.count**2 < factor * len(live.rowids):
        packed = selected.packed(wanted.metric)
        if packed is not None:
            index, positions = packed
            yield _Source(index, {}, live.rowids[positions], None)
            return
    row = live.segment.row
    params = get_index_type(row.index_type).clamp_search_params(
        wanted.settings(live), row.params, search.width
    )
    with live.segment.use() as index:
        yield _Source(index, params, live.rowids, search.allowed)


@contextlib.contextmanager
def _turn(wanted: Wanted) -> Iterator[int]:
    """Wait for the turn of a batch; give the threads that the library may use."""
    if len(wanted.queries) == 1 or wanted.threads == 1:
        yield 1
        return
    with _batches:
        yield wanted.threads


def _nearest(
    found: list[tuple[NDArray[np.int64], NDArray[np.float32]]],
    widths: list[int],
    queries: int,
) -> NDArray[np.int64]:
    """Merge the segments' candidates, and keep the nearest of each query.

    Twice the wanted number stays, so that rounding in the ranking distances does not
    decide between near ties of different segments.
    """
    if not found:
        return np.empty((queries, 0), dtype=np.int64)
    wanted = 2 * max(widths)
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
    if candidates > MOST_CANDIDATES:
        raise QueryError(
            f"{candidates} candidates are too many for one batch; join fewer queries"
        )
