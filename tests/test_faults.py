"""Every call on the files of an index fails once: nothing is lost, and it is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault_cases import CASES, Prepared, calls_of, run_case, small_and_quick
from tests.faults import ERRORS, from_nth, nth

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with small_and_quick():
        yield


@pytest.mark.parametrize("name", CASES)
def test_each_call_fails(name: str, prepared: Prepared, tmp_path: Path) -> None:
    """Each call fails, every other one with all that follow it."""
    case = CASES[name]
    source = prepared.make(case)
    calls = calls_of(case, source, tmp_path / "counted")
    assert len(calls) >= 2
    for number, call in enumerate(calls):
        fails = from_nth(number) if number % 2 else nth(number)
        error = ERRORS[number % len(ERRORS)]
        run_case(case, source, tmp_path / "now", fails, error, call)
