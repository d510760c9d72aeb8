"""Definitions change: indexes follow their tables and columns, or go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

import duckvec
from tests.data import (
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

PARAMS = EXHAUSTIVE["IVF_FLAT"]


@pytest.fixture(params=["file", "memory"])
def con(
    request: pytest.FixtureRequest, path: Path, vectors: Vectors
) -> duckdb.DuckDBPyConnection:
    con = duckvec.connect(str(path) if request.param == "file" else ":memory:")
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    return con


def check(
    con: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    collection: str = "items",
    column: str = "embedding",
    metric: str = "L2",
) -> None:
    """Compare searches with plain SQL, by whatever route they go."""
    for number in range(3):
        query = vectors.query(number)
        found = search(con, query, 20, collection)
        wanted = exact(con, query, 20, metric, collection, column)
        assert_same(found[:1], wanted[:1])
        assert len(found) == len(wanted)


def uses_index(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, collection: str = "items"
) -> bool:
    """Tell whether a search joins the hits of an index, once it was matched."""
    duckvec.load(con).wait()
    query = vectors.query(0)
    search(con, query, 10, collection)
    plan = con.execute(
        "EXPLAIN SELECT id FROM vector_search($collection, $query)",
        {"collection": collection, "query": query},
    ).fetchall()
    return "unnest" in plan[0][1].lower()


def indexes(con: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    """Return table, column, type and state of all indexes."""
    return con.execute(
        "SELECT collection, column_name, index_type, state FROM vector_indexes() "
        "ORDER BY ALL"
    ).fetchall()


def rows_of_catalog(con: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    sql = "SELECT table_name, column_name FROM duckvec.indexes ORDER BY ALL"
    return con.execute(sql).fetchall()


def files(con: duckdb.DuckDBPyConnection) -> list[Path]:
    """Return the artifacts of all databases of a connection."""
    states = duckvec.load(con)._instance.databases.values()
    folders = {state.folder for state in states if state.folder is not None}
    return [file for folder in folders if folder.is_dir() for file in folder.iterdir()]


def test_an_index_follows_its_renamed_table(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    con.execute("ALTER TABLE items RENAME TO things")
    check(con, vectors, "things")
    assert uses_index(con, vectors, "things")
    assert indexes(con) == [("things", "embedding", "IVF_FLAT", "ready")]
    assert rows_of_catalog(con) == [("things", "embedding")]
    with pytest.raises(duckdb.Error, match='no table "items"'):
        search(con, vectors.query(0))


def test_an_index_follows_its_renamed_column(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create(con, "IVF_FLAT", metric="COSINE")
    con.execute("ALTER TABLE items RENAME COLUMN embedding TO v")
    check(con, vectors, column="v", metric="COSINE")
    assert uses_index(con, vectors)
    assert indexes(con) == [("items", "v", "IVF_FLAT", "ready")]


def test_an_index_follows_a_table_and_a_column_renamed_together(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    con.execute("BEGIN")
    con.execute("ALTER TABLE items ADD COLUMN other FLOAT[16]")
    con.execute("ALTER TABLE items RENAME COLUMN embedding TO v")
    con.execute("ALTER TABLE items RENAME TO things")
    con.execute("COMMIT")
    assert indexes(con) == [("things", "v", "IVF_FLAT", "ready")]


def test_a_renamed_table_is_known_by_the_list_of_indexes_alone(
    con: duckdb.DuckDBPyConnection,
) -> None:
    con.execute("ALTER TABLE items RENAME TO things")
    assert indexes(con) == [("things", "embedding", "IVF_FLAT", "ready")]
    con.execute("CALL drop_vector_index('things')").fetchall()
    assert files(con) == []


def test_two_tables_that_swap_their_names_keep_their_indexes(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    fresh = clustered(2000, 16, seed=5)
    create_table(con, fresh, "fresh")
    create(con, "FLAT", "fresh")
    con.execute("BEGIN")
    con.execute("ALTER TABLE items RENAME TO old")
    con.execute("ALTER TABLE fresh RENAME TO items")
    con.execute("COMMIT")
    check(con, fresh)
    check(con, vectors, "old")
    assert indexes(con) == [
        ("items", "embedding", "FLAT", "ready"),
        ("old", "embedding", "IVF_FLAT", "ready"),
    ]
    assert uses_index(con, fresh)
    assert uses_index(con, vectors, "old")


def test_other_columns_come_and_go(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    for change in (
        "ADD COLUMN note VARCHAR DEFAULT 'x'",
        "RENAME COLUMN price TO cost",
        "DROP COLUMN cost",
        "ALTER COLUMN id TYPE HUGEINT",
    ):
        con.execute(f"ALTER TABLE items {change}")
        check(con, vectors)
        assert uses_index(con, vectors)
    assert indexes(con) == [("items", "embedding", "IVF_FLAT", "ready")]


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE items",
        "ALTER TABLE items DROP COLUMN embedding",
        "CREATE OR REPLACE TABLE items (id BIGINT, embedding FLOAT[16])",
    ],
)
def test_an_index_goes_with_its_table_or_column(
    con: duckdb.DuckDBPyConnection, statement: str
) -> None:
    assert len(files(con)) == 2
    con.execute(statement)
    assert indexes(con) == []
    assert rows_of_catalog(con) == []
    assert con.execute("FROM duckvec.segments").fetchall() == []
    assert files(con) == []


def test_dropping_the_index_of_a_dropped_table_is_no_error(
    con: duckdb.DuckDBPyConnection,
) -> None:
    con.execute("DROP TABLE items")
    row = con.execute("CALL drop_vector_index('items')").fetchall()
    assert row[0][:3] == ("items", "embedding", "FLAT")
    assert files(con) == []
    with pytest.raises(duckdb.Error, match='no table "items"'):
        con.execute("CALL drop_vector_index('items')").fetchall()


def test_the_index_of_a_renamed_table_is_not_dropped_by_its_old_name(
    con: duckdb.DuckDBPyConnection,
) -> None:
    con.execute("ALTER TABLE items RENAME TO things")
    with pytest.raises(duckdb.Error, match='no table "items"'):
        con.execute("CALL drop_vector_index('items')").fetchall()
    assert indexes(con) == [("things", "embedding", "IVF_FLAT", "ready")]


def test_an_index_goes_with_its_schema(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    con.execute("CREATE SCHEMA s")
    con.execute("CREATE TABLE s.two AS FROM items")
    create(con, "FLAT", "s.two")
    con.execute("DROP SCHEMA s CASCADE")
    assert indexes(con) == [("items", "embedding", "IVF_FLAT", "ready")]
    assert len(files(con)) == 2


def test_a_drop_that_is_rolled_back_loses_nothing(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    other = con.cursor()
    duckvec.load(other)
    for change in (
        "DROP TABLE items",
        "ALTER TABLE items RENAME TO things",
        "ALTER TABLE items DROP COLUMN embedding",
    ):
        con.execute("BEGIN")
        con.execute(change)
        check(other, vectors)
        duckvec.load(other).wait()
        assert indexes(other) == [("items", "embedding", "IVF_FLAT", "ready")]
        con.execute("ROLLBACK")
    check(con, vectors)
    assert uses_index(con, vectors)
    assert len(files(con)) == 2


def test_a_table_made_again_with_the_same_vectors_keeps_its_index(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    con.execute("CREATE OR REPLACE TABLE items AS FROM items ORDER BY id DESC")
    con.execute("DELETE FROM items WHERE id = 5")
    check(con, vectors)
    assert uses_index(con, vectors)
    assert indexes(con) == [("items", "embedding", "IVF_FLAT", "ready")]


def test_a_table_made_again_with_other_vectors_has_no_index(
    con: duckdb.DuckDBPyConnection,
) -> None:
    create(con, "IVF_FLAT", metric="COSINE")
    con.execute("DROP TABLE items")
    other = clustered(3000, 16, seed=99)
    create_table(con, other)
    check(con, other)  # by L2, as a table that never had an index
    assert indexes(con) == []
    assert files(con) == []


def test_truncating_keeps_the_index_for_rows_to_come(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    con.execute("TRUNCATE items")
    assert search(con, vectors.query(0)) == []
    assert indexes(con) == [("items", "embedding", "IVF_FLAT", "ready")]
    con.execute("CHECKPOINT")
    big = clustered(6000, 16, seed=3)
    create_table(con, big, "fresh")
    con.execute("INSERT INTO items FROM fresh")
    check(con, big)
    assert uses_index(con, big)
    rows = con.execute("SELECT indexed_rows FROM vector_indexes()").fetchall()
    assert rows == [(6000,)]


def test_a_type_that_keeps_the_vectors_keeps_the_index(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    for data_type in ("DOUBLE[16]", "FLOAT[]", "FLOAT[16]"):
        con.execute(f"ALTER TABLE items ALTER embedding TYPE {data_type}")
        check(con, vectors)
        assert uses_index(con, vectors)
    assert indexes(con) == [("items", "embedding", "IVF_FLAT", "ready")]


@pytest.mark.parametrize(
    "statements",
    [
        (
            "ALTER TABLE items ALTER embedding TYPE FLOAT[16] USING "
            "list_transform(embedding::FLOAT[], lambda x: -x)::FLOAT[16]",
        ),
        (  # in between the background could see that the column is gone
            "BEGIN",
            "ALTER TABLE items DROP COLUMN embedding",
            "ALTER TABLE items ADD COLUMN embedding FLOAT[16]",
            "COMMIT",
            "INSERT INTO items SELECT -1 - i, 0, list_resize([i], 16, 0)::FLOAT[16] "
            "FROM range(50) r(i)",
        ),
    ],
)
def test_vectors_that_are_rewritten_in_place_are_noticed(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, statements: tuple[str, ...]
) -> None:
    check(con, vectors)
    for searched in (True, False):
        create(con, "IVF_FLAT")
        for statement in statements:
            con.execute(statement)
        for number in range(3):
            query = vectors.query(number)
            found = search(con, query, params=PARAMS)
            assert_same(found, exact(con, query))
        if searched:
            check(con, vectors)


def test_a_type_without_vectors_makes_the_index_stale_until_it_is_back(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    con.execute("ALTER TABLE items ALTER embedding TYPE VARCHAR")
    with pytest.raises(duckdb.Error, match="no vector column"):
        search(con, vectors.query(0))
    [(state, error)] = con.execute(
        "SELECT state, last_error FROM vector_indexes()"
    ).fetchall()
    assert state == "stale"
    assert error.startswith('column "embedding" of table "items" is VARCHAR now')
    con.execute("ALTER TABLE items ALTER embedding TYPE FLOAT[16]")
    check(con, vectors)
    assert uses_index(con, vectors)
    assert indexes(con) == [("items", "embedding", "IVF_FLAT", "ready")]


def test_a_type_of_another_length_makes_the_index_stale(
    con: duckdb.DuckDBPyConnection,
) -> None:
    con.execute(
        "ALTER TABLE items ALTER embedding TYPE FLOAT[4] USING embedding[1:4]::FLOAT[4]"
    )
    short = clustered(1, 4)
    check(con, short)
    [(state, error)] = con.execute(
        "SELECT state, last_error FROM vector_indexes()"
    ).fetchall()
    assert state == "stale"
    assert "have 4 dimensions now, and 16 in the index; create it again" in error
    create(con, "FLAT")
    check(con, short)
    assert indexes(con) == [("items", "embedding", "FLAT", "ready")]
    assert len(files(con)) == 2


# What happened without duckvec


def changed_without_duckvec(path: Path, *statements: str) -> duckdb.DuckDBPyConnection:
    """Make an index, change definitions by plain DuckDB, and open with duckvec."""
    con = duckvec.connect(str(path))
    create_table(con, clustered(3000, 16))
    create(con, "IVF_FLAT")
    con.close()
    plain = duckdb.connect(str(path))
    for statement in statements:
        plain.execute(statement)
    plain.close()
    return duckvec.connect(str(path))


def test_an_index_whose_table_was_renamed_without_duckvec_is_stale(
    path: Path, vectors: Vectors
) -> None:
    con = changed_without_duckvec(path, "ALTER TABLE items RENAME TO things")
    check(con, vectors, "things")
    [(state, error)] = con.execute(
        "SELECT state, last_error FROM vector_indexes()"
    ).fetchall()
    assert state == "stale"
    assert '"embedding" of "things" may be the same by another name' in error
    create(con, "IVF_FLAT", "things")
    check(con, vectors, "things")
    con.close()
    con = duckvec.connect(str(path))
    check(con, vectors, "things")
    assert indexes(con) == [("things", "embedding", "IVF_FLAT", "ready")]
    assert len(files(con)) == 2
    con.close()


def test_a_column_renamed_without_duckvec_is_known_by_its_vectors(
    path: Path, vectors: Vectors
) -> None:
    con = changed_without_duckvec(
        path,
        "ALTER TABLE items RENAME COLUMN embedding TO v",
        "CREATE TABLE copy AS FROM items",
    )
    check(con, vectors, column="v")
    assert uses_index(con, vectors)
    assert indexes(con) == [("items", "v", "IVF_FLAT", "ready")]
    con.close()


def test_a_definition_changed_right_after_loading_is_followed(
    path: Path, vectors: Vectors
) -> None:
    con = changed_without_duckvec(path)
    con.execute("ALTER TABLE items RENAME COLUMN embedding TO v")
    con.execute("ALTER TABLE items RENAME TO things")
    check(con, vectors, "things", "v")
    assert indexes(con) == [("things", "v", "IVF_FLAT", "ready")]
    con.close()


def test_a_stale_index_is_dropped_by_its_old_name(path: Path) -> None:
    con = changed_without_duckvec(path, "ALTER TABLE items RENAME TO things")
    con.execute("CALL drop_vector_index('items')").fetchall()
    assert indexes(con) == []
    assert files(con) == []
    con.close()


def test_a_table_made_anew_after_a_rename_elsewhere_has_no_index(
    path: Path, vectors: Vectors
) -> None:
    con = changed_without_duckvec(path, "ALTER TABLE items RENAME TO things")
    assert [row[3] for row in indexes(con)] == ["stale"]
    other = clustered(300, 16, seed=8)
    create_table(con, other)
    check(con, other)
    check(con, vectors, "things")
    assert indexes(con) == []
    con.close()


@pytest.mark.parametrize("look", ["search", "list"])
def test_a_table_dropped_without_duckvec_takes_its_index_along(
    path: Path, vectors: Vectors, look: str
) -> None:
    con = changed_without_duckvec(
        path,
        "CREATE TABLE other (id BIGINT, embedding FLOAT[16])",
        "INSERT INTO other SELECT id, [id for x in range(16)] FROM items LIMIT 10",
        "DROP TABLE items",
    )
    if look == "search":
        assert len(search(con, vectors.query(0), 3, "other")) == 3
    else:
        assert indexes(con) == []
    assert rows_of_catalog(con) == []
    assert files(con) == []
    con.close()


def test_a_read_only_database_shows_what_became_of_a_table(
    path: Path, vectors: Vectors
) -> None:
    changed_without_duckvec(path, "ALTER TABLE items RENAME TO things").close()
    con = duckvec.connect(str(path), read_only=True)
    check(con, vectors, "things")
    [(name, state, error)] = con.execute(
        "SELECT collection, state, last_error FROM vector_indexes()"
    ).fetchall()
    assert (name, state) == ("items", "stale")
    assert 'column "embedding" of table "items" is gone' in error
    con.close()
