"""Background work ends with the connection and with the process, and leaves nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest

import duckvec
from tests.data import (
    AS_SCRIPT,
    assert_same,
    clustered,
    create,
    create_table,
    exact,
    search,
)
from tests.upkeep import (
    create_empty,
    eventually,
    impatient,
    info,
    insert,
    segment_rows,
    threads,
    wait_for_silence,
)

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
BIG = clustered(30_000, 32)
SLOW = {"M": 48, "efConstruction": 500}

OPENED_BY_ANOTHER = """
import sys, time, duckdb
until = time.monotonic() + 5
while True:
    try:
        con = duckdb.connect(sys.argv[1])
        break
    except duckdb.IOException:
        if time.monotonic() > until:
            raise
        time.sleep(0.01)
print(con.execute("SELECT count(*) FROM items").fetchall()[0][0])
"""

EXITS = """
import sys, time
import duckvec
from tests.data import clustered, create
from tests.upkeep import create_empty, info, insert
con = duckvec.connect(sys.argv[1])
create_empty(con, 32)
create(con, "HNSW", params={"M": 48, "efConstruction": 500})
insert(con, clustered(30_000, 32), 0, 30_000)
until = time.monotonic() + 30
while info(con)["state"] != "building" and time.monotonic() < until:
    time.sleep(0.05)
print(info(con)["state"], flush=True)
if sys.argv[2] == "raises":
    raise SystemExit(3)
if sys.argv[2] == "closes":
    con.close()
"""


def begin_a_long_build(con: duckdb.DuckDBPyConnection) -> None:
    """Have the background build for many seconds."""
    create_empty(con, 32)
    create(con, "HNSW", params=SLOW)
    insert(con, BIG, 0, 30_000)
    eventually(lambda: info(con)["state"] == "building", 120)
    eventually(lambda: info(con)["progress"] > 0.2, 120)


def test_closing_during_a_background_build_is_not_held_up(path: Path) -> None:
    con = duckvec.connect(str(path))
    begin_a_long_build(con)
    started = time.monotonic()
    con.close()
    assert time.monotonic() - started < 2
    command = [sys.executable, "-c", AS_SCRIPT + OPENED_BY_ANOTHER, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "30000\n"
    wait_for_silence()
    folder = path.with_name(path.name + ".duckvec")
    assert not folder.exists() or list(folder.iterdir()) == []
    con = duckvec.connect(str(path), background=False)
    query = BIG.query(0)
    assert_same(search(con, query), exact(con, query))
    assert segment_rows(con) == []
    con.close()


@pytest.mark.parametrize("way", ["ends", "closes", "raises"])
def test_the_process_ends_during_a_background_build(path: Path, way: str) -> None:
    started = time.monotonic()
    command = [sys.executable, "-c", AS_SCRIPT + EXITS, str(path), way]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert (done.stdout, done.stderr) == ("building\n", "")
    assert done.returncode == (3 if way == "raises" else 0)
    assert time.monotonic() - started < 60
    con = duckdb.connect(str(path))
    assert con.execute("SELECT count(*) FROM items").fetchall() == [(30_000,)]
    con.close()


def test_searches_and_changes_go_on_during_a_background_build(path: Path) -> None:
    con = duckvec.connect(str(path))
    begin_a_long_build(con)
    longest = 0.0
    for number in range(20):
        started = time.monotonic()
        found = search(con, BIG.query(number))
        insert(con, BIG, number, number + 1)
        con.execute("DELETE FROM items WHERE id = ?", [number + 100])
        longest = max(longest, time.monotonic() - started)
        assert len(found) == 10
    assert info(con)["state"] == "building"
    assert longest < 5
    con.close()
    wait_for_silence()


def test_a_database_without_an_index_has_no_thread(path: Path) -> None:
    wait_for_silence()
    con = duckvec.connect(str(path))
    create_table(con, clustered(100, 4))
    con.execute("FROM vector_search('items', [1, 2, 3, 4])").fetchall()
    con.execute("FROM vector_indexes()").fetchall()
    assert not threads()
    schemas = con.execute("SELECT schema_name FROM duckdb_schemas()").fetchall()
    assert ("duckvec",) not in schemas
    con.close()


@pytest.mark.parametrize("end", ["close", "drop", "unload", "drop_vector_index"])
def test_the_watch_ends(path: Path, end: str) -> None:
    wait_for_silence()
    con = duckvec.connect(str(path))
    create_table(con, clustered(100, 4))
    create(con, "FLAT")
    assert "duckvec-watch" in threads()
    if end == "close":
        con.close()
    elif end == "drop":
        del con
    elif end == "unload":
        duckvec.unload(con)
    else:
        con.execute("CALL drop_vector_index('items')").fetchall()
    wait_for_silence()


def test_the_watch_of_a_quiet_database_opens_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with impatient():
        con = duckvec.connect(str(path))
        create_table(con, clustered(100, 4))
        create(con, "FLAT")
        instance = duckvec.load(con)._instance
        time.sleep(1)
        opened: list[str] = []
        cursor = instance.background_cursor

        def count() -> duckdb.DuckDBPyConnection:
            opened.append(threading.current_thread().name)
            return cursor()

        monkeypatch.setattr(instance, "background_cursor", count)
        time.sleep(1)
        assert opened == []
        con.close()


def test_an_index_found_at_load_is_looked_after(path: Path) -> None:
    con = duckvec.connect(str(path), background=False)
    create_empty(con, 32)
    create(con, "IVF_FLAT")
    con.close()
    with impatient():
        con = duckvec.connect(str(path))
        insert(con, BIG, 0, 1000)
        state = "SELECT count(*) FROM duckvec.segments"
        eventually(lambda: con.execute(state).fetchall() == [(1,)], 20)
        con.close()
