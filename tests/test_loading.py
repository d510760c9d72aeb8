"""Loading, unloading and leaving: idempotent, without traces and without noise."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import pytest

import duckvec
from duckvec import instance, leftovers
from duckvec.instance import MOST_UNLOADED
from tests.data import (
    AS_SCRIPT,
    Vectors,
    assert_same,
    create,
    create_table,
    exact,
    search,
)

pytestmark = pytest.mark.core


def test_loading_is_idempotent_and_leaves_nothing(path: Path) -> None:
    con = duckdb.connect(str(path))
    con.execute("CREATE TABLE t (v FLOAT[2])")
    first = duckvec.load(con)
    second = duckvec.load(con)
    assert isinstance(first, duckvec.VectorIndexes)
    assert isinstance(second, duckvec.VectorIndexes)
    con.close()
    plain = duckdb.connect(str(path))
    assert plain.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [
        ("t",)
    ]
    functions = plain.execute(
        "SELECT function_name FROM duckdb_functions() "
        "WHERE function_name LIKE '%vector%' AND database_name = 'test'"
    ).fetchall()
    assert functions == []
    plain.close()
    assert not path.with_name(path.name + ".duckvec").exists()


def test_ten_connections_and_cursors_share_one_state(
    path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    wanted = search(con, vectors.query(0))
    others = [duckdb.connect(str(path)) for _ in range(5)]
    others += [con.cursor() for _ in range(5)]
    for other in others:
        duckvec.load(other)
        assert search(other, vectors.query(0)) == wanted
    create(others[3], "FLAT")
    for other in (con, *others):
        assert len(search(other, vectors.query(0))) == 10
        index = other.execute("SELECT index_type FROM vector_indexes()").fetchall()
        assert index == [("FLAT",)]
    con.close()
    assert len(search(others[0], vectors.query(0))) == 10
    for other in others:
        other.close()
    duckdb.connect(str(path), read_only=True).close()


def test_unload_takes_the_functions_away(path: Path, vectors: Vectors) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "FLAT")
    duckvec.unload(con)
    duckvec.unload(con)
    for call in (
        "FROM vector_search('items', [1])",
        "CALL create_vector_index('items', 'FLAT')",
        "SELECT drop_vector_index('items')",
        "FROM vector_indexes()",
    ):
        with pytest.raises(duckdb.CatalogException):
            con.execute(call)
    duckvec.load(con)
    assert len(search(con, vectors.query(0))) == 10
    con.close()


def test_a_handle_is_a_context_manager(vectors: Vectors) -> None:
    con = duckdb.connect()
    with duckvec.load(con):
        create_table(con, vectors)
        create(con, "FLAT")
    with pytest.raises(duckdb.CatalogException):
        con.execute("FROM vector_indexes()")
    con.close()


def test_many_rounds_of_opening_and_closing(path: Path, vectors: Vectors) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "FLAT")
    con.close()
    before = threading.active_count()
    for number in range(20):
        con = duckdb.connect(str(path), read_only=bool(number % 2))
        duckvec.load(con)
        if number % 3:
            assert len(search(con, vectors.query(0))) == 10
        if number % 4 == 0:
            con.execute("INSERT INTO items VALUES (?, 0, NULL)", [-number])
        if number % 5 == 0:
            del con
        else:
            con.close()
    for thread in threading.enumerate():
        if thread.name == "duckvec-keeper":
            thread.join(10)
    assert threading.active_count() <= before


def test_a_closed_connection_is_refused() -> None:
    con = duckdb.connect()
    con.close()
    with pytest.raises(duckvec.VectorIndexError, match="closed"):
        duckvec.load(con)


EXITS = {
    "left open": "",
    "closed": "con.close()",
    "cursor first": "cursor.close(); con.close()",
    "cursor last": "con.close(); cursor.close()",
    "handle last": "con.close(); handle.close()",
    "deleted": "del con, cursor, handle",
    "unloaded": "duckvec.unload(con); con.close()",
    "in a transaction": "con.execute('BEGIN'); con.execute('DELETE FROM t')",
    "unfetched": "con.execute('FROM range(100000)')",
    "exit inside": "import sys; sys.exit(0)",
}
SCRIPT = """
import duckdb, duckvec
con = duckdb.connect({path!r})
handle = duckvec.load(con)
handle = duckvec.load(con)
con.execute("CREATE OR REPLACE TABLE t AS SELECT i AS id, [i, i + 1]::FLOAT[2] AS v "
            "FROM range(500) r(i)")
con.execute("CALL create_vector_index('t', 'IVF_FLAT', {{'nlist': 4}})").fetchall()
cursor = con.cursor()
duckvec.load(cursor)
assert cursor.execute("FROM vector_search('t', [3, 4], 3)").fetchall()[0][0] == 3
assert con.execute("FROM vector_search('t', [7, 8], 3)").fetchall()[0][0] == 7
print("done")
{end}
"""


@pytest.mark.parametrize("way", EXITS)
@pytest.mark.parametrize("place", ["file", "memory"])
def test_leaving_the_interpreter_is_silent(path: Path, way: str, place: str) -> None:
    database = str(path) if place == "file" else ":memory:"
    code = SCRIPT.format(path=database, end=EXITS[way])
    for _ in range(2 if place == "file" else 1):
        result = subprocess.run(
            [sys.executable, "-c", AS_SCRIPT + code],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout == "done\n"
        assert result.stderr == ""
    if place == "file":
        duckdb.connect(str(path)).close()


def test_threads_with_their_own_cursors(path: Path, vectors: Vectors) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    wanted = search(con, vectors.query(0))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            cursor = con.cursor()
            duckvec.load(cursor)
            for _ in range(20):
                assert search(cursor, vectors.query(0)) == wanted
            cursor.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    con.close()


def _state(con: duckdb.DuckDBPyConnection) -> list[tuple[str, str | None]]:
    return con.execute("SELECT state, last_error FROM vector_indexes()").fetchall()


def test_an_index_in_memory_outlives_the_functions_of_its_connections(
    vectors: Vectors,
) -> None:
    con = duckdb.connect()
    handle = duckvec.load(con)
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    handle.close()
    cursor = con.cursor()
    duckvec.load(cursor)
    assert _state(cursor) == [("ready", None)]
    cursor.close()
    del cursor, handle
    gc.collect()
    duckvec.load(con)
    assert _state(con) == [("ready", None)]
    query = vectors.query(0)
    found = search(con, query, params={"nprobe": 32})
    assert_same(found, exact(con, query))
    con.close()


def test_artifacts_of_few_databases_in_memory_are_kept(
    vectors: Vectors, tmp_path: Path
) -> None:
    for _ in range(MOST_UNLOADED + 3):
        con = duckvec.connect(directory=str(tmp_path))
        create_table(con, vectors)
        create(con, "FLAT")
        con.close()
        del con
        gc.collect()
    folders = list(tmp_path.iterdir())
    assert 0 < len(folders) <= MOST_UNLOADED


def test_two_first_looks_do_not_delete_what_was_made_between_them(
    path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    with duckdb.connect(str(path)) as made:
        create_table(made, vectors)
        create_table(made, vectors, "others")
        duckvec.load(made)
        create(made, "FLAT", "others")
    looking, go_on = threading.Event(), threading.Event()
    removing = leftovers.remove_orphans

    def slowly(folder: Path, named: set[str]) -> None:
        if threading.current_thread().name == "slow":
            looking.set()
            go_on.wait(1)
        removing(folder, named)

    monkeypatch.setattr(instance, "remove_orphans", slowly)
    con = duckdb.connect(str(path))
    cursor = con.cursor()
    thread = threading.Thread(target=duckvec.load, args=(cursor,), name="slow")
    thread.start()
    assert looking.wait(10)
    duckvec.load(con)
    create(con, "FLAT")
    go_on.set()
    thread.join()
    assert _state(con) == [("ready", None)] * 2
    assert len(search(con, vectors.query(0))) == 10
    assert _state(con) == [("ready", None)] * 2
    con.close()
