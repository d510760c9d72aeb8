"""Ctrl-C and `interrupt()`: long calls end within a second and leave nothing behind."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import duckvec
from duckvec import builder, calls, keyboard
from duckvec.errors import BuildCancelledError
from duckvec.index_types import get_index_type
from duckvec.measuring import Runner
from duckvec.metrics import METRICS
from tests.data import AS_SCRIPT, Vectors, clustered, create, create_table, search
from tests.upkeep import eventually

pytestmark = pytest.mark.core

SOON = 1.0  # seconds from the interruption until the call is over
SLACK = 1.0  # and what a busy machine may add
# DuckDB raises the second one where a worker thread of its own ran our function.
# The third comes where Ctrl-C is pressed just as the main thread enters our function.
INTERRUPTED = (
    duckdb.InterruptException,
    RuntimeError,
    duckdb.InvalidInputException,
    KeyboardInterrupt,
)
SLOW = 20.0  # what a call takes that nobody interrupts


@contextlib.contextmanager
def _after(
    seconds: float, act: Callable[[], Any], begun: threading.Event | None = None
) -> Iterator[list[float]]:
    """Do something in another thread after a while; yield when it was done.

    The while begins with `begun`: Ctrl-C outside the call would end pytest.
    """
    times: list[float] = []
    if begun:
        begun.clear()

    def run() -> None:
        if begun:
            begun.wait(SLOW)
        time.sleep(seconds)
        times.append(time.monotonic())
        act()

    thread = threading.Thread(target=run)
    thread.start()
    yield times
    thread.join()


def _press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def _raised_by(call: Callable[[], Any]) -> BaseException | None:
    """Return what a call raises, and Ctrl-C that comes late with it.

    Let out of here it would end pytest.
    """
    raised: BaseException | None = None
    try:
        try:
            call()
        except INTERRUPTED as error:
            raised = error
        except duckdb.Error as error:
            # As DuckDB 1.5 tells of it where Ctrl-C meets the start of a function.
            if "KeyboardInterrupt" not in str(error):
                raise
            raised = error
        time.sleep(0.01)  # Python handles a signal here at the latest
    except KeyboardInterrupt as error:
        return error
    return raised


class _Step:
    """A stand-in for a step of a library that takes long and cannot be interrupted."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.go_on = threading.Event()
        self.ended = threading.Event()

    def __call__(self) -> None:
        self.ended.clear()
        self.began.set()
        self.go_on.wait(SLOW)
        self.ended.set()

    def finish(self) -> None:
        """Let the step that runs go on, and the next one wait again."""
        self.go_on.set()
        assert self.ended.wait(5)
        self.go_on.clear()


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

    def none_is_there() -> bool:
        return con.execute("FROM vector_indexes()").fetchall() == []

    eventually(lambda: not instance.keeper.pending() and none_is_there(), 10)
    assert con.execute("FROM duckvec.indexes").fetchall() == []
    folder = path.with_name(path.name + ".duckvec")
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("how", ["interrupt", "ctrl-c"])
def test_an_interrupted_build_leaves_nothing_and_the_connection_works_on(
    con: duckdb.DuckDBPyConnection, path: Path, vectors: Vectors, step: _Step, how: str
) -> None:
    create_table(con, vectors)
    act = con.interrupt if how == "interrupt" else _press_ctrl_c
    with _after(0.5, act, step.began) as times:
        assert _raised_by(lambda: create(con, "FLAT"))
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


@pytest.mark.parametrize("how", ["interrupt", "ctrl-c"])
def test_a_build_that_is_done_just_then_changes_nothing(
    con: duckdb.DuckDBPyConnection, path: Path, vectors: Vectors, step: _Step, how: str
) -> None:
    create_table(con, vectors)

    def act() -> None:
        if how == "interrupt":
            con.interrupt()
        else:
            assert keyboard._file
            noticed = keyboard.Noticed(keyboard._file.fileno())
            _press_ctrl_c()
            eventually(lambda: bool(noticed))
        step.go_on.set()

    for pause in (0.5, 0.53):
        step.go_on.clear()
        with _after(pause, act, step.began):
            assert _raised_by(lambda: create(con, "FLAT"))
        assert step.ended.wait(5)
        _leaves_nothing(con, path)


def test_a_compaction_is_interrupted_and_the_index_stays(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, step: _Step
) -> None:
    create_table(con, vectors)
    step.go_on.set()
    create(con, "FLAT")
    step.go_on.clear()
    con.execute("INSERT INTO items SELECT id + 10000, price, embedding FROM items")
    before = con.execute("SELECT file FROM vector_index_segments()").fetchall()
    with (
        _after(0.5, con.interrupt, step.began) as times,
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
    with _after(0.5, _press_ctrl_c, step.began):
        raised = _raised_by(lambda: handle.create("items", "FLAT"))
        assert isinstance(raised, KeyboardInterrupt)
    step.finish()
    interrupted = pytest.raises(duckdb.InterruptException)
    with _after(0.5, con.interrupt, step.began), interrupted:
        handle.create("items", "FLAT")
    _leaves_nothing(con, path)


WAITING = """
import os, signal, sys, threading, time
import duckvec
from duckvec.index_types import get_index_type

signal.signal(signal.SIGINT, signal.default_int_handler)
flat = get_index_type("FLAT")
build, began, go_on = flat.build, threading.Event(), threading.Event()

def slow(*arguments, **options):
    began.set()
    go_on.wait(20)
    return build(*arguments, **options)

def press_ctrl_c():
    began.wait(20)
    time.sleep(0.2)
    pressed.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

con = duckvec.connect(sys.argv[1])
handle = duckvec.load(con)
con.execute("CREATE TABLE items AS SELECT i AS id, [i, 1]::FLOAT[2] AS v "
            "FROM range(5) t(i)")
handle.create("items", "FLAT")
flat.build, pressed = slow, []
con.execute("INSERT INTO items SELECT i, [i, 2]::FLOAT[2] FROM range(100, 5600) t(i)")
threading.Thread(target=press_ctrl_c).start()
try:
    handle.wait()
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - pressed[0] < 2)
print(len(con.execute("FROM vector_search('items', [3, 1], 10)").fetchall()))
go_on.set()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
def test_ctrl_c_ends_a_wait(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_SCRIPT + WAITING, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("interrupted True\n10\n", "")


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
    time.sleep(calls.ABANDONED_SECONDS + SLACK)
    count = len(ran)
    time.sleep(0.5)
    assert len(ran) == count < 60, "nothing goes on behind it"
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


@pytest.mark.parametrize(
    "call",
    [
        "create_vector_index(x.n, 'FLAT')",
        "drop_vector_index(x.n)",
        "vector_compact(x.n)",
        "vector_recall(x.n)",
    ],
)
def test_a_column_is_no_argument_of_a_long_call(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, call: str
) -> None:
    create_table(con, vectors)
    for sql in (
        f"FROM (VALUES ('items'), ('items')) x(n), {call}",
        f"SELECT (SELECT count(*) FROM {call}) FROM (VALUES ('items'), ('items')) x(n)",
    ):
        with pytest.raises(duckdb.BinderException):
            con.execute(sql).fetchall()
    assert con.execute("FROM vector_indexes()").fetchall() == []


def test_an_interrupted_caller_leaves_the_work_of_others_alone(
    con: duckdb.DuckDBPyConnection, path: Path, vectors: Vectors, step: _Step
) -> None:
    create_table(con, vectors)
    create_table(con, vectors, "others")
    cursors = [con.cursor() for _ in range(3)]
    failures: list[BaseException] = []

    def build(cursor: duckdb.DuckDBPyConnection, table: str) -> None:
        duckvec.load(cursor)
        try:
            create(cursor, "FLAT", table)
        except BaseException as error:
            failures.append(error)

    threads = []
    for cursor, table in zip(cursors, ("items", "others", "others"), strict=True):
        threads.append(threading.Thread(target=build, args=(cursor, table)))
        threads[-1].start()
        assert step.began.wait(5)
        time.sleep(0.3)
    cursors[1].interrupt()
    threads[1].join(5)
    step.go_on.set()
    for thread in threads:
        thread.join(20)
    assert [type(failure) for failure in failures] == [duckdb.InterruptException]
    found = con.execute("SELECT collection, state FROM vector_indexes()").fetchall()
    assert sorted(name for name, _ in found) == ["items", "others"]


def test_what_was_given_up_holds_no_memory(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_table(con, clustered(20_000, 32))  # three segments of a megabyte
    instance = duckvec.load(con)._instance
    flat = get_index_type("FLAT")
    build, held = flat.build, []

    def slow(*arguments: Any, **options: Any) -> Any:
        held.append(instance.memory.held_bytes())
        if len(held) == 3:
            time.sleep(1)
        return build(*arguments, **options)

    monkeypatch.setattr(flat, "build", slow)
    monkeypatch.setattr(flat, "maps_files", False)
    gc.collect()
    gc.disable()
    try:
        with _after(0.8, con.interrupt), pytest.raises(duckdb.InterruptException):
            create(con, "FLAT", index_file_size=1)
        assert len(held) == 3 and held[-1] > 0
        eventually(lambda: not instance.keeper.pending(), 10)
        assert con.execute("FROM vector_indexes()").fetchall() == [], "it was committed"
        eventually(lambda: not instance.memory.held_bytes(), 5)
    finally:
        gc.enable()


def test_without_a_place_for_files_a_call_runs_all_the_same(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> None:
        raise FileNotFoundError("no usable temporary directory")

    create_table(con, vectors)
    monkeypatch.setattr(tempfile, "TemporaryFile", nowhere)
    monkeypatch.setattr(keyboard, "_tried", False)
    monkeypatch.setattr(keyboard, "_file", None)
    assert create(con, "IVF_FLAT")["row_count"] == len(vectors.rows)


def test_ctrl_c_is_noticed_after_a_handler_was_set_anew(
    con: duckdb.DuckDBPyConnection, path: Path, vectors: Vectors, step: _Step
) -> None:
    create_table(con, vectors)
    for _ in range(2):  # as the cells of a notebook do
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with _after(0.5, _press_ctrl_c, step.began) as times:
            assert _raised_by(lambda: create(con, "FLAT"))
            assert time.monotonic() - times[0] < SOON + SLACK
        step.finish()
    _leaves_nothing(con, path)
