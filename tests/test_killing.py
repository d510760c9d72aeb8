"""Processes are killed at every step: all that was committed is there and is found."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.killing import (
    ALL_POINTS,
    POINTS,
    Change,
    Damage,
    Death,
    check,
    kill_again_and_again,
    new_victim,
)


@pytest.mark.parametrize("half", [0, 1])
def test_killed_at_every_named_point(half: int, tmp_path: Path) -> None:
    chance = random.Random(half)
    counts: Counter[str] = Counter()
    for number, point in enumerate(list(POINTS)[half::2]):
        victim = new_victim(tmp_path / f"{number}.db")
        # At its second time there is an index already; a catalog is made but once.
        times = 2 if number % 3 == 1 and point != "catalog made" else 1
        death = Death(point, bool(number % 2), times, 20)
        last, at_its_point = victim.kill_a_child(number, death, ALL_POINTS)
        assert at_its_point, f"{point} did not come by {last}"
        check(victim, chance, counts)
    assert counts["searches compared"] >= 5 * len(POINTS) // 2


@pytest.mark.core
def test_killed_at_random(tmp_path: Path) -> None:
    until = time.monotonic() + 4
    counts = kill_again_and_again(
        tmp_path, 3, lambda kills: kills >= 2 and time.monotonic() > until
    )
    assert counts["searches compared"] >= 5


def test_a_row_that_is_lost_is_noticed(tmp_path: Path) -> None:
    victim = new_victim(tmp_path / "test.db")
    victim.blocks[0] = (40, 1)
    with pytest.raises(Damage, match="rows"):
        check(victim, random.Random(1), Counter())
    victim.blocks.clear()
    victim.doubtful = Change(0, 40, 1)  # it may have been committed, and was not
    check(victim, random.Random(1), Counter())
    assert not victim.blocks.get(0, (0, 0))[1]
