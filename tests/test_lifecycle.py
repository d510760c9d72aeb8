"""Databases come and go: closed, copied, attached, exported, shared and left alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import duckvec
from duckvec import keeper
from tests.data import (
    AS_SCRIPT,
    EXHAUSTIVE,
    Vectors,
    assert_same,
    clustered,
    create,
    create_table,
    exact,
    search,
)

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
PARAMS = EXHAUSTIVE["IVF_FLAT"]


def check(
    con: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    collection: str = "items",
    params: dict[str, int] | None = None,
) -> None:
    query = vectors.query(0)
    found = search(
        con,
        query,
        collection=collection,
        params=PARAMS if params is None else params or None,
    )
    assert_same(found, exact(con, query, source=collection))


def states(con: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    sql = "SELECT database_name, state FROM vector_indexes() ORDER BY ALL"
    return con.execute(sql).fetchall()


def last_error(con: duckdb.DuckDBPyConnection, database: str) -> Any:
    sql = "SELECT last_error FROM vector_indexes() WHERE database_name = ?"
    return con.execute(sql, [database]).fetchall()[0][0]


def uses_index(con: duckdb.DuckDBPyConnection, vectors: Vectors) -> bool:
    duckvec.load(con).wait()
    query = vectors.query(0)
    search(con, query)
    plan = con.execute("EXPLAIN FROM vector_search('items', ?)", [query]).fetchall()
    return "unnest" in plan[0][1].lower()


@pytest.fixture
def indexed(path: Path, vectors: Vectors) -> Path:
    """A closed database file with an indexed table."""
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.close()
    return path


# A database without an index


@pytest.mark.parametrize("place", ["file", "memory"])
def test_a_database_without_an_index_pays_nothing(
    path: Path, vectors: Vectors, place: str
) -> None:
    before = set(threading.enumerate())
    con = duckvec.connect(str(path) if place == "file" else ":memory:")
    handle = duckvec.load(con)
    create_table(con, vectors)
    for number in range(5):
        found = search(con, vectors.query(number), filter="price < 50")
        assert len(found) == 10
    assert con.execute("FROM vector_indexes()").fetchall() == []
    assert con.execute("CALL drop_vector_index('items')").fetchall()[0][2] == "FLAT"
    schemas = con.execute(
        "SELECT schema_name FROM duckdb_schemas() WHERE schema_name = 'duckvec'"
    ).fetchall()
    assert schemas == []
    assert not path.with_name(path.name + ".duckvec").exists()
    assert not any(session.guards for session in handle._instance.sessions.values())
    until = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < until:
        time.sleep(0.01)  # the drop had a thread for a moment
    assert set(threading.enumerate()) <= before
    con.execute("UPDATE items SET price = price + 1 WHERE id = 7")
    con.execute("CHECKPOINT")
    con.close()


def test_no_work_begins_behind_a_search(
    indexed: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    con = duckvec.connect(str(indexed), background=False)
    begun: list[str] = []
    submit = keeper.Keeper.submit

    def note(self: keeper.Keeper, name: str, work: Any) -> keeper.Task:
        begun.append(name)
        return submit(self, name, work)

    for number in range(3):
        check(con, vectors)
        con.execute("INSERT INTO items VALUES (?, 0, ?)", [-number, vectors.query(0)])
        check(con, vectors)
        with monkeypatch.context() as patch:
            patch.setattr(keeper.Keeper, "submit", note)
            time.sleep(0.3)
    assert begun == []
    con.close()
    duckdb.connect(str(indexed), read_only=True).close()


# Processes


READER = """
import json, sys
import duckvec
con = duckvec.connect({path!r}, read_only=True)
handle = duckvec.load(con)
handle.wait()
query = json.loads(sys.argv[1])
found = con.execute(
    "SELECT distance FROM vector_search('items', ?::FLOAT[], 10)", [query]
).fetchall()
states = con.execute("SELECT state FROM vector_indexes()").fetchall()
print(json.dumps([[row[0] for row in found], states[0][0]]), flush=True)
sys.stdin.readline()
con.close()
"""


def start_reader(path: Path, query: list[float]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            AS_SCRIPT + READER.format(path=str(path)),
            json.dumps(query),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


@pytest.fixture
def readers(indexed: Path, vectors: Vectors) -> Iterator[list[subprocess.Popen[str]]]:
    """Three processes that search one file read-only, at once."""
    started = [start_reader(indexed, vectors.query(0)) for _ in range(3)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_read_only_processes_share_the_artifacts(
    indexed: Path, vectors: Vectors, readers: list[subprocess.Popen[str]]
) -> None:
    answers = []
    for process in readers:
        assert process.stdout is not None
        answers.append(json.loads(process.stdout.readline()))
    con = duckvec.connect(str(indexed), read_only=True)
    check(con, vectors)
    con.close()
    for distances, state in answers:
        assert state == "ready"
        assert len(distances) == 10
    for process in readers:
        _, noise = process.communicate("\n", timeout=60)
        assert (process.returncode, noise) == (0, "")
    con = duckvec.connect(str(indexed))
    con.execute("INSERT INTO items VALUES (-1, 0, ?)", [vectors.query(0)])
    check(con, vectors)
    con.close()


OTHER_PYTHON = (
    ROOT
    / (".venv-other" if Path(sys.prefix).name == ".venv" else ".venv")
    / "bin"
    / "python"
)
TURN = """
import json, sys
import duckdb, duckvec
path, query, write = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "write"
con = duckvec.connect(path)
duckvec.load(con).wait()
if write:
    con.execute("INSERT INTO items SELECT id + 90000, 1, embedding FROM items LIMIT 50")
    con.execute("DELETE FROM items WHERE id < 30")
found = con.execute(
    "SELECT distance FROM vector_search('items', $1::FLOAT[], 10, "
    "params := {'nprobe': 32})", [query]
).fetchall()
wanted = con.execute(
    "SELECT array_distance(embedding, $1::FLOAT[16]) AS d FROM items "
    "ORDER BY d LIMIT 10",
    [query],
).fetchall()
assert found == wanted, (found, wanted)
states = con.execute("SELECT state, last_error FROM vector_indexes()").fetchall()
assert states == [("ready", None)], states
con.close()
print("right, with", duckdb.__version__)
"""


def take_turn(python: str, path: Path, query: list[float]) -> str:
    command = [python, "-c", AS_SCRIPT + TURN, str(path), json.dumps(query), "write"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    if "version number" in done.stderr:
        pytest.skip("the older DuckDB cannot read this file")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("right")
    return done.stdout


@pytest.mark.skipif(
    not OTHER_PYTHON.exists(), reason="there is no environment with the other DuckDB"
)
def test_two_lines_of_duckdb_use_one_file_in_turn(path: Path, vectors: Vectors) -> None:
    con = duckdb.connect()
    con.execute(f"ATTACH '{path}' AS test (STORAGE_VERSION 'v1.5.0')")
    con.execute("USE test")
    duckvec.load(con)
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.close()
    turns = [str(OTHER_PYTHON), sys.executable] * 2
    seen = {
        take_turn(python, path, vectors.query(number))
        for number, python in enumerate(turns)
    }
    assert len(seen) == 2


# Copies


def test_a_database_moved_with_its_folder_keeps_its_indexes(
    indexed: Path, tmp_path: Path, vectors: Vectors
) -> None:
    place = tmp_path / "elsewhere" / "other.db"
    place.parent.mkdir()
    shutil.move(indexed, place)
    shutil.move(f"{indexed}.duckvec", f"{place}.duckvec")
    con = duckvec.connect(str(place))
    check(con, vectors)
    assert uses_index(con, vectors)
    assert states(con) == [("other", "ready")]
    con.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_database_copied_without_its_folder_says_what_is_missing(
    indexed: Path, tmp_path: Path, vectors: Vectors, read_only: bool
) -> None:
    copy = tmp_path / "copy.db"
    shutil.copy(indexed, copy)
    con = duckvec.connect(str(copy), read_only=read_only)
    check(con, vectors)
    assert states(con) == [("copy", "broken")]
    assert "is missing; build the index again" in last_error(con, "copy")
    con.close()
    con = duckvec.connect(str(indexed))
    check(con, vectors)
    assert states(con) == [("test", "ready")]
    con.close()


def test_an_exported_database_is_right_after_import(
    indexed: Path, tmp_path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(indexed))
    check(con, vectors)
    con.execute(f"EXPORT DATABASE '{tmp_path / 'export'}'")
    con.close()
    con = duckvec.connect(str(tmp_path / "imported.db"))
    assert states(con) == []
    con.execute(f"IMPORT DATABASE '{tmp_path / 'export'}'")
    assert_same(search(con, vectors.query(0)), exact(con, vectors.query(0)))
    assert states(con) == [("imported", "broken")]
    assert "is missing; build the index again" in last_error(con, "imported")
    check(con, vectors)
    create(con, "IVF_FLAT")
    assert states(con) == [("imported", "ready")]
    assert uses_index(con, vectors)
    rows = con.execute("SELECT count(*) FROM duckvec.indexes").fetchall()
    assert rows == [(1,)]
    con.close()


def test_an_imported_database_is_right_when_it_is_opened_later(
    indexed: Path, tmp_path: Path, vectors: Vectors
) -> None:
    plain = duckdb.connect(str(indexed))
    plain.execute(f"EXPORT DATABASE '{tmp_path / 'export'}' (FORMAT parquet)")
    plain.close()
    plain = duckdb.connect(str(tmp_path / "imported.db"))
    plain.execute(f"IMPORT DATABASE '{tmp_path / 'export'}'")
    plain.close()
    con = duckvec.connect(str(tmp_path / "imported.db"))
    check(con, vectors)
    assert states(con) == [("imported", "broken")]
    con.execute("CALL drop_vector_index('items')").fetchall()
    assert states(con) == [("imported", "ready")]
    con.close()


def test_a_database_copied_into_another_is_right(
    indexed: Path, tmp_path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(indexed))
    check(con, vectors)
    con.execute(f"ATTACH '{tmp_path / 'other.db'}' AS other")
    con.execute("COPY FROM DATABASE test TO other")
    found = search(con, vectors.query(0), collection="other.items")
    assert_same(found, exact(con, vectors.query(0)))
    assert states(con) == [("other", "broken"), ("test", "ready")]
    check(con, vectors, "other.items")
    create(con, "FLAT", "other.items")
    assert states(con) == [("other", "ready"), ("test", "ready")]
    check(con, vectors)
    con.close()


def test_a_dropped_catalog_is_noticed(indexed: Path, vectors: Vectors) -> None:
    con = duckvec.connect(str(indexed))
    check(con, vectors)
    con.execute("DROP SCHEMA duckvec CASCADE")
    check(con, vectors)
    assert con.execute("FROM vector_indexes()").fetchall() == []
    assert list(indexed.with_name(indexed.name + ".duckvec").iterdir()) == []
    create(con, "FLAT")
    assert states(con) == [("test", "ready")]
    check(con, vectors, params={})
    con.close()


# Attached databases


def attach_soon(con: duckdb.DuckDBPyConnection, path: Path, name: str) -> float:
    """Attach a file that may be held for a moment; return how long that took."""
    started = time.monotonic()
    while True:
        try:
            con.execute(f"ATTACH '{path}' AS {name}")
        except duckdb.Error as error:
            assert "already attached" in str(error)
            assert time.monotonic() - started < 2
            time.sleep(0.01)
        else:
            return time.monotonic() - started


def test_an_indexed_database_is_attached_again_soon_after_it_was_detached(
    indexed: Path, vectors: Vectors
) -> None:
    con = duckvec.connect()
    for _ in range(3):
        attach_soon(con, indexed, "shop")
        check(con, vectors, "shop.items")
        con.execute("DETACH shop")
        assert con.execute("FROM vector_indexes()").fetchall() == []
    attach_soon(con, indexed, "under_another_name")
    check(con, vectors, "under_another_name.items")
    assert states(con) == [("under_another_name", "ready")]
    databases = duckvec.load(con)._instance.databases
    assert [s.name for s in databases.values() if s.indexes] == ["under_another_name"]
    con.close()


def test_another_file_attached_under_the_same_name_is_not_mixed_up(
    indexed: Path, tmp_path: Path, vectors: Vectors
) -> None:
    other = clustered(2500, 16, seed=4)
    con = duckvec.connect(str(tmp_path / "two.db"))
    create_table(con, other)
    create(con, "IVF_FLAT")
    con.close()
    con = duckvec.connect()
    for _ in range(3):
        for file, data in ((indexed, vectors), (tmp_path / "two.db", other)):
            attach_soon(con, file, "shop")
            check(con, data, "shop.items")
            assert states(con) == [("shop", "ready")]
            con.execute("DETACH shop")
    con.close()


# The module's own connection


DEFAULT = """
import gc
import duckdb, duckvec
duckvec.load(duckdb.default_connection())
gc.collect()
duckdb.execute("CREATE TABLE t AS SELECT i AS id, [i, 1]::FLOAT[2] AS v "
               "FROM range(500) r(i)")
duckdb.execute("CALL create_vector_index('t', 'FLAT')").fetchall()
for number in range(3):
    sql = f"SELECT id FROM vector_search('t', [{number}, 1], 1)"
    found = duckdb.sql(sql).fetchall()
    assert found == [(number,)], found
print(duckdb.sql("SELECT state FROM vector_indexes()").fetchall())
"""


def test_the_default_connection_is_loaded_for_good() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_SCRIPT + DEFAULT],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == "[('ready',)]\n"
