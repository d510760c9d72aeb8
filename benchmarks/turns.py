"""Several ways to do the same, timed in turns, so that all meet the same minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def take_turns(
    ways: Mapping[str, Callable[[int], Any]],
    rounds: int,
    per_turn: int,
    count: int,
    after: Callable[[str, int, Any], None] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of each call of each way, without those of a first round.

    Args:
        ways: what is called with the number of a query.
        rounds: how often the ways take turns; one more round warms up.
        per_turn: calls of a way before it is the next one's turn.
        count: how many queries there are; they are used one after another.
        after: called with the way's name, the number and the answer; not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            for at in range(per_turn):
                number = (turn * per_turn + at) % count
                started = time.perf_counter()
                answer = way(number)
                seconds = time.perf_counter() - started
                if turn:
                    times[name].append(seconds)
                if after is not None:
                    after(name, number, answer)
    return times
