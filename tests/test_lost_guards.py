"""What happens where a guard cannot be armed, or ends before its search does."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

import duckvec
from duckvec import catalog, chains, guard_watch, guards, keeper
from duckvec.errors import ClosedError
from duckvec.keeper import Task
from tests.data import (
    AS_SCRIPT,
    EXHAUSTIVE,
    Vectors,
    assert_same,
    create,
    create_table,
    exact,
    search,
)

pytestmark = pytest.mark.core

PARAMS = EXHAUSTIVE["IVF_FLAT"]
IN_PLACE = "UPDATE items SET price = price + 1 WHERE id = 7"


@pytest.fixture
def con(path: Path, vectors: Vectors) -> duckdb.DuckDBPyConnection:
    con = duckvec.connect(str(path), background=False)
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    return con


def check(con: duckdb.DuckDBPyConnection, vectors: Vectors) -> None:
    query = vectors.query(0)
    assert_same(search(con, query, params=PARAMS), exact(con, query))


def test_a_search_whose_guard_is_lost_says_so(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(con, vectors)
    con.execute(IN_PLACE)
    arm = guards._arm
    stopped = threading.Event()

    def arm_too_late(*arguments: Any) -> None:
        stopped.wait(10)
        arm(*arguments)

    monkeypatch.setattr(guards, "_arm", arm_too_late)
    monkeypatch.setattr(guard_watch, "WAITING_SECONDS", 0.1)
    with pytest.raises(duckdb.Error, match="run it again"):
        search(con, vectors.query(0))
    monkeypatch.undo()
    stopped.set()
    check(con, vectors)


def test_searches_wait_for_a_slow_commit(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(con, vectors)
    con.execute(IN_PLACE)
    insert = catalog.insert_epoch

    def insert_slowly(*arguments: Any) -> None:
        time.sleep(keeper.BRIEF_SECONDS + 0.3)
        insert(*arguments)

    monkeypatch.setattr(catalog, "insert_epoch", insert_slowly)
    check(con, vectors)


def test_searches_go_on_where_commits_fail(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(con, vectors)

    def fail(*arguments: Any) -> None:
        raise duckdb.IOException("no space left on device")

    monkeypatch.setattr(catalog, "insert_epoch", fail)
    for _ in range(3):
        con.execute(IN_PLACE)
        check(con, vectors)
        check(con, vectors)
    monkeypatch.undo()
    con.execute(IN_PLACE)
    check(con, vectors)
    con.execute("CHECKPOINT")


@pytest.mark.parametrize("database", ["its own", "another"])
def test_batches_of_a_long_join_outlive_their_guard(
    path: Path,
    vectors: Vectors,
    monkeypatch: pytest.MonkeyPatch,
    database: str,
) -> None:
    con = duckvec.connect(str(path), background=False)
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    name = "items"
    if database == "another":
        con.execute("ATTACH ':memory:' AS other")
        con.execute("USE other")
        name = f"{path.stem}.main.items"
    monkeypatch.setattr(guard_watch, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(guard_watch, "ATTACHED_SECONDS", 0.05)

    def nap(number: int) -> int:
        if number % 2048 == 0:
            time.sleep(0.4)
        return number

    con.create_function("nap", nap, ["BIGINT"], "BIGINT", side_effects=True)
    found = con.execute(
        f"""
        SELECT count(*)
        FROM (
            SELECT nap(i) AS n, list_transform(range(16), lambda x: (x + i % 5)) AS v
            FROM range(6000) AS t(i)
        ) AS q, vector_search('{name}', q.v, 3) AS h
        """
    ).fetchall()
    assert found == [(18_000,)]


def test_a_commit_counts_also_where_its_task_was_cancelled(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(con, vectors)
    instance = duckvec.load(con)._instance
    state = next(iter(instance.databases.values()))
    table = "SELECT max(value) FROM duckvec.epoch"
    commits, before = state.commits, con.execute(table).fetchall()[0][0]
    task, insert = Task("a commit", lambda task: None), catalog.insert_epoch

    def insert_and_cancel(*arguments: Any) -> None:
        insert(*arguments)
        task.cancel()

    monkeypatch.setattr(catalog, "insert_epoch", insert_and_cancel)
    with pytest.raises(ClosedError):
        chains.commit_epoch(task, instance, state)
    assert con.execute(table).fetchall()[0][0] == before + 1
    assert state.commits == commits + 1
    assert state.mark is None
    monkeypatch.undo()
    check(con, vectors)


CREATE_BEHIND_A_FORCED_CHECKPOINT = """
import os, threading, time
import duckdb, duckvec
con = duckvec.connect({path!r}, background=False)
admin = con.cursor()
con.execute("BEGIN")
con.execute({change!r})
checkpoint = lambda: admin.execute("FORCE CHECKPOINT")
threading.Thread(target=checkpoint, daemon=True).start()
time.sleep(0.3)
try:
    con.execute('''CALL create_vector_index('items', 'FLAT')''').fetchall()
except duckdb.Error as error:
    print(error, flush=True)
os._exit(0)
"""


def test_a_build_behind_a_forced_checkpoint_gives_up(
    path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    con.close()
    code = CREATE_BEHIND_A_FORCED_CHECKPOINT.format(path=str(path), change=IN_PLACE)
    run = subprocess.run(
        [sys.executable, "-c", AS_SCRIPT + code],
        timeout=40,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "cannot begin while a checkpoint waits" in run.stdout
