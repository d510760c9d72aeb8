"""Searching a sample with better and better settings of a type.

For types of which only a search can tell what it finds: graphs and trees.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from duckvec.samples import NOWHERE, K, Places, Sample

QUERIES_AT_ONCE = 10
# A more thorough setting takes no more than so many times what the one before took.
MOST_SLOWER = 2.0
LOWEST_RECALL = 0.8  # cheaper settings are of no interest
ENOUGH = 0.99  # is measured whatever the time, so that it can be asked for


class Climb:
    """What the settings of a grid find of one kind of queries.

    What a setting finds, more thorough ones find too: queries that lack nothing are
    not searched again.
    """

    def __init__(
        self, sample: Sample, grid: Sequence[Mapping[str, int]], places: Places
    ) -> None:
        self.sample = sample
        self._grid = grid
        self._places = places
        # How many neighbours each setting misses of each query, -1 where not searched.
        self._lacking = np.full((len(grid), len(sample.queries)), -1)
        self._seconds = np.full(len(grid), np.nan)  # of one query

    def first(self, level: float) -> int:
        """Return the first setting that finds enough, else the last."""
        for at in range(len(self._grid)):
            if self.recall(at, level) is not None:
                return at
        return len(self._grid) - 1

    def recall(self, at: int, level: float = 0.0) -> float | None:
        """Return what a setting finds, None as soon as it misses the level.

        Those queries come first that lack most with cheaper settings.
        """
        size = self.sample.truth.size
        spare = int(size * (1 - level) + 1e-6)
        lacking = self._lacking[at]
        cheaper = self._lacking[:at]
        before = np.where(cheaper < 0, NOWHERE, cheaper).min(axis=0, initial=NOWHERE)
        lacking[before == 0] = 0
        before[before == NOWHERE] = -1
        order = np.argsort(-before, kind="stable")
        order = order[lacking[order] < 0]
        missed = int(lacking[lacking > 0].sum())
        for start in range(0, len(order), QUERIES_AT_ONCE):
            if missed > spare:
                return None
            some = order[start : start + QUERIES_AT_ONCE]
            started = time.perf_counter()
            places = self._places(self.sample.part(some), self._grid[at])
            self._seconds[at] = (time.perf_counter() - started) / len(some)
            lacking[some] = (places >= K).sum(axis=1)
            missed += int(lacking[some].sum())
        return None if missed > spare else 1 - missed / size

    def seconds(self, at: int) -> float:
        """Return what it may take to measure a setting, from the one beside it."""
        cheaper = self._lacking[:at]
        todo = int(((self._lacking[at] < 0) & ~(cheaper == 0).any(axis=0)).sum())
        known = np.flatnonzero(~np.isnan(self._seconds))
        nearest = int(known[np.abs(known - at).argmin()])
        slower = MOST_SLOWER ** max(0, at - nearest)
        return todo * slower * float(self._seconds[nearest])


def measure_recalls(
    kinds: Sequence[Climb], chosen: int, settings: int, deadline: float
) -> dict[int, float]:
    """Return the recall of a setting, of better ones, and of cheaper ones.

    Up to a recall of ENOUGH better ones are measured whatever the time.
    """
    recalls: dict[int, float] = {}

    def measure(at: int, level: float) -> bool:
        seconds = sum(climb.seconds(at) for climb in kinds)
        is_due = at == chosen or (at > chosen and recalls[at - 1] < ENOUGH)
        if time.perf_counter() + seconds > deadline and not is_due:
            return False
        found = [climb.recall(at, level) for climb in kinds]
        both = [recall for recall in found if recall is not None]
        if len(both) < len(kinds):
            return False
        recalls[at] = min(both)
        return True

    for at in range(chosen, settings):
        if not measure(at, 0.0) or recalls[at] == 1:
            break
    for at in reversed(range(chosen)):
        if not measure(at, LOWEST_RECALL):
            break
    return recalls
