"""Mistakes of a new user: one clear sentence each, and nothing changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

import duckvec
from tests.data import PARAMS, Vectors, create, create_table, search

pytestmark = pytest.mark.core

NLIST = '{"nlist": 32}'

CREATE_MISTAKES: list[tuple[str, list[Any], str]] = [
    ("('itms', 'IVF_FLAT', ?)", [NLIST], 'no table "itms"; did you mean "items"?'),
    ("('no.such.db.x', 'IVF_FLAT', ?)", [NLIST], "is not a table name"),
    ("(NULL, 'IVF_FLAT', ?)", [NLIST], "the collection is NULL"),
    ("('', 'IVF_FLAT', ?)", [NLIST], "is not a table name"),
    ("('items', 'IVF_FLT', ?)", [NLIST], 'no index type "IVF_FLT"; did you mean'),
    ("('items', NULL, ?)", [NLIST], 'no index type ""'),
    ("('items', 'IVF_FLAT')", [], 'IVF_FLAT needs "nlist": an integer in [1, 999999]'),
    ("('items', 'IVF_FLAT', ?)", ['{"nlist": 0}'], "nlist = 0 is outside [1, 999999]"),
    ("('items', 'IVF_FLAT', ?)", ['{"nlist": 1000000}'], "nlist = 1000000 is outside"),
    ("('items', 'IVF_FLAT', ?)", ['{"nlist": "8"}'], 'nlist = "8" is no integer'),
    ("('items', 'IVF_FLAT', ?)", ['{"nlist": true}'], "nlist = true is no integer"),
    ("('items', 'IVF_FLAT', ?)", ['{"nlist": 8.5}'], "nlist = 8.5 is no integer"),
    ("('items', 'IVF_FLAT', ?)", ['{"nlst": 8}'], 'did you mean "nlist"?'),
    ("('items', 'IVF_FLAT', ?)", ['{"nlist": '], "is not JSON"),
    ("('items', 'IVF_FLAT', ?)", ["[1]"], "is no JSON object"),
    ("('items', 'FLAT', ?)", [NLIST], 'FLAT takes no parameters, not "nlist"'),
    ("('items', 'IVF_PQ', ?)", ['{"nlist": 8, "m": 3}'], "does not divide"),
    ("('items', 'IVF_PQ', ?)", ['{"nlist": 8, "m": 5}'], "m = 5 is not one of"),
    ("('items', 'IVF_PQ', ?)", [NLIST], 'IVF_PQ needs "m": one of 16, 8, 4, 2, 1'),
    ("('items', 'HNSW', ?)", ['{"M": 4, "efConstruction": 200}'], "M = 4 is outside"),
    ("('items', 'HNSW', ?)", ['{"M": 16}'], 'HNSW needs "efConstruction"'),
    ("('items', 'ANNOY', ?)", ['{"n_trees": 1025}'], "n_trees = 1025 is outside"),
    ("('items', 'IVF_FLAT', ?, metric := 'L3')", [NLIST], 'no metric "L3"'),
    ("('items', 'IVF_FLAT', ?, column_name := 'nope')", [NLIST], 'no column "nope"'),
    ("('items', 'IVF_FLAT', ?, column_name := 'price')", [NLIST], '"price" of "items"'),
    ("('words', 'IVF_FLAT', ?)", [NLIST], 'table "words" has no vector column'),
    ("('items', 'IVF_FLAT', ?, index_file_size := 0)", [NLIST], "[1, 4096]"),
    ("('items', 'IVF_FLAT', ?, index_file_size := 5000)", [NLIST], "[1, 4096]"),
    ("('uneven', 'IVF_FLAT', ?)", [NLIST], '2 vectors in "v"'),
    ("('nans', 'FLAT')", [], '1 vector in "v" of "nans" holds NaN'),
    ("('infinite', 'FLAT')", [], "holds NaN or infinite values"),
    ("('duckvec.indexes', 'FLAT')", [], "no vector column"),
]


@pytest.fixture
def shop(con: duckdb.DuckDBPyConnection, vectors: Vectors) -> duckdb.DuckDBPyConnection:
    """A database with an index, and tables that cannot have one."""
    create_table(con, vectors)
    create(con, "IVF_SQ8")
    con.execute("CREATE TABLE words AS SELECT 'one' AS word")
    con.execute("CREATE TABLE uneven (v FLOAT[])")
    con.execute("INSERT INTO uneven VALUES ([1, 2]), ([1, 3]), ([2, 2]), ([1]), ([])")
    con.execute("CREATE TABLE nans (v DOUBLE[2])")
    con.execute("INSERT INTO nans VALUES ([1, 2]), ([1, 'nan'::DOUBLE])")
    con.execute("CREATE TABLE infinite (v FLOAT[])")
    con.execute("INSERT INTO infinite VALUES ([1, 2]), (['inf'::FLOAT, 1])")
    return con


def state(con: duckdb.DuckDBPyConnection, path: Path) -> list[Any]:
    """Return everything that a failed call must not change."""
    folder = path.with_name(path.name + ".duckvec")
    return [
        con.execute("FROM duckvec.indexes").fetchall(),
        con.execute("FROM duckvec.segments").fetchall(),
        sorted(file.name for file in folder.iterdir()),
        con.execute("SELECT count(*) FROM duckdb_tables()").fetchall(),
    ]


def sentence(error: pytest.ExceptionInfo[duckdb.Error]) -> str:
    """Return the text of an error without DuckDB's kind and its pointer."""
    text = str(error.value)
    assert "Traceback" not in text
    assert "At:" not in text
    assert "Python exception" not in text
    return text.split("\n\nLINE")[0]


@pytest.mark.parametrize(("arguments", "values", "expected"), CREATE_MISTAKES)
def test_mistakes_in_create(
    shop: duckdb.DuckDBPyConnection,
    path: Path,
    arguments: str,
    values: list[Any],
    expected: str,
) -> None:
    before = state(shop, path)
    for form in ("FROM create_vector_index", "SELECT create_vector_index"):
        with pytest.raises(duckdb.Error) as error:
            shop.execute(form + arguments, values).fetchall()
        assert expected in sentence(error)
    assert state(shop, path) == before


SEARCH_MISTAKES: list[tuple[str, str]] = [
    ("('itms', [1])", 'no table "itms"; did you mean "items"?'),
    ("('items', [1, 2, 3])", "list with length 3 to array with length 16"),
    ("('items', [1, 2, 3]::FLOAT[3])", "16"),
    ("('words', [1, 2, 3])", 'table "words" has no vector column'),
    ("('items', 'some words')", "some words"),
    ("('items', $q, 0)", "k = 0 is outside [1, 16384]"),
    ("('items', $q, -1)", "k = -1 is outside [1, 16384]"),
    ("('items', $q, 16385)", "k = 16385 is outside [1, 16384]"),
    ("('items', $q, NULL)", "k = NULL is outside [1, 16384]"),
    ("('items', $q, 5, params := {'nprobe': 0})", "nprobe = 0 is outside [1, 32]"),
    ("('items', $q, 5, params := {'nprobe': 33})", "nprobe = 33 is outside [1, 32]"),
    ("('items', $q, 5, params := {'ef': 10})", '"ef" is no search parameter'),
    ("('items', $q, 5, params := {'nlist': 10})", '"nlist" is a build parameter'),
    ("('items', $q, 5, params := 'nprobe=3')", "is not JSON"),
    ("('items', $q, 5, metric := 'IP')", "built for metric L2, not IP"),
    ("('items', $q, 5, metric := 'nope')", 'no metric "nope"'),
    ("('items', $q, 5, column_name := 'price')", '"price" of "items" is INTEGER'),
    ("('items', $q, 5, filter := 'price < 10; DROP TABLE items')", "not one SQL"),
    ("('items', $q, 5, filter := 'true) OR (true')", "is not one SQL expression"),
    ("('items', $q, 5, filter := 'true LIMIT 3')", "is not one SQL expression"),
    ("('items', $q, 5, filter := '')", "is not one SQL expression"),
    ("('items', $q, 5, filter := '*')", "is not one SQL expression"),
    ("('items', $q, 5, filter := 'nope = 1')", "nope"),
]


@pytest.mark.parametrize(("arguments", "expected"), SEARCH_MISTAKES)
def test_mistakes_in_search(
    shop: duckdb.DuckDBPyConnection,
    path: Path,
    vectors: Vectors,
    arguments: str,
    expected: str,
) -> None:
    before = state(shop, path)
    values = {"q": vectors.query(0)} if "$q" in arguments else {}
    with pytest.raises(duckdb.Error) as error:
        shop.execute(f"SELECT id FROM vector_search{arguments}", values).fetchall()
    assert expected in sentence(error)
    assert state(shop, path) == before


@pytest.mark.parametrize("value", ["nan", "inf", None])
def test_queries_that_are_not_finite(
    shop: duckdb.DuckDBPyConnection, vectors: Vectors, value: str | None
) -> None:
    query: list[Any] = [*vectors.query(0)[:-1], value and float(value)]
    with pytest.raises(duckdb.Error, match="finite"):
        search(shop, query)
    shop.execute("CALL drop_vector_index('items')")
    with pytest.raises(duckdb.Error, match="finite"):
        search(shop, query)


def test_wrong_lengths_without_an_index(
    shop: duckdb.DuckDBPyConnection,
) -> None:
    shop.execute("CALL drop_vector_index('items')")
    with pytest.raises(duckdb.Error, match="16"):
        search(shop, [1.0, 2.0])


def test_wrong_lengths_in_a_list_column_without_an_index(
    shop: duckdb.DuckDBPyConnection,
) -> None:
    sql = "SELECT count(*) FROM vector_search('uneven', {})"
    with pytest.raises(duckdb.Error, match="has 3 dimensions"):
        shop.execute(sql.format("[1, 2, 3]"))
    assert shop.execute(sql.format("[1, 2]")).fetchall() == [(3,)]
    assert shop.execute(sql.format("[1]")).fetchall() == [(1,)]


def test_a_read_only_database_cannot_be_indexed(path: Path, vectors: Vectors) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "FLAT")
    con.close()
    con = duckvec.connect(str(path), read_only=True)
    for call in ("create_vector_index('items', 'FLAT')", "drop_vector_index('items')"):
        with pytest.raises(duckdb.Error, match="is open read-only"):
            con.execute(f"CALL {call}")
    assert len(search(con, vectors.query(0))) == 10
    con.close()


def test_values_of_the_wrong_kind_later_are_skipped(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors, column_type="FLOAT[]")
    create(con, "FLAT")
    con.execute("INSERT INTO items VALUES (-1, 0, [1, 2]), (-2, 0, []), (-3, 0, NULL)")
    con.execute(
        "INSERT INTO items SELECT -4, 0, list_transform(embedding, "
        "lambda x: 'nan'::FLOAT) FROM items WHERE id = 1"
    )
    con.execute(
        "INSERT INTO items SELECT -5, 0, list_transform(embedding, "
        "lambda x: NULL) FROM items WHERE id = 1"
    )
    found = search(con, vectors.query(0), 16384)
    assert len(found) == 3000
    assert min(number for number, _ in found) >= 0
    duckvec.load(con).wait()
    skipped = con.execute("SELECT skipped_rows FROM vector_indexes()").fetchall()
    assert skipped[0][0] >= 2


@pytest.mark.parametrize(
    ("index_type", "library"), [("HNSW", "hnswlib"), ("ANNOY", "annoy")]
)
def test_a_missing_library_is_noticed_before_anything_is_written(
    con: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    monkeypatch: pytest.MonkeyPatch,
    index_type: str,
    library: str,
) -> None:
    create_table(con, vectors)
    monkeypatch.setitem(sys.modules, library, None)
    for name in ("create_vector_index", "vector_index_estimate"):
        with pytest.raises(duckdb.Error, match=f"{index_type} needs {library}"):
            con.execute(
                f"FROM {name}('items', $type, $params)",
                {"type": index_type, "params": PARAMS[index_type]},
            )
    schemas = "SELECT count(*) FROM duckdb_schemas() WHERE schema_name = 'duckvec'"
    assert con.execute(schemas).fetchall() == [(0,)]
