"""Names: odd tables and columns, schemas, attached databases, and what hides them."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

import duckvec
from tests.data import Vectors, assert_same, create, create_table, exact, search

pytestmark = pytest.mark.core

ODD_COLUMNS = (
    "k",
    "query",
    "filter",
    "params",
    "distance",
    "vector",
    "id_",
    "metric",
    "collection",
    "column_name",
    "__t",
    "__h",
    "__query",
    "distance_",
    "rowid_",
)


@pytest.mark.parametrize("index_type", [None, "FLAT"])
def test_columns_named_like_our_own_words(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, index_type: str | None
) -> None:
    create_table(con, vectors)
    added = ", ".join(f'id AS "{name}"' for name in ODD_COLUMNS)
    con.execute(f"CREATE TABLE odd AS SELECT *, {added} FROM items")
    if index_type:
        create(con, index_type, "odd")
    result = con.execute("FROM vector_search('odd', ?, 5)", [vectors.query(0)])
    names = [column[0] for column in result.description or ()]
    rows = result.fetchall()
    assert names == ["id", "price", "embedding", *ODD_COLUMNS, "distance_1"]
    for row in rows:
        assert all(value == row[0] for value in row[3:-1])
    found = [(row[0], row[-1]) for row in rows]
    assert_same(found, exact(con, vectors.query(0), 5))
    filtered = con.execute(
        "SELECT k FROM "
        "vector_search('odd', ?, 5, filter := 'k < 100 AND distance < 50')",
        [vectors.query(0)],
    ).fetchall()
    assert len(filtered) == 5
    assert max(filtered)[0] < 50


@pytest.mark.parametrize("index_type", [None, "FLAT"])
@pytest.mark.parametrize("name", ODD_COLUMNS)
def test_query_columns_named_like_our_own_words(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, index_type: str | None, name: str
) -> None:
    create_table(con, vectors)
    if index_type:
        create(con, index_type)
    con.execute(
        f'CREATE TABLE asked AS SELECT ?::FLOAT[16] AS "{name}"', [vectors.query(0)]
    )
    wanted = exact(con, vectors.query(0), 5)
    for query in (f'"{name}"', f'asked."{name}"'):
        for call in (
            "vector_search('items', {}, 5)",
            "vector_range_search('items', {}, {})",
        ):
            found = con.execute(
                f"SELECT id, hit.distance FROM asked, "
                f"{call.format(query, wanted[-1] + 1e-4)} AS hit ORDER BY hit.distance"
            ).fetchall()
            assert_same(found, wanted)


def test_a_column_called_rowid_is_scanned_exactly(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    con.execute('CREATE TABLE t AS SELECT *, 7 - id AS "RowId" FROM items')
    with pytest.raises(duckdb.Error, match="rowid"):
        create(con, "FLAT", "t")
    assert_same(
        search(con, vectors.query(0), collection="t"), exact(con, vectors.query(0))
    )


@pytest.mark.parametrize("index_type", [None, "FLAT"])
@pytest.mark.parametrize(
    "name", ['"odd name"', '"it""s; --"', '"SELECT"', '"ünï"', "main.items", '"a.b"']
)
def test_quoted_and_qualified_names(
    con: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    index_type: str | None,
    name: str,
) -> None:
    create_table(con, vectors, name, column='"the "" vector"')
    if index_type:
        create(con, index_type, name)
    found = search(con, vectors.query(0), collection=name)
    wanted = exact(con, vectors.query(0), source=name, column='"the "" vector"')
    assert_same(found, wanted)


@pytest.mark.parametrize("index_type", [None, "FLAT"])
def test_schemas_attached_databases_and_use(
    con: duckdb.DuckDBPyConnection,
    tmp_path: Path,
    vectors: Vectors,
    index_type: str | None,
) -> None:
    create_table(con, vectors)
    con.execute("CREATE SCHEMA other")
    con.execute(f"ATTACH '{tmp_path / 'shop.db'}' AS shop")
    con.execute("CREATE SCHEMA shop.inner")
    con.execute("CREATE TABLE other.one AS FROM items WHERE id < 2000")
    con.execute("CREATE TABLE shop.two AS FROM items WHERE id < 1500")
    con.execute("CREATE TABLE shop.inner.three AS FROM items WHERE id < 1000")
    places = ["other.one", "shop.two", "shop.main.two", "shop.inner.three"]
    if index_type:
        for place in ("items", "other.one", "shop.two", "shop.inner.three"):
            create(con, index_type, place)
    query = vectors.query(0)
    for place in places:
        assert_same(
            search(con, query, collection=place), exact(con, query, source=place)
        )
    con.execute("USE other")
    assert_same(search(con, query, collection="one"), exact(con, query, source="one"))
    con.execute("USE shop")
    assert_same(search(con, query, collection="two"), exact(con, query, source="two"))
    con.execute("USE shop.inner")
    found = search(con, query, collection="three")
    assert_same(found, exact(con, query, source="three"))
    assert_same(
        search(con, query, collection="test.items"),
        exact(con, query, source="test.items"),
    )
    con.execute("INSERT INTO three VALUES (-1, 0, ?)", [query])
    con.execute("BEGIN")
    con.execute("DELETE FROM three WHERE id % 2 = 0")
    found = search(con, query, collection="three")
    assert_same(found, exact(con, query, source="three"))
    con.execute("ROLLBACK")
    if index_type:
        rows = con.execute(
            "SELECT database_name, schema_name, collection FROM vector_indexes()"
        ).fetchall()
        assert ("shop", "inner", "three") in rows
        assert con.execute("SELECT count(*) FROM shop.duckvec.indexes").fetchall() == [
            (2,)
        ]
        assert (tmp_path / "shop.db.duckvec").is_dir()
    con.execute("USE test")


def test_an_old_snapshot_of_an_attached_database(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, vectors: Vectors
) -> None:
    con.execute(f"ATTACH '{tmp_path / 'shop.db'}' AS shop")
    create_table(con, vectors, "shop.items")
    create(con, "FLAT", "shop.items")
    old = con.cursor()
    duckvec.load(old)
    old.execute("BEGIN")
    query = vectors.query(0)
    wanted = exact(old, query, source="shop.items")
    con.execute("DELETE FROM shop.items WHERE id < 2500")
    create(con, "FLAT", "shop.items")
    assert_same(search(old, query, collection="shop.items"), wanted)
    old.execute("COMMIT")
    found = search(old, query, collection="shop.items")
    assert_same(found, exact(con, query, source="shop.items"))


def test_temporary_and_uncommitted_tables_are_scanned_exactly(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    con.execute("CREATE TEMP TABLE tmp AS FROM items")
    con.execute("BEGIN")
    con.execute("CREATE TABLE fresh AS FROM items")
    query = vectors.query(0)
    for name in ("tmp", "fresh", "temp.main.tmp"):
        found = search(con, query, collection=name, column_name="embedding")
        assert_same(found, exact(con, query))
    con.execute("ROLLBACK")
    with pytest.raises(duckdb.Error, match=r'no table "tmp".*column_name'):
        search(con, query, collection="tmp")


def test_views_are_scanned_exactly_and_not_indexed(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    con.execute("CREATE VIEW cheap AS FROM items WHERE price < 10")
    found = search(con, vectors.query(0), collection="cheap")
    assert_same(found, exact(con, vectors.query(0), source="cheap"))
    with pytest.raises(duckdb.Error, match='"cheap" is a view'):
        create(con, "FLAT", "cheap")


def test_a_temporary_table_that_hides_an_indexed_one_is_not_mixed_up(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")
    con.execute(
        "CREATE TEMP TABLE items AS SELECT id + 50000 AS id, price, embedding "
        "FROM test.main.items"
    )
    query = vectors.query(0)
    found = search(con, query, collection="test.main.items")
    assert max(number for number, _ in found) < 50000


def test_several_vector_columns(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    con.execute("CREATE TABLE two AS SELECT *, embedding AS other FROM items")
    query = vectors.query(0)
    with pytest.raises(duckdb.Error, match=r'2 vector columns.*"embedding", "other"'):
        search(con, query, collection="two")
    create(con, "FLAT", "two", column_name="OTHER")
    create(con, "IVF_FLAT", "two", column_name="embedding")
    for name in ("embedding", "other"):
        assert_same(
            search(con, query, collection="two", column_name=name), exact(con, query)
        )
    names = con.execute("SELECT column_name FROM vector_indexes() ORDER BY ALL")
    assert names.fetchall() == [("embedding",), ("other",)]
