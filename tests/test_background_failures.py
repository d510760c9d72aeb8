"""What fails in the background shows, is logged and retried, and disturbs nobody."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import duckvec
from duckvec import (
    backoff,
    chains,
    guards,
    moves,
    proving,
    reader,
    segments,
    upkeep,
    writer,
)
from duckvec.errors import BusyError
from duckvec.keeper import Keeper
from tests.data import (
    EXHAUSTIVE,
    assert_same,
    clustered,
    create,
    create_table,
    exact,
    search,
)
from tests.upkeep import create_empty, eventually, impatient, info, insert

pytestmark = pytest.mark.core

ROWS = clustered(1000, 8)
FULL = OSError(28, "No space left on device")
FAILURES = [
    FULL,
    RuntimeError("a library failed"),
    MemoryError("no memory"),
    duckdb.IOException("the log cannot be written"),
]


class Fault:
    """Stands in for a function, and raises as long as there is an error."""

    def __init__(self, function: Any, error: BaseException) -> None:
        self.function = function
        self.error: BaseException | None = error
        self.times: list[float] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.error is None:
            return self.function(*arguments, **named)
        self.times.append(time.monotonic())
        raise self.error


@pytest.fixture
def con(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """An index whose tail is sealed in the background."""
    with impatient():
        connection = duckvec.connect(str(path))
        create_empty(connection, 8)
        create(connection, "IVF_FLAT")
        yield connection
        connection.close()


def check_queries(con: duckdb.DuckDBPyConnection, rows: int) -> None:
    """Run what has nothing to do with the failure, and compare searches."""
    assert con.execute("SELECT count(*) FROM items").fetchall() == [(rows,)]
    query = ROWS.query(0)
    params = EXHAUSTIVE["IVF_FLAT"]
    assert_same(search(con, query, params=params), exact(con, query))
    con.execute("FROM vector_indexes()").fetchall()
    con.execute("FROM vector_index_segments()").fetchall()
    con.execute("FROM vector_explain('items', $q)", {"q": query}).fetchall()


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (writer, "write_segment", FAILURES[0]),
        (writer, "write_segment", FAILURES[1]),
        (moves, "settle", FAILURES[2]),
        (moves, "settle", FAILURES[3]),
        (upkeep, "locate", FAILURES[0]),
    ],
)
def test_a_failure_shows_and_is_logged_and_retried(
    module: Any,
    name: str,
    error: BaseException,
    con: duckdb.DuckDBPyConnection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault = Fault(getattr(module, name), error)
    monkeypatch.setattr(module, name, fault)
    with caplog.at_level(logging.WARNING, "duckvec"):
        insert(con, ROWS, 0, 600)
        eventually(lambda: info(con)["last_error"] is not None, 20)
    assert str(error) in info(con)["last_error"]
    assert str(error) in caplog.text
    check_queries(con, 600)
    eventually(lambda: len(fault.times) >= 3, 20)
    fault.error = None
    eventually(lambda: info(con)["unindexed_rows"] == 0, 30)
    eventually(lambda: info(con)["last_error"] is None, 20)
    check_queries(con, 600)


def test_each_try_comes_later_than_the_one_before(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "RETRY_SECONDS", 0.2)
    fault = Fault(segments.write_segment, FULL)
    monkeypatch.setattr(writer, "write_segment", fault)
    insert(con, ROWS, 0, 600)
    eventually(lambda: len(fault.times) >= 4, 30)
    pauses = [b - a for a, b in itertools.pairwise(fault.times)]
    for number, pause in enumerate(pauses):
        assert pause >= 0.2 * 2**number


def test_a_quiet_database_is_tended_again_after_work_could_not_begin(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(upkeep.locate, BusyError("a checkpoint waits"))
    monkeypatch.setattr(upkeep, "locate", fault)
    insert(con, ROWS, 0, 600)
    eventually(lambda: len(fault.times) >= 2, 20)
    fault.error = None
    sql = "SELECT count(*) FROM duckvec.segments"
    eventually(lambda: con.execute(sql).fetchall() == [(1,)], 20)


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_proof_that_fails_disturbs_no_query(
    error: BaseException, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    con = duckvec.connect(str(path), background=False)
    create_table(con, ROWS)
    create(con, "IVF_FLAT")
    con.close()
    monkeypatch.setattr(backoff, "RETRY_SECONDS", 0.0)
    fault = Fault(reader.read_vectors, error)
    monkeypatch.setattr(proving, "read_vectors", fault)
    con = duckvec.connect(str(path), background=False)
    check_queries(con, 1000)
    assert fault.times
    assert str(error) in info(con)["last_error"]
    fault.error = None
    if isinstance(error, RuntimeError):  # which is taken for one that stays
        create(con, "IVF_FLAT")
    check_queries(con, 1000)
    assert (info(con)["state"], info(con)["last_error"]) == ("ready", None)
    con.close()


def test_a_watch_that_fails_looks_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backoff, "RETRY_SECONDS", 0.05)
    times: list[float] = []

    def look() -> float | None:
        times.append(time.monotonic())
        if len(times) < 5:
            raise RuntimeError("no such folder")
        return None

    watcher = Keeper("duckvec-watch")
    with caplog.at_level(logging.ERROR, "duckvec"):
        watcher.watch(look)
        eventually(lambda: len(times) == 5, 20)
    watcher.stop()
    pauses = [b - a for a, b in itertools.pairwise(times)]
    for number, pause in enumerate(pauses):
        assert pause >= 0.05 * 2**number
    assert caplog.text.count("no such folder") >= 4


def test_what_recovers_without_work_is_forgotten(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(moves.settle, FULL)
    monkeypatch.setattr(moves, "settle", fault)
    insert(con, ROWS, 0, 10)  # too few to be sealed
    eventually(lambda: info(con)["last_error"] is not None, 20)
    fault.error = None
    eventually(lambda: info(con)["last_error"] is None, 20)
    assert info(con)["unindexed_rows"] == 10


def test_a_database_that_cannot_be_written_to_says_why_entries_are_not_matched(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    con = duckvec.connect(str(path), background=False)
    create_table(con, ROWS)
    create(con, "IVF_FLAT")
    con.close()
    faults = [
        Fault(chains.commit_epoch, FAILURES[3]),
        Fault(chains.commit_epoch, FAILURES[3]),
    ]
    monkeypatch.setattr(chains, "commit_epoch", faults[0])
    monkeypatch.setattr(guards, "commit_epoch", faults[1])
    con = duckvec.connect(str(path), background=False)
    check_queries(con, 1000)
    row = info(con)
    assert row["state"] == "stale"
    assert row["last_error"] == str(FAILURES[3])
    for fault in faults:
        fault.error = None
    check_queries(con, 1000)
    assert (info(con)["state"], info(con)["last_error"]) == ("ready", None)
    con.close()


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("module", "name"), [(moves, "is_rewritten"), (guards, "commit_epoch")]
)
def test_what_a_search_waits_for_may_fail(
    module: Any,
    name: str,
    error: BaseException,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    con = duckvec.connect(str(path), background=False)
    create_table(con, ROWS)
    create(con, "IVF_FLAT")
    con.execute("UPDATE items SET price = 1 WHERE id = 1")
    fault = Fault(getattr(module, name), error)
    monkeypatch.setattr(module, name, fault)
    try:
        check_queries(con, 1000)
    except duckdb.InvalidInputException as refusal:
        # On a busy machine the guard that cannot be renewed may be let go of first.
        assert "run it again" in str(refusal)
        check_queries(con, 1000)
    assert fault.times
    con.close()


def test_stopping_waits_for_what_a_thread_does_last() -> None:
    begun, ended = threading.Event(), threading.Event()

    def last() -> None:
        begun.set()
        time.sleep(0.3)
        ended.set()

    keeper = Keeper("duckvec-keeper", last)
    keeper.submit("nothing", lambda task: None).wait()
    keeper.cancel()
    assert begun.wait(60)
    keeper.stop(60)
    assert ended.is_set()
