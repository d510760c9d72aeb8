"""Random operations, threads and lives, in short; `make soak` runs them for long."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.differential import draw_steps, run_steps
from tests.lifecycle import run_lives

ROOT = Path(__file__).parents[1]


@pytest.mark.core
@pytest.mark.parametrize("seed", [1, 3])
def test_a_few_random_operations(tmp_path: Path, seed: int) -> None:
    report = run_steps(seed, draw_steps(seed, 30), tmp_path)
    assert report.counts["plain searches compared"] > 20


@pytest.mark.parametrize("seed", [10, 12, 14, "random"])
def test_random_operations(tmp_path: Path, seed: int | str) -> None:
    number = seed if isinstance(seed, int) else random.SystemRandom().randrange(10**9)
    report = run_steps(number, draw_steps(number, 40), tmp_path)
    assert report.counts["plain searches compared"] > 20


@pytest.mark.core
@pytest.mark.parametrize("seed", ["2", "3"], ids=["updates", "forced checkpoints"])
def test_threads(seed: str) -> None:
    command = [sys.executable, "-m", "tests.soak", "--only", "threads"]
    done = subprocess.run(
        [*command, "--minutes", "0.1", "--seed", seed],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "searches compared" in done.stdout


@pytest.mark.core
def test_many_lives(tmp_path: Path) -> None:
    assert run_lives(tmp_path, 12, seed=1)["lives"] == 12


def test_a_failing_list_of_operations_ends_with_1(tmp_path: Path) -> None:
    file = tmp_path / "operations.json"
    file.write_text('{"seed": 4, "large": false, "operations": [["no such", 1]]}')
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--replay", str(file)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1
    assert "seed 4, after 1 operations" in done.stdout
