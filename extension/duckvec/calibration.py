"""Measuring what searches of an index find when it is built.

The result is the index's default search parameters, and a ladder of other settings with
what they reach, as far as the time for it allows.

Two samples are searched with settings of the type's grid and compared with the exact
answer over the same segment; the cheapest setting with which both reach the target
becomes the default. Where a type knows from which setting on a search looks at a row,
only compressed ones are searched, for the order of their candidates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from duckvec.climbing import ENOUGH, LOWEST_RECALL, Climb, measure_recalls
from duckvec.index_types.base import IndexType, SegmentIndex
from duckvec.ladders import Ladder, Measured, Rung
from duckvec.metrics import Metric
from duckvec.samples import NOWHERE, K, Places, Sample, draw_sample

# Above the recall of 0.95 that is wanted for new queries, by the noise of a sample.
TARGET_RECALL = 0.96
SEARCHED = 64  # of each kind, where only searches tell what a setting finds
# A compressed type is fetched this many times k before its candidates are rescored.
OVERFETCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
OVERFETCH_STEPS = (4, 16, 64)
# Seconds that DuckDB takes to join and rescore one candidate, in a batch: what a
# larger over-fetch is weighed against (measured: 4 to 5 microseconds, two threads).
RESCORE_SECONDS = 4e-6
# Beyond a recall of ENOUGH, the ladder goes on as long as the whole calibration stays
# within this share of the build's seconds, or for this many where that is longer.
LADDER_SHARE = 0.1
LADDER_SECONDS = 0.05
# What over-fetches are looked for, where every setting has several.
LEVELS = (LOWEST_RECALL, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)


def calibrate(
    index_type: IndexType,
    index: SegmentIndex,
    vectors: NDArray[np.float32],
    metric: Metric,
    params: Mapping[str, int],
    *,
    threads: int,
    build_seconds: float,
    check: Callable[[], None] = lambda: None,
) -> Measured:
    """Return the cheapest search parameters that reach the target, and a ladder.

    The default is the same whatever the time; how far the ladder goes is not.

    Args:
        index_type: the type that built `index`.
        index: a segment's index over `vectors`.
        vectors: float32 (n, d), prepared as for the build.
        metric: the index's metric.
        params: the segment's effective build parameters.
        threads: how many threads the searches may use.
        build_seconds: what the build took.
        check: called before each search; what it raises ends the measuring.

    Returns:
        Settings, with "overfetch" for compressed types. The default is the most
        thorough one where none reaches the target on both samples.
    """
    deadline = time.perf_counter() + LADDER_SHARE * build_seconds
    rows = len(vectors)
    k = min(K, rows - 1)
    grid = index_type.search_grid(params, rows, K)
    if not grid:
        return Measured(index_type.default_search_params(params, rows), ())
    finds_all = index_type.exhaustive(grid[0], params) and not index_type.compressed
    if k < 1 or finds_all:
        return Measured(grid[0], (Rung(1.0, grid[0]),))
    sample = draw_sample(vectors, metric, k)

    def places(
        queries: Sample, setting: Mapping[str, int], factor: int = 1
    ) -> NDArray[np.int64]:
        check()
        width = min(K * factor + 1, rows)
        own = index_type.clamp_search_params(setting, params, width)
        hits = index.search(queries.queries, width, own, threads=threads)
        return queries.places(hits.positions)

    known = index.reach(sample.queries, sample.truth, threads=threads)
    if index_type.compressed and known is not None:
        return _with_overfetch(sample, grid, known, places, deadline)
    if known is not None:
        name, least = known
        reached = [sample.recall(least <= setting[name]) for setting in grid]
        chosen = grid[_first_of(reached, TARGET_RECALL)]
        return Measured(chosen, _ladder(zip(reached, grid, strict=True)))
    kinds = [Climb(kind, grid, places) for kind in sample.kinds(SEARCHED)]
    at = max(climb.first(TARGET_RECALL) for climb in kinds)
    deadline = max(deadline, time.perf_counter() + LADDER_SECONDS)
    recalls = measure_recalls(kinds, at, len(grid), deadline)
    measured = ((recalls[each], grid[each]) for each in sorted(recalls))
    return Measured(grid[at], _ladder(measured))


def _first_of(recalls: Sequence[float], level: float) -> int:
    """Return the first setting that reaches a level, else the last."""
    reached = (at for at, recall in enumerate(recalls) if recall >= level)
    return next(reached, len(recalls) - 1)


def _ladder(measured: Iterable[tuple[float, Mapping[str, int]]]) -> Ladder:
    """Return the settings that find more than all cheaper ones, and not too little."""
    rungs: list[Rung] = []
    for recall, setting in measured:
        if rungs and rungs[-1].recall < LOWEST_RECALL:
            rungs.pop()
        # Rounded down, so that the number that is shown can be asked for.
        rung = Rung(math.floor(recall * 1000 + 1e-6) / 1000, dict(setting))
        if not rungs or rung.recall > rungs[-1].recall:
            rungs.append(rung)
    return tuple(rungs)


class _Choice(NamedTuple):
    """A setting by its number, an over-fetch, and the recall of both."""

    recall: float
    at: int
    factor: int


class _Overfetch:
    """What settings of a compressed type find with several over-fetches.

    A thorough search tells what cheaper ones find at least: where a cheaper setting
    looks at a row, its place there is no worse, because it competes with fewer.
    """

    def __init__(
        self,
        sample: Sample,
        grid: Sequence[Mapping[str, int]],
        known: tuple[str, NDArray[np.int64]],
        places: Places,
    ) -> None:
        name, self._least = known
        self._sample = sample
        self._grid = grid
        self._places = places
        self._values = [setting[name] for setting in grid]
        self._made: list[tuple[int, NDArray[np.int64]]] = []
        self._pace = np.inf  # seconds of one query for each unit of the value
        self.looked_at = [sample.recall(self._least <= value) for value in self._values]

    def search(self, at: int, most: int) -> float:
        """Search with a setting; return the recall with that over-fetch."""
        started = time.perf_counter()
        place = self._places(self._sample, self._grid[at], most)
        seconds = (time.perf_counter() - started) / len(place)
        self._pace = min(self._pace, seconds / self._values[at])
        self._made.append((at, place))
        return self._sample.recall(place < K * most)

    def search_until(self, at: int, level: float) -> None:
        """Search for ever more candidates until they hold enough neighbours.

        Few candidates are fetched first: long lists of them take most of the time.
        """
        for most in OVERFETCH_STEPS:
            if self.search(at, most) >= min(level, self.looked_at[at]):
                break

    def seconds(self, at: int) -> float:
        """Return what a search of the whole sample may take with a setting."""
        return len(self._least) * self._pace * self._values[at]

    def choose(self, level: float, settings: Iterable[int]) -> list[_Choice]:
        """Return what takes least and finds enough, rescoring included; or nothing."""
        best: list[_Choice] = []
        cost = math.inf
        for at in settings:
            searching = self._pace * self._values[at]
            if self.looked_at[at] < level or searching >= cost:
                continue
            made = [place for each, place in self._made if each >= at]
            if not made:
                break
            found = np.where(
                self._least <= self._values[at], np.min(made, axis=0), NOWHERE
            )
            for factor in OVERFETCH:
                recall = self._sample.recall(found < K * factor)
                seconds = searching + K * factor * RESCORE_SECONDS
                if recall >= level and seconds < cost:
                    best, cost = [_Choice(recall, at, factor)], seconds
        return best


def _with_overfetch(
    sample: Sample,
    grid: Sequence[Mapping[str, int]],
    known: tuple[str, NDArray[np.int64]],
    places: Places,
    deadline: float,
) -> Measured:
    """Return the default and the ladder of a compressed type.

    One search, thorough enough for a recall of ENOUGH, tells of all cheaper settings; a
    more thorough one follows as the time allows.
    """
    search = _Overfetch(sample, grid, known, places)
    last = _first_of(search.looked_at, ENOUGH)
    search.search_until(last, ENOUGH)
    now = time.perf_counter()
    if now < deadline:
        deadline = max(deadline, now + LADDER_SECONDS)
        more = _first_of(search.looked_at, LEVELS[-1])
        while more > last and now + search.seconds(more) > deadline:
            more -= 1
        if more > last:
            search.search(more, OVERFETCH_STEPS[1])
            last = more
    found = search.choose(TARGET_RECALL, range(last + 1))
    if not found:
        last = len(grid) - 1
        recall = search.search(last, OVERFETCH[-1])
        found = [_Choice(recall, last, OVERFETCH[-1])]
    # A higher level never takes a cheaper setting of the grid than a lower one.
    choices = found
    for level in LEVELS:
        if level > TARGET_RECALL:
            choices = choices + search.choose(level, range(choices[-1].at, last + 1))
    for level in reversed(LEVELS):
        if level < TARGET_RECALL:
            choices = search.choose(level, range(choices[0].at + 1)) + choices
    rungs = [
        (each.recall, {**grid[each.at], "overfetch": each.factor}) for each in choices
    ]
    (default,) = found
    return Measured(
        {**grid[default.at], "overfetch": default.factor},
        _ladder(rungs),
    )
