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
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from duckvec.climbing import ENOUGH, LOWEST_RECALL, MOST_SLOWER, Climb, measure_recalls
from duckvec.index_types.base import IndexType, SegmentIndex
from duckvec.ladders import Ladder, Measured, Rung
from duckvec.metrics import Metric
from duckvec.samples import NOWHERE, K, Places, Sample, draw_sample

# Above the recall of 0.95 that is wanted for new queries, by the noise of a sample.
TARGET_RECALL = 0.96
SEARCHED = 64  # of each kind, where only searches tell what a setting finds
MOST_TRIED = 3
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
        width = min(K * factor + 1, rows)
        own = index_type.clamp_search_params(setting, params, width)
        hits = index.search(queries.queries, width, own, threads=threads)
        return queries.places(hits.positions)

    known = index.reach(sample.queries, sample.truth, threads=threads)
    if index_type.compressed:
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
    """Searches of a compressed type with several over-fetches."""

    def __init__(
        self, sample: Sample, grid: Sequence[Mapping[str, int]], places: Places
    ) -> None:
        self.sample = sample
        self.grid = grid
        self._places = places
        # By setting and over-fetch, what was found and what one query took.
        self._made: dict[tuple[int, int], tuple[NDArray[np.int64], float]] = {}

    def search(self, at: int, most: int) -> tuple[NDArray[np.int64], float]:
        """Return the places of all neighbours, and seconds for one query.

        The same is not searched twice.
        """
        if (at, most) in self._made:
            return self._made[at, most]
        started = time.perf_counter()
        place = self._places(self.sample, self.grid[at], most)
        self._made[at, most] = place, (time.perf_counter() - started) / len(place)
        return self._made[at, most]

    def cheapest(self, first: int) -> tuple[int, int] | None:
        """Return the first setting that finds enough, with its smallest over-fetch.

        The next ones are weighed against it as long as the shorter lists to rescore
        may be worth the longer search.
        """
        best: tuple[int, int] | None = None
        cost = np.inf
        tried = 0
        for at in range(first, len(self.grid)):
            factor, seconds = self._smallest(at)
            if factor is not None:
                rescoring = K * factor * RESCORE_SECONDS
                if seconds + rescoring < cost:
                    best = at, factor
                    cost = seconds + rescoring
                tried += 1
                if tried == MOST_TRIED or rescoring < seconds / 2:
                    break
        return best

    def seconds(self, at: int) -> float:
        """Return what one query took with a setting that was searched."""
        return max(taken for (each, _), (_, taken) in self._made.items() if each == at)

    def last(self) -> int:
        """Return the most thorough setting that was searched."""
        return max(at for at, _ in self._made)

    def found(self, first: int, last: int) -> NDArray[np.int64]:
        """Return the best places in the searches with a range of settings.

        Where a cheaper setting looks at a row, its place there is no worse: it competes
        with fewer.
        """
        settings = range(first, last + 1)
        made = [place for (at, _), (place, _) in self._made.items() if at in settings]
        return np.asarray(np.min(made, axis=0))

    def _smallest(self, at: int) -> tuple[int | None, float]:
        """Return the over-fetch that finds enough, if any, and seconds for one query.

        Few candidates are fetched first: long lists of them take most of the time.
        """
        seconds = 0.0
        for most in OVERFETCH_STEPS:
            place, seconds = self.search(at, most)
            for factor in OVERFETCH:
                recall = self.sample.recall(place < K * factor)
                if factor <= most and recall >= TARGET_RECALL:
                    return factor, seconds
        return None, seconds


def _with_overfetch(
    sample: Sample,
    grid: Sequence[Mapping[str, int]],
    known: tuple[str, NDArray[np.int64]] | None,
    places: Places,
    deadline: float,
) -> Measured:
    """Return the default and the ladder of a compressed type."""
    name, least = known or ("", np.zeros(sample.truth.shape, dtype=np.int64))
    values = [setting.get(name, 0) for setting in grid]
    reached = [sample.recall(least <= value) for value in values]
    search = _Overfetch(sample, grid, places)
    first = _first_of(reached, TARGET_RECALL)
    at, factor = search.cheapest(first) or (len(grid) - 1, OVERFETCH[-1])
    default = _Choice(sample.recall(search.found(at, at) < K * factor), at, factor)
    now = time.perf_counter()
    goal = LEVELS[-1] if now < deadline else ENOUGH
    deadline = max(deadline, now + LADDER_SECONDS)
    choices = [default]
    if known is not None:
        choices = _choices(search, default, values, least, reached, goal, deadline)
    settings = [{**grid[each.at], "overfetch": each.factor} for each in choices]
    recalls = (each.recall for each in choices)
    return Measured(
        {**grid[at], "overfetch": factor},
        _ladder(zip(recalls, settings, strict=True)),
    )


def _choices(
    search: _Overfetch,
    default: _Choice,
    values: Sequence[int],
    least: NDArray[np.int64],
    reached: Sequence[float],
    goal: float,
    deadline: float,
) -> list[_Choice]:
    """Return what takes least for each level, where it is known what is looked at.

    One more search, as thorough as the time allows, tells of all cheaper settings
    what they find at least.

    Args:
        search: what was searched so far.
        default: what was chosen.
        values: what each setting gives to the parameter of `least`.
        least: from which value on a search looks at each neighbour.
        reached: the share of neighbours that each setting looks at.
        goal: the recall to search for.
        deadline: when to end.
    """
    sample = search.sample
    pace = search.seconds(default.at) / values[default.at]
    searched = search.last()
    last = max(searched, _first_of(reached, goal))
    least_due = max(searched, _first_of(reached, ENOUGH))
    left = deadline - time.perf_counter()
    while last > least_due and len(sample.queries) * pace * values[last] > left:
        last -= 1
    wide = [most for most in OVERFETCH_STEPS if most >= default.factor]
    for most in wide:
        place, seconds = search.search(last, most)
        recall = sample.recall(place < K * most)
        again = MOST_SLOWER * seconds * len(sample.queries)
        in_time = time.perf_counter() + again <= deadline
        if recall >= min(goal if in_time else ENOUGH, reached[last]):
            break

    def choose(level: float, settings: Iterable[int]) -> list[_Choice]:
        best: list[_Choice] = []
        cost = math.inf
        for at in settings:
            if reached[at] < level or pace * values[at] >= cost:
                continue
            found = np.where(
                least <= values[at], search.found(at, len(values)), NOWHERE
            )
            for factor in OVERFETCH:
                recall = sample.recall(found < K * factor)
                seconds = pace * values[at] + K * factor * RESCORE_SECONDS
                if recall >= level and seconds < cost:
                    best, cost = [_Choice(recall, at, factor)], seconds
        return best

    # A higher level never takes a cheaper setting of the grid than a lower one.
    choices = [default]
    for level in LEVELS:
        if level > TARGET_RECALL:
            choices += choose(level, range(choices[-1].at, last + 1))
    for level in reversed(LEVELS):
        if level < TARGET_RECALL:
            choices[:0] = choose(level, range(choices[0].at + 1))
    return choices
