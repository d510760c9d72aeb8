"""Guards keep row ids still while searches go on, and are in nobody's way."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import duckvec
from duckvec import guard_watch, guards, parsed, states
from duckvec.chains import commit_epoch
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.states import DatabaseState
from duckvec.steps import snapshot, store_plan
from tests.data import (
    EXHAUSTIVE,
    Vectors,
    arrow_table,
    assert_same,
    clustered,
    create,
    create_table,
    exact,
    search,
)
from tests.upkeep import eventually

pytestmark = pytest.mark.core

PARAMS = EXHAUSTIVE["IVF_FLAT"]
IN_PLACE = "UPDATE items SET price = price + 1 WHERE id = 7"


@pytest.fixture
def con(path: Path, vectors: Vectors) -> duckdb.DuckDBPyConnection:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    return con


def check(con: duckdb.DuckDBPyConnection, vectors: Vectors) -> None:
    query = vectors.query(0)
    assert_same(search(con, query, params=PARAMS), exact(con, query))


def held(con: duckdb.DuckDBPyConnection) -> list[object]:
    """Return the guards of all sessions of the connection's instance."""
    instance = duckvec.load(con)._instance
    return [g for session in instance.sessions.values() for g in session.guards]


def state_of(con: duckdb.DuckDBPyConnection) -> states.DatabaseState:
    instance = duckvec.load(con)._instance
    return next(state for state in instance.databases.values() if state.indexes)


def generation_of(con: duckdb.DuckDBPyConnection) -> int:
    (index,) = state_of(con).indexes.values()
    assert index.generation is not None
    return index.generation.number


Work = Callable[[Task, Instance, DatabaseState], object]


def _commit(task: Task, instance: Instance, state: DatabaseState) -> None:
    time.sleep(0.5)  # now the checkpoint waits for the guard
    commit_epoch(task, instance, state)


def _let_commit(task: Task, instance: Instance, state: DatabaseState) -> None:
    time.sleep(0.5)
    commit = functools.partial(commit_epoch, instance=instance, state=state)
    instance.armer.submit("a commit", commit).wait()


def _seal(task: Task, instance: Instance, state: DatabaseState) -> None:
    time.sleep(0.5)
    instance.seal_transaction(state.name)


def _store(task: Task, instance: Instance, state: DatabaseState) -> None:
    time.sleep(0.5)
    instance.stored_plans.clear()
    (index,) = state.indexes.values()
    assert index.seen is not None
    store_plan(task, instance, state, index.row, index.seen)


def _seal_in_snapshot(task: Task, instance: Instance, state: DatabaseState) -> None:
    (index,) = state.indexes.values()
    assert index.seen is not None
    with snapshot(task, instance, state, index.seen):
        time.sleep(0.5)
        instance.seal_transaction(state.name)


@pytest.mark.parametrize(
    ("place", "work"),
    [
        ("memory", _commit),  # where changes do not show, guards stay longest
        ("memory", _let_commit),
        ("memory", _seal),
        ("memory", _store),
        ("memory", _seal_in_snapshot),
        ("file", _commit),
        ("file", _seal_in_snapshot),
    ],
)
def test_a_forced_checkpoint_ends_whatever_the_background_does(
    vectors: Vectors, path: Path, place: str, work: Work
) -> None:
    con = duckvec.connect(":memory:" if place == "memory" else str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    check(con, vectors)
    instance = duckvec.load(con)._instance
    state = next(iter(instance.databases.values()))
    begun = threading.Event()

    def run(task: Task) -> None:
        begun.set()
        work(task, instance, state)

    task = instance.keeper.submit("work of the background", run)
    begun.wait()
    time.sleep(0.2)
    con.execute(IN_PLACE)  # a checkpoint has to wait for who does not see it
    forced_in_background(con).join(10)
    assert task.wait(10) is None
    check(con, vectors)


OTHER_CALLS = [
    "SELECT count(*) + len($query) FROM vector_indexes()",
    "SELECT count(*) + len($query) FROM vector_index_segments()",
    "SELECT row_count + len($query) FROM vector_index_estimate('items', 'FLAT')",
    "FROM vector_explain('items', $query)",
    "FROM vector_range_search('items', $query, 3.0)",
    "FROM vector_search('items', $query, filter := 'price < 50')",
    "FROM items q, vector_search('items', q.embedding, 2) LIMIT len($query)",
]


def forced_in_background(con: duckdb.DuckDBPyConnection) -> threading.Thread:
    """Let a cursor make a FORCE CHECKPOINT, in a thread that need not end."""

    class Checkpoint(threading.Thread):
        def run(self) -> None:
            cursor.execute("FORCE CHECKPOINT")

        def join(self, timeout: float | None = None) -> None:
            super().join(timeout)
            assert not self.is_alive(), "the checkpoint hangs"

    cursor = con.cursor()
    thread = Checkpoint(daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("memory", "search"),
        ("memory", "recall"),
        ("memory", "load"),
        ("memory", "exact"),
        ("memory", "others"),
        ("file", "search"),
    ],
)
def test_calls_in_a_transaction_that_a_forced_checkpoint_waits_for(
    vectors: Vectors,
    path: Path,
    place: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parsed, "_parsed", {})  # parsing, too, may have to wait
    con = duckvec.connect(":memory:" if place == "memory" else str(path))
    create_table(con, vectors)
    if kind != "exact":
        create(con, "IVF_FLAT")
    reader = con.cursor()
    duckvec.load(reader)
    reader.execute("BEGIN")
    reader.execute("FROM items LIMIT 1").fetchall()
    con.execute(IN_PLACE)
    checkpoint = forced_in_background(con)
    time.sleep(0.3)
    assert checkpoint.is_alive()
    done = threading.Event()

    def act() -> None:
        if kind == "recall":
            reader.execute("FROM vector_recall('items', sample := 3)").fetchall()
        elif kind == "load":
            duckvec.load(reader)
        elif kind == "others":
            for call in OTHER_CALLS:
                reader.execute(call, {"query": vectors.query(0)}).fetchall()
        else:
            assert len(search(reader, vectors.query(0))) == 10
        done.set()

    threading.Thread(target=act, daemon=True).start()
    assert done.wait(60), "a call hangs"
    reader.execute("COMMIT")
    checkpoint.join(10)
    assert len(search(con, vectors.query(0))) == 10


def test_a_guard_begins_with_a_search_and_goes_after_the_last_one(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    check(con, vectors)
    assert held(con)
    eventually(lambda: not held(con))
    instance = duckvec.load(con)._instance
    threads = (instance.keeper, instance.armer, instance.warden, instance.sealer)
    # Of this instance: other tests' connections may still be looked after.
    eventually(lambda: all(thread._thread is None for thread in threads))


def test_loading_begins_no_guard(path: Path, con: duckdb.DuckDBPyConnection) -> None:
    con.close()
    again = duckvec.connect(str(path))
    again.execute(IN_PLACE)
    again.execute("CHECKPOINT")
    again.execute(IN_PLACE)
    again.execute("FORCE CHECKPOINT")
    assert not held(again)


@pytest.mark.parametrize("statement", ["CHECKPOINT", "FORCE CHECKPOINT"])
def test_a_checkpoint_after_an_update_in_place_and_a_search(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, statement: str
) -> None:
    for _ in range(5):
        check(con, vectors)
        con.execute(IN_PLACE)
        check(con, vectors)  # its guard sees the update
        con.execute(statement)
    check(con, vectors)


@pytest.mark.parametrize("where", ["file", "memory"])
def test_a_forced_checkpoint_waits_for_no_guard(
    path: Path, vectors: Vectors, where: str
) -> None:
    con = duckvec.connect(str(path) if where == "file" else ":memory:")
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    others = [con.cursor() for _ in range(2)]
    for other in others:
        duckvec.load(other)
    for _ in range(2):
        for each in (con, *others):
            check(each, vectors)
        con.execute(IN_PLACE)
        started = time.monotonic()
        con.execute("FORCE CHECKPOINT")
        assert time.monotonic() - started < 10
        check(con, vectors)


def test_the_chain_goes_on_where_no_checkpoint_ran(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    check(con, vectors)
    number = generation_of(con)
    for _ in range(2):
        eventually(lambda: not held(con))
        con.execute(IN_PLACE)
        check(con, vectors)
        assert generation_of(con) == number


@pytest.mark.parametrize("where", ["file", "memory"])
def test_the_chain_ends_where_a_checkpoint_moved_rows(path: Path, where: str) -> None:
    con = duckvec.connect(str(path) if where == "file" else ":memory:")
    vectors = clustered(150_000, 4)  # rows of more than one row group
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    check(con, vectors)
    number = generation_of(con)
    last = con.execute("SELECT max(rowid) FROM items").fetchall()
    eventually(lambda: not held(con))
    con.execute("DELETE FROM items WHERE id BETWEEN 1000 AND 148999")
    con.execute("CHECKPOINT")
    assert con.execute("SELECT max(rowid) FROM items").fetchall() != last
    check(con, vectors)
    con.execute("INSERT INTO items SELECT id + 900000, price, embedding FROM items")
    check(con, vectors)
    duckvec.load(con).wait()
    assert generation_of(con) != number
    check(con, vectors)


def test_a_checkpoint_under_a_guard_does_not_end_the_chain(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    check(con, vectors)
    number = generation_of(con)
    con.execute("INSERT INTO items SELECT * FROM items LIMIT 10")
    con.execute("CHECKPOINT")
    state = state_of(con)
    eventually(
        lambda: state.mark is not None and state.mark.file_sign == state.file_sign()
    )
    eventually(lambda: not held(con))
    check(con, vectors)
    assert generation_of(con) == number


def test_guards_of_many_sessions_do_not_chase_each_other(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    other = con.cursor()
    duckvec.load(other)
    for _ in range(5):
        check(con, vectors)
        check(other, vectors)
    commits = state_of(con).commits
    for _ in range(10):
        check(con, vectors)
        check(other, vectors)
    assert state_of(con).commits - commits <= 1


def test_a_search_is_planned_under_the_guard_that_it_replaces(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(con, vectors)
    con.execute(IN_PLACE)
    let_go, arm = threading.Event(), guards._arm

    def arm_late(*arguments: Any) -> None:
        let_go.wait(10)
        arm(*arguments)

    monkeypatch.setattr(guards, "_arm", arm_late)
    plan = "EXPLAIN FROM vector_search('items', ?, 10)"
    found = con.execute(plan, [vectors.query(0)]).fetchall()
    let_go.set()
    assert "rowid = id" in found[0][1]  # the hits are joined
    check(con, vectors)
    assert len(held(con)) == 1


def test_our_own_commits_are_recognised(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    check(con, vectors)
    con.execute("INSERT INTO items SELECT * FROM items LIMIT 1")  # the log has begun
    check(con, vectors)
    state = state_of(con)
    changes, commits = state.look(), state.commits
    con.execute("INSERT INTO items SELECT * FROM items LIMIT 1")
    check(con, vectors)
    eventually(lambda: state.commits == commits + 1)
    assert state.look() == changes + 1  # only the insert


def test_the_log_is_checkpointed_while_searches_and_updates_go_on(
    path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_watch, "LOG_SECONDS", 0.1)
    con = duckvec.connect(str(path))
    con.execute("SET checkpoint_threshold = '100KB'")
    many = clustered(20_000, 4)
    create_table(con, many)
    create(con, "IVF_FLAT")
    log = Path(f"{path}.wal")
    longest = 0
    until = time.monotonic() + 4
    while time.monotonic() < until:
        con.execute("UPDATE items SET price = price + 1 WHERE id % 10 = 3")
        check(con, many)
        longest = max(longest, log.stat().st_size if log.exists() else 0)
        time.sleep(0.06)  # time for the warden to look
    assert longest < 2_000_000


def test_rows_stay_findable_while_checkpoints_and_searches_take_turns(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    rng = np.random.default_rng(3)
    reader = con.cursor()
    duckvec.load(reader)
    for step in range(40):
        kind = step % 4
        if kind == 0:
            rows = arrow_table(vectors.rows[rng.integers(0, 1000, 20)], 50_000)
            con.execute("INSERT INTO items SELECT id, 1, vector FROM rows")
            del rows
        elif kind == 1:
            con.execute("DELETE FROM items WHERE id % 40 = ?", [step])
        elif kind == 2:
            con.execute(IN_PLACE)
            time.sleep(guard_watch.CHANGED_SECONDS + 3 * guard_watch.LOOK_SECONDS)
        else:
            con.execute("FORCE CHECKPOINT")
        check(con, vectors)
        check(reader, vectors)


FORCED = """
import duckvec
con = duckvec.connect({path!r})
con.execute("CREATE TABLE t AS SELECT 1 AS id, [1, 2]::FLOAT[2] AS v")
con.execute("CALL create_vector_index('t', 'FLAT')").fetchall()
con.execute({change!r})
con.execute("FORCE CHECKPOINT")
"""


@pytest.mark.parametrize(
    "change", ["UPDATE t SET id = 2", "CREATE TABLE u (id INTEGER)"]
)
def test_a_forced_checkpoint_right_after_a_build_ends(path: Path, change: str) -> None:
    code = FORCED.format(path=str(path), change=change)
    subprocess.run([sys.executable, "-c", code], timeout=20, check=True)
