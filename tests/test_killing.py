"""Processes are killed at every step: all that was committed is there and is found."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.dying import ALL_POINTS, POINTS, Change, Death
from tests.killing import (
    Damage,
    check,
    indexed_victim,
    kill_again_and_again,
    new_victim,
)

FIRST_ONLY = ("catalog made", "folder made")
COMMITS = ("catalog rows written", "build committed", "seal or merge committed")
DEATHS = [(point, True) for point in POINTS] + [(point, False) for point in COMMITS]


@pytest.mark.parametrize("half", [0, 1])
def test_killed_at_every_named_point(half: int, tmp_path: Path) -> None:
    chance = random.Random(half)
    counts: Counter[str] = Counter()
    for number, (point, after) in enumerate(DEATHS[half::2]):
        path = tmp_path / f"{number}.db"
        first = point in FIRST_ONLY
        victim = new_victim(path) if first else indexed_victim(path)
        plan = ("change", "create") if first else ALL_POINTS
        last, at_its_point = victim.kill_a_child(
            number, Death(point, after, 1, 20), plan
        )
        assert at_its_point, f"{point} did not come by {last}"
        check(victim, chance, counts)
    assert counts["searches compared"] >= 5 * (len(DEATHS) // 2)


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


def test_an_index_that_is_lost_is_noticed(tmp_path: Path) -> None:
    victim = new_victim(tmp_path / "test.db")
    victim.index = "IVF_FLAT"
    with pytest.raises(Damage, match="index is None"):
        check(victim, random.Random(1), Counter())
