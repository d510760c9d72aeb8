"""Bars while a handle builds, compacts and waits: where they show, and where not."""

from __future__ import annotations

import errno
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest

import duckvec
from duckvec import bars, progress
from duckvec.index_types.flat import Flat
from duckvec.keeper import Task
from tests.data import Vectors, clustered, create_table
from tests.upkeep import create_empty, eventually, insert

pytest.importorskip("tqdm")

SHOWN = "building FLAT on items:  20%"  # reading was the first fifth
Hold = Callable[[Callable[[], object]], None]


class Terminal(io.StringIO):
    """A standard error that says that it is a terminal."""

    def isatty(self) -> bool:
        super().isatty()  # raises where it is closed
        return True


class GoneTerminal(Terminal):
    def __init__(self) -> None:
        super().__init__()
        self.tries = 0

    def write(self, text: str) -> int:
        self.tries += 1
        raise OSError(errno.EIO, "the terminal is gone")


class PausedTerminal(Terminal):
    def __init__(self) -> None:
        super().__init__()
        self.writing, self.goes_on = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.writing.set()
        self.goes_on.wait()
        return super().write(text)


def at(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Make it the standard error; in a test, because pytest sets that before each."""
    monkeypatch.delenv(bars.OFF, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    """Give a function that makes builds of FLAT wait, until its argument says True."""
    monkeypatch.setattr(progress, "SLOW_SECONDS", 0.01)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.01)
    build = Flat.build

    def hold(goes_on: Callable[[], object]) -> None:
        def build_slowly(self: Flat, *arguments: Any, **options: Any) -> Any:
            options["progress"](0.0)
            until = time.monotonic() + 20
            while not goes_on() and time.monotonic() < until:
                time.sleep(0.01)
            return build(self, *arguments, **options)

        monkeypatch.setattr(Flat, "build", build_slowly)

    return hold


@pytest.fixture
def handle(vectors: Vectors) -> Iterator[duckvec.VectorIndexes]:
    con = duckvec.connect()
    create_table(con, vectors)
    yield duckvec.load(con)
    con.close()


def bar_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "duckvec-bar"]


def after(seconds: float) -> Callable[[], bool]:
    until: list[float] = []

    def passed() -> bool:
        until.append(time.monotonic() + seconds)
        return time.monotonic() > until[0]

    return passed


@pytest.mark.core
def test_a_build_and_a_compaction_show_a_bar_on_the_standard_error(
    handle: duckvec.VectorIndexes,
    monkeypatch: pytest.MonkeyPatch,
    hold: Hold,
    capfd: pytest.CaptureFixture[str],
) -> None:
    terminal = at(Terminal(), monkeypatch)
    hold(lambda: SHOWN in terminal.getvalue())
    assert handle.create("items", "FLAT")["row_count"] == 3000
    assert SHOWN in terminal.getvalue()
    assert terminal.getvalue().rsplit("\r", 2)[1].strip() == ""  # it is taken away
    handle._open().execute("INSERT INTO items FROM items")
    terminal.truncate(0)
    assert handle.compact("items")["row_count"] == 6000
    assert SHOWN in terminal.getvalue()
    assert capfd.readouterr().out == ""
    assert not bar_threads()


@pytest.mark.core
def test_waiting_shows_a_bar(monkeypatch: pytest.MonkeyPatch, hold: Hold) -> None:
    terminal = at(Terminal(), monkeypatch)
    con = duckdb.connect()
    handle = duckvec.load(con, background=False)
    create_empty(con)
    handle.create("items", "FLAT")
    insert(con, clustered(5000, 16), 0, 5000)
    hold(lambda: SHOWN in terminal.getvalue())
    handle.wait()
    assert SHOWN in terminal.getvalue()
    assert not bar_threads()
    con.close()


@pytest.mark.core
@pytest.mark.parametrize("why", ["no terminal", "closed", "switched off", "no tqdm"])
def test_nothing_is_shown_where_nobody_can_or_wants_to_see_it(
    handle: duckvec.VectorIndexes,
    monkeypatch: pytest.MonkeyPatch,
    hold: Hold,
    why: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    errors = at(io.StringIO() if why == "no terminal" else Terminal(), monkeypatch)
    if why == "closed":
        errors.close()
    elif why == "switched off":
        monkeypatch.setenv(bars.OFF, "1")
    elif why == "no tqdm":
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    threads: list[threading.Thread] = []
    passed = after(0.3)

    def look() -> bool:
        threads.extend(bar_threads())
        return passed()

    hold(look)
    assert handle.create("items", "FLAT")["row_count"] == 3000
    assert errors.closed or errors.getvalue() == ""
    assert capfd.readouterr() == ("", "")
    assert not threads


@pytest.mark.core
def test_a_terminal_that_goes_away_does_not_end_a_build(
    handle: duckvec.VectorIndexes, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = GoneTerminal()
    at(gone, monkeypatch)
    hold(lambda: gone.tries > 3)
    assert handle.create("items", "FLAT")["row_count"] == 3000
    assert gone.tries > 3
    assert not bar_threads()


@pytest.mark.core
def test_a_terminal_that_takes_nothing_does_not_hold_up_a_build(
    handle: duckvec.VectorIndexes, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "LAST_DRAWING_SECONDS", 0.05)
    paused = PausedTerminal()
    at(paused, monkeypatch)
    hold(paused.writing.is_set)
    done = threading.Thread(target=lambda: handle.create("items", "FLAT"), daemon=True)
    done.start()
    done.join(10)
    was_held_up = done.is_alive()
    paused.goes_on.set()
    done.join()
    assert paused.writing.is_set() and not was_held_up
    eventually(lambda: not bar_threads())


@pytest.mark.core
def test_a_build_that_fails_takes_its_bar_away(
    handle: duckvec.VectorIndexes, monkeypatch: pytest.MonkeyPatch, hold: Hold
) -> None:
    terminal = at(Terminal(), monkeypatch)

    def fail() -> bool:
        if SHOWN in terminal.getvalue():
            raise RuntimeError("no more")
        return False

    hold(fail)
    with pytest.raises(duckdb.InvalidInputException, match="no more"):
        handle.create("items", "FLAT")
    assert terminal.getvalue().rsplit("\r", 2)[1].strip() == ""
    assert not bar_threads()


@pytest.mark.core
def test_duckdb_s_own_bar_is_off_while_ours_shows(
    handle: duckvec.VectorIndexes,
    monkeypatch: pytest.MonkeyPatch,
    hold: Hold,
    capfd: pytest.CaptureFixture[str],
) -> None:
    terminal = at(Terminal(), monkeypatch)
    con = handle._open()

    def is_on() -> bool:
        shown = con.execute("SELECT current_setting('enable_progress_bar')").fetchall()
        return bool(shown[0][0])

    con.execute("SET enable_progress_bar = true")
    con.execute("SET enable_progress_bar_print = true")
    con.execute("SET progress_bar_time = 50")
    passed = after(0.3)
    hold(lambda: passed() and SHOWN in terminal.getvalue())
    capfd.readouterr()
    handle.create("items", "FLAT")
    assert capfd.readouterr().out == ""
    assert is_on()
    with pytest.raises(duckdb.InvalidInputException):
        handle.create("items", "IVF_FLAT")
    assert is_on()
    con.execute("SET enable_progress_bar = false")
    handle.create("items", "FLAT")
    assert not is_on()


def test_a_notebook_is_as_good_as_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at(io.StringIO(), monkeypatch)
    shell: Any = None
    ipython = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert bars.find_tqdm() is None
    shell = SimpleNamespace(config={"TerminalIPythonApp": {}})
    assert bars.find_tqdm() is None
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    assert bars.find_tqdm() is not None


def test_what_a_caller_waits_for_shows_before_the_work_of_the_background() -> None:
    tasks = [Task(name, lambda task: None) for name in ("create", "seal", "idle")]
    rows = [
        SimpleNamespace(table_name=name, column_name="v", index_type="HNSW")
        for name in ("new", "old", "idle")
    ]
    tasks[0].progress = 0.5
    state = SimpleNamespace(
        indexes={
            "old": SimpleNamespace(work=tasks[1], row=rows[1]),
            "idle": SimpleNamespace(work=None, row=rows[2]),
        },
        building={"new": SimpleNamespace(task=tasks[0], row=rows[0])},
    )
    callers: list[Task] = [tasks[2], tasks[0]]
    instance: Any = SimpleNamespace(
        databases={1: state},
        keeper=SimpleNamespace(pending=lambda: callers),
        sealer=SimpleNamespace(pending=lambda: [tasks[1]]),
    )
    assert progress.current_work(instance) == ("new", "v", "HNSW", 0.5)
    del callers[:]
    assert progress.current_work(instance) == ("old", "v", "HNSW", 0.0)
    state.indexes["old"].work = None
    assert progress.current_work(instance) is None


def test_what_is_soon_over_is_not_followed() -> None:
    asked: list[float] = []

    def over(seconds: float) -> bool:
        asked.append(seconds)
        return True

    instance: Any = None  # it is not even looked at
    assert not list(progress.follow(instance, over))
    assert asked == [progress.SLOW_SECONDS]


def test_counting_shows_a_share_once_it_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = at(Terminal(), monkeypatch)
    with bars.counting("tuning") as show:
        show(0.1)
    assert terminal.getvalue() == ""
    monkeypatch.setattr(bars, "SLOW_SECONDS", 0.0)
    with bars.counting("tuning") as show:
        show(0.1)
        show(0.5)
    assert "tuning:  10%" in terminal.getvalue()
    assert "tuning:  50%" in terminal.getvalue()
    assert terminal.getvalue().rsplit("\r", 2)[1].strip() == ""
