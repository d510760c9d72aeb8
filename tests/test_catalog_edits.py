"""A catalog that was edited by hand: searches stay right, and a new index mends it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

import duckvec
from tests.data import assert_same, clustered, create, create_table, exact, search

VECTORS = clustered(300, 8)
PARAMS = {"nlist": 4}
HUGE = 2**63 - 1


def loose(table: str, column: str, value: str) -> str:
    """Return statements that put NULL, or another type, where it may not be."""
    place = f"ALTER TABLE duckvec.{table} ALTER {column}"
    return (
        f"{place} DROP NOT NULL; {place} TYPE VARCHAR; "
        f"UPDATE duckvec.{table} SET {column} = {value}"
    )


SEGMENT, INDEX = "UPDATE duckvec.segments SET ", "UPDATE duckvec.indexes SET "
# An edit, and what vector_indexes() says of it; None where it does no harm.
EDITS: dict[str, str | None] = {
    SEGMENT + "file = '../../etc/passwd'": "no name that duckvec gives",
    SEGMENT + "file = '/etc/passwd'": "no name that duckvec gives",
    SEGMENT + "map_file = '/dev/zero'": "no name that duckvec gives",
    SEGMENT + "file = map_file": "names a file of the index twice",
    SEGMENT + f"file = '{'0' * 32}.index'": "is missing",
    SEGMENT + "file = file || chr(0)": "no name that duckvec gives",
    SEGMENT + "file = repeat('a', 100000)": "no name that duckvec gives",
    SEGMENT + "segment = -1": "segments.segment = -1",
    SEGMENT + "index_type = 'NOPE'": "segments.index_type = NOPE",
    SEGMENT + "metric = 'IP'": "it is L2 in the index's row",
    SEGMENT + "dimension = -8": "segments.dimension = -8",
    SEGMENT + "row_count = -1": "segments.row_count = -1",
    SEGMENT + f"row_count = {HUGE}": "is of 300 rows",
    SEGMENT + "params = 'nonsense'": "segments.params = nonsense",
    SEGMENT + "params = '[1]'": "segments.params = [1]",
    SEGMENT + "params = repeat('[', 100000)": "segments.params = [[[",
    SEGMENT + "search_params = '{\"nprobe\": -3}'": "nprobe = -3 is outside",
    SEGMENT + 'search_params = \'{"nprobe": "x"}\'': 'nprobe = "x" is no integer',
    SEGMENT + "search_params = '{\"ef\": 3}'": '"ef" is no search parameter',
    SEGMENT + "search_params = '7'": "segments.search_params = 7",
    SEGMENT + "search_params = '{\"overfetch\": 0}'": "segments.search_params",
    SEGMENT + "ladder = '[[1]]'": "segments.ladder = [[1]]",
    SEGMENT + "ladder = '[[\"x\", {}]]'": "a recall is outside [0, 1]",
    SEGMENT + "ladder = '[[0.9, {\"nprobe\": 0}]]'": "nprobe = 0 is outside",
    SEGMENT + "size_bytes = -1": "segments.size_bytes = -1",
    SEGMENT + "checksum = ''": "segments.checksum",
    SEGMENT + "checksum = 'abc'": "cut or altered",
    INDEX + "index_type = 'NOPE'": 'no index type "NOPE"',
    INDEX + "index_type = 'HNSW'": "indexes.params",
    INDEX + "metric = 'NOPE'": "it is none of L2, IP, COSINE",
    INDEX + 'params = \'{"nlist": "8"}\'': 'nlist = "8" is no integer',
    INDEX + "params = '{\"nlist\": 1e400}'": "indexes.params",
    INDEX + "search_params = '[]'": "indexes.search_params = []",
    INDEX + "dimension = -1": "indexes.dimension = -1",
    INDEX + "dimension = NULL": "segments.dimension = 8",
    INDEX + "index_file_size = -1": "indexes.index_file_size = -1",
    INDEX + "row_count = -5": "indexes.row_count = -5",
    INDEX + "build_seconds = 'nan'": "indexes.build_seconds = nan",
    INDEX + "created_at = 'infinity'": None,
    loose("segments", "file", "NULL"): "no name that duckvec gives",
    loose("segments", "size_bytes", "NULL"): "segments.size_bytes = NULL",
    loose("indexes", "metric", "NULL"): "indexes.metric = NULL",
    loose("indexes", "index_id", "NULL"): "indexes.index_id = NULL",
    loose("indexes", "row_count", "'many'"): "indexes.row_count = many",
    loose("indexes", "created_at", "'today'"): "indexes.created_at = today",
    "INSERT INTO duckvec.indexes FROM duckvec.indexes": "several rows for the",
    "INSERT INTO duckvec.indexes SELECT * REPLACE ('x' AS index_id) "
    "FROM duckvec.indexes": "several rows for the column",
    "INSERT INTO duckvec.segments FROM duckvec.segments": "names a file of the index "
    "twice",
    "INSERT INTO duckvec.segments SELECT * REPLACE ('x' AS index_id) "
    "FROM duckvec.segments": "names a file of the index twice",
    "DELETE FROM duckvec.segments": None,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database that has an index."""
    folder = tmp_path_factory.mktemp("catalog")
    con = duckvec.connect(str(folder / "test.db"), background=False)
    create_table(con, VECTORS)
    create(con, "IVF_FLAT", params=PARAMS)
    con.close()
    return folder


def edited(prepared: Path, folder: Path, sql: str) -> Path:
    """Return the path of a copy in which statements were executed."""
    path = folder / "copy" / "test.db"
    shutil.copytree(prepared, path.parent)
    with duckdb.connect(str(path)) as con:
        con.execute(sql)
    return path


def states(con: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    return con.execute("SELECT state, last_error FROM vector_indexes()").fetchall()


@pytest.mark.parametrize("sql", EDITS, ids=range(len(EDITS)))
def test_a_catalog_that_was_edited_by_hand(
    prepared: Path, tmp_path: Path, sql: str
) -> None:
    path = edited(prepared, tmp_path, sql)
    con = duckvec.connect(str(path), background=False)
    duckvec.load(con).wait()
    for number in range(2):
        query = VECTORS.query(number)
        found = search(con, query, params={"nprobe": 4})
        assert_same(found, exact(con, query))
    expected = EDITS[sql]
    [(state, error)] = states(con)
    if expected is None:
        assert (state, error) == ("ready", None)
    else:
        assert state == "broken"
        assert expected in error
        assert len(error) < 400
        assert "\n" not in error
    create(con, "IVF_FLAT", params=PARAMS)
    assert states(con) == [("ready", None)]
    con.close()
    con = duckvec.connect(str(path), background=False)
    duckvec.load(con).wait()
    assert states(con) == [("ready", None)]
    found = search(con, VECTORS.query(0), params={"nprobe": 4})
    assert_same(found, exact(con, VECTORS.query(0)))
    assert len(list(path.with_name("test.db.duckvec").iterdir())) == 2
    con.close()


def test_an_index_without_a_table_in_the_catalog(
    prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = edited(prepared, tmp_path, loose("indexes", "table_name", "NULL"))
    con = duckvec.connect(str(path), background=False)
    assert "indexes.table_name = NULL" in caplog.text
    assert_same(search(con, VECTORS.query(0)), exact(con, VECTORS.query(0)))
    create(con, "IVF_FLAT", params=PARAMS)
    assert states(con) == [("ready", None)]
    con.close()


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("ALTER TABLE duckvec.indexes DROP metric", "no column indexes.metric"),
        (f"UPDATE duckvec.epoch SET value = {HUGE}", f"the epoch {HUGE}"),
        ("UPDATE duckvec.epoch SET value = -7", "the epoch -7"),
        ("UPDATE duckvec.epoch SET catalog_version = 99", "catalog version 99"),
    ],
)
def test_a_catalog_that_cannot_be_used_at_all(
    prepared: Path, tmp_path: Path, sql: str, expected: str
) -> None:
    con = duckvec.connect(str(edited(prepared, tmp_path, sql)), background=False)
    duckvec.load(con).wait()
    query = VECTORS.query(0)
    assert_same(search(con, query), exact(con, query))
    with pytest.raises(duckdb.Error, match=expected):
        create(con, "IVF_FLAT", params=PARAMS)
    assert_same(search(con, query), exact(con, query))
    if "version" not in expected:
        con.execute("DROP SCHEMA duckvec CASCADE")
        con.close()
        con = duckvec.connect(str(tmp_path / "copy" / "test.db"))
        create(con, "IVF_FLAT", params=PARAMS)
        assert states(con) == [("ready", None)]
    con.close()


def test_a_catalog_that_loses_a_column_while_it_is_open_is_one_sentence(
    prepared: Path, tmp_path: Path
) -> None:
    path = edited(prepared, tmp_path, "SELECT 1")
    con = duckvec.connect(str(path), background=False)
    con.execute("ALTER TABLE duckvec.epoch DROP COLUMN catalog_version")
    try:
        con.execute("FROM vector_indexes()").fetchall()
    except duckdb.Error as error:
        assert "Python exception" not in str(error)
    query = VECTORS.query(0)
    assert_same(search(con, query, params={"nprobe": 4}), exact(con, query))
    con.close()


@pytest.mark.parametrize("table", ["segments", "indexes"])
def test_a_column_of_lists_in_the_catalog_harms_no_search(
    prepared: Path, tmp_path: Path, table: str
) -> None:
    alter = (
        f"ALTER TABLE duckvec.{table} ALTER index_id TYPE VARCHAR[] USING [index_id]"
    )
    path = edited(prepared, tmp_path, alter)
    con = duckvec.connect(str(path), background=False)
    query = VECTORS.query(0)
    assert_same(search(con, query, params={"nprobe": 4}), exact(con, query))
    assert len(states(con)) == 1
    con.close()
