"""Ctrl-C and `interrupt()`: long calls end within a second and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import duckvec
from duckvec import builder
from duckvec.errors import BuildCancelledError
from duckvec.index_types import get_index_type
from duckvec.measuring import Runner
from duckvec.metrics import METRICS
from tests.data import Vectors, create, create_table, search

pytestmark = pytest.mark.core

SOON = 1.0  # seconds from the interruption until the call is over
SLACK = 1.0  # and what a busy machine may add
# DuckDB raises the second one where a worker thread of its own ran our function.
INTERRUPTED = (duckdb.InterruptException, RuntimeError)
SLOW = 20.0  # what a call takes that nobody interrupts


@contextlib.contextmanager
def _after(seconds: float, act: Callable[[], Any]) -> Iterator[list[float]]:
    """Do something in another thread after a while; yield when it was done."""
    times: list[float] = []

    def run() -> None:
        time.sleep(seconds)
        times.append(time.monotonic())
        act()

    thread = threading.Thread(target=run)
    thread.start()
    yield times
    thread.join()


def _press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class _Step:
    """A stand-in for a step of a library that takes long and cannot be interrupted."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.go_on = threading.Event()
        self.ended = threading.Event()

    def __call__(self) -> None:
        self.began.set()
        self.go_on.wait(SLOW)
        self.ended.set()


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Step]:
    """The build of every FLAT index waits in the middle until the test lets it go."""
    made = _Step()
    flat = get_index_type("FLAT")
    build = flat.build

    def slow(*arguments: Any, **options: Any) -> Any:
        made()
        return build(*arguments, **options)

    monkeypatch.setattr(flat, "build", slow)
    yield made
    made.go_on.set()
    assert made.ended.wait(5)


def _leaves_nothing(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Wait a moment for what was interrupted to be gone, and check that it is."""
    instance = duckvec.load(con)._instance
    until = time.monotonic() + SOON + SLACK
    while instance.keeper.pending() and time.monotonic() < until:
        time.sleep(0.02)
    assert not instance.keeper.pending()
    assert con.execute("FROM vector_indexes()").fetchall() == []
    assert con.execute("FROM duckvec.indexes").fetchall() == []
    folder = path.with_name(path.name + ".duckvec")
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("how", ["interrupt", "ctrl-c"])
def test_an_interrupted_build_leaves_nothing_and_the_connection_works_on(
    con: duckdb.DuckDBPyConnection, path: Path, vectors: Vectors, step: _Step, how: str
) -> None:
    create_table(con, vectors)
    act = con.interrupt if how == "interrupt" else _press_ctrl_c
    with _after(0.5, act) as times, pytest.raises(INTERRUPTED):
        create(con, "FLAT")
    assert time.monotonic() - times[0] < SOON + SLACK
    assert step.began.is_set() and not step.ended.is_set()
    _leaves_nothing(con, path)
    assert len(search(con, vectors.query(0))) == 10
    assert create(con, "IVF_FLAT")["row_count"] == len(vectors.rows)
    step.go_on.set()
    assert step.ended.wait(5)
    time.sleep(0.1)
    found = con.execute("SELECT index_type, state FROM vector_indexes()").fetchall()
    assert found == [("IVF_FLAT", "ready")], "what was given up is thrown away"


def test_a_compaction_is_interrupted_and_the_index_stays(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, step: _Step
) -> None:
    create_table(con, vectors)
    step.go_on.set()
    create(con, "FLAT")
    step.go_on.clear()
    step.ended.clear()
    con.execute("INSERT INTO items SELECT id + 10000, price, embedding FROM items")
    before = con.execute("SELECT file FROM vector_index_segments()").fetchall()
    with (
        _after(0.5, con.interrupt) as times,
        pytest.raises(duckdb.InterruptException),
    ):
        con.execute("CALL vector_compact('items')")
    assert time.monotonic() - times[0] < SOON + SLACK
    assert con.execute("SELECT file FROM vector_index_segments()").fetchall() == before
    assert len(search(con, vectors.query(0))) == 10


def test_the_handle_raises_what_python_raises(
    con: duckdb.DuckDBPyConnection, path: Path, vectors: Vectors, step: _Step
) -> None:
    create_table(con, vectors)
    handle = duckvec.load(con)
    with _after(0.5, _press_ctrl_c), pytest.raises(KeyboardInterrupt):
        handle.create("items", "FLAT")
    with _after(0.5, con.interrupt), pytest.raises(duckdb.InterruptException):
        handle.create("items", "FLAT")
    _leaves_nothing(con, path)


def test_ctrl_c_ends_a_wait(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, step: _Step
) -> None:
    create_table(con, Vectors(vectors.rows[:5], vectors.queries))
    handle = duckvec.load(con)
    step.go_on.set()
    create(con, "FLAT")
    step.go_on.clear()
    step.ended.clear()
    con.execute(
        "INSERT INTO items SELECT i, 0, embedding FROM items, range(100, 1200) r(i)"
    )
    with _after(0.5, _press_ctrl_c) as times, pytest.raises(KeyboardInterrupt):
        handle.wait()
    assert time.monotonic() - times[0] < SOON + SLACK
    assert len(search(con, vectors.query(0))) == 10
    step.go_on.set()


def test_measuring_recall_is_interrupted(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    running = Runner.run_exactly
    ran = []

    def slow(*arguments: Any) -> Any:
        time.sleep(0.1)
        ran.append(time.monotonic())
        return running(*arguments)

    monkeypatch.setattr(Runner, "run_exactly", slow)
    with (
        _after(0.5, con.interrupt) as times,
        pytest.raises(duckdb.InterruptException),
    ):
        con.execute("FROM vector_recall('items', sample := 200)")
    assert time.monotonic() - times[0] < SOON + SLACK
    time.sleep(SOON)
    count = len(ran)
    time.sleep(0.5)
    assert len(ran) == count < 30, "nothing goes on behind it"
    assert con.execute("FROM vector_recall('items', sample := 3)").fetchall()


def test_a_call_goes_on_where_its_statement_only_comes_slowly(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_table(con, vectors)
    building = builder.build_index

    def slow(*arguments: Any) -> Any:
        time.sleep(1.5)
        return building(*arguments)

    monkeypatch.setattr(builder, "build_index", slow)
    assert create(con, "IVF_FLAT")["row_count"] == len(vectors.rows)


def test_hnsw_adds_rows_in_blocks_that_are_short() -> None:
    rows = np.random.default_rng(5).standard_normal((30_000, 96), dtype=np.float32)
    kind = get_index_type("HNSW")
    asked = []

    def cancelled() -> bool:
        asked.append(time.monotonic())
        return asked[-1] - asked[0] > 2

    with pytest.raises(BuildCancelledError):
        kind.build(
            rows,
            METRICS["L2"],
            {"M": 32, "efConstruction": 500},
            threads=1,
            cancelled=cancelled,
        )
    assert max(np.diff(asked)) < SOON
