"""The table is the truth: searches stay exact while rows and transactions change."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest

import duckvec
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

pytestmark = pytest.mark.core


def check(
    con: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    index_type: str = "IVF_FLAT",
    k: int = 20,
    metric: str = "L2",
    params: dict[str, int] | None = None,
) -> None:
    """Compare three searches with plain SQL."""
    chosen = EXHAUSTIVE[index_type] if params is None else params
    for number in range(3):
        query = vectors.query(number)
        found = search(con, query, k, params=chosen or None)
        assert_same(found, exact(con, query, k, metric=metric))


def route(con: duckdb.DuckDBPyConnection, query: list[float]) -> str:
    """Return whether a search joins the hits of an index, or scans."""
    plan = con.execute(
        "EXPLAIN SELECT id, distance FROM vector_search('items', ?, 10)", [query]
    ).fetchall()
    return "index" if "unnest" in plan[0][1].lower() else "exact"


def test_own_and_other_transactions(path: Path, vectors: Vectors) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    other = con.cursor()
    duckvec.load(other)
    near = vectors.query(0)
    con.execute("BEGIN")
    con.execute("INSERT INTO items VALUES (-1, 0, ?)", [near])
    con.execute("DELETE FROM items WHERE id < 1000")
    con.execute("UPDATE items SET embedding = ? WHERE id = 1500", [near])
    check(con, vectors)
    check(other, vectors)
    assert search(con, near, 2)[0][1] == 0
    assert search(other, near, 1)[0][1] > 0
    con.execute("ROLLBACK")
    check(con, vectors)
    con.close()


@pytest.mark.parametrize("index_type", EXHAUSTIVE)
def test_deletes_updates_and_upserts(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, index_type: str
) -> None:
    create_table(con, vectors)
    con.execute("ALTER TABLE items ADD PRIMARY KEY (id)")
    create(con, index_type)
    near = vectors.query(0)
    for statement in (
        "DELETE FROM items WHERE id % 3 = 0",
        "UPDATE items SET price = price + 1",
        "UPDATE items SET embedding = list_transform(embedding::FLOAT[], "
        "lambda x: x + 1)::FLOAT[16] WHERE id % 7 = 1",
        "INSERT OR REPLACE INTO items SELECT id, 1, embedding FROM items LIMIT 50",
        "INSERT INTO items SELECT id + 100000, 1, embedding FROM items LIMIT 500",
        "DELETE FROM items WHERE id % 10 <> 0",
        "TRUNCATE items",
    ):
        con.execute(statement)
        check(con, vectors, index_type)
        assert len(search(con, near, 300)) == len(exact(con, near, 300))


def test_nine_tenths_deleted_still_gives_k_rows_by_the_index(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.execute("DELETE FROM items WHERE id % 10 <> 0")
    assert len(search(con, vectors.query(0), 100)) == 100
    duckvec.load(con).wait()
    assert route(con, vectors.query(0)) == "index"
    assert len(search(con, vectors.query(0), 100)) == 100
    check(con, vectors)


def test_an_older_snapshot_gets_its_own_answer(path: Path, vectors: Vectors) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    old = con.cursor()
    duckvec.load(old)
    old.execute("BEGIN")
    wanted = exact(old, vectors.query(0))
    con.execute("DELETE FROM items WHERE id < 2000")
    con.execute("INSERT INTO items VALUES (-1, 0, ?)", [vectors.query(0)])
    create(con, "FLAT")
    assert_same(search(old, vectors.query(0)), wanted)
    old.execute("COMMIT")
    check(con, vectors, "FLAT")
    check(old, vectors, "FLAT")
    con.close()


@pytest.mark.parametrize("index_type", ["FLAT", "IVF_FLAT", "IVF_SQ8"])
def test_checkpoints_and_reopening(
    path: Path, vectors: Vectors, index_type: str
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, index_type)
    con.execute("DELETE FROM items WHERE id % 4 = 0")
    con.execute("INSERT INTO items SELECT id + 10000, 1, embedding FROM items LIMIT 9")
    con.execute("CHECKPOINT")
    check(con, vectors, index_type)
    con.execute("FORCE CHECKPOINT")
    check(con, vectors, index_type)
    con.close()
    for read_only in (False, True, False):
        con = duckdb.connect(str(path), read_only=read_only)
        handle = duckvec.load(con)
        check(con, vectors, index_type)
        handle.wait()
        assert route(con, vectors.query(0)) == "index"
        check(con, vectors, index_type)
        con.close()


def test_changes_made_without_duckvec_are_noticed(path: Path, vectors: Vectors) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.close()
    plain = duckdb.connect(str(path))
    plain.execute("DELETE FROM items WHERE id % 2 = 0")
    plain.execute("INSERT INTO items VALUES (-5, 0, ?)", [vectors.query(0)])
    plain.execute("CHECKPOINT")
    plain.execute("UPDATE items SET embedding = ? WHERE id = 7", [vectors.query(1)])
    plain.close()
    con = duckdb.connect(str(path))
    handle = duckvec.load(con)
    handle.wait()
    assert route(con, vectors.query(0)) == "index"
    check(con, vectors)
    con.close()


def test_a_table_dropped_and_made_again_does_not_use_the_old_index(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.execute("DROP TABLE items")
    create_table(con, clustered(3000, 16, seed=99))
    check(con, vectors, params={})
    con.execute("BEGIN")
    con.execute("DROP TABLE items")
    create_table(con, clustered(500, 16, seed=5))
    check(con, vectors, params={})
    con.execute("COMMIT")
    check(con, vectors, params={})


def test_altered_tables(con: duckdb.DuckDBPyConnection, vectors: Vectors) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.execute("ALTER TABLE items ADD COLUMN note VARCHAR DEFAULT 'x'")
    check(con, vectors)
    con.execute("ALTER TABLE items DROP COLUMN price")
    check(con, vectors)
    con.execute("ALTER TABLE items ALTER embedding TYPE FLOAT[]")
    check(con, vectors)
    con.execute("ALTER TABLE items RENAME COLUMN embedding TO v")
    found = search(con, vectors.query(0))
    assert_same(found, exact(con, vectors.query(0), column="v"))
    con.execute("ALTER TABLE items RENAME TO things")
    found = search(con, vectors.query(0), collection="things")
    wanted = exact(con, vectors.query(0), source="things", column="v")
    assert_same(found, wanted)


def test_streaming_starts_with_an_empty_table(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    con.execute("CREATE TABLE items (id BIGINT, price INTEGER, embedding FLOAT[16])")
    row = create(con, "IVF_FLAT")
    assert row["segment_count"] == 0
    big = clustered(6000, 16)
    data = arrow_table(big.rows)
    con.execute("INSERT INTO items SELECT id, 1, vector FROM data")
    del data
    check(con, big)
    duckvec.load(con).wait()
    segments = con.execute("FROM vector_index_segments()").fetchall()
    assert len(segments) == 1
    assert route(con, big.query(0)) == "index"
    check(con, big)
    con.execute("INSERT INTO items SELECT id + 50000, 1, embedding FROM items LIMIT 10")
    con.execute("DELETE FROM items WHERE id < 5")
    check(con, big)


@pytest.mark.parametrize("seed", range(4))
def test_random_changes(path: Path, seed: int) -> None:
    """Random statements, transactions, checkpoints and reopening, against plain SQL."""
    rng = np.random.default_rng(seed)
    vectors = clustered(2500, 8, seed=seed)
    index_type = ["IVF_FLAT", "FLAT", "IVF_SQ8", "IVF_FLAT"][seed]
    metric = ["L2", "IP", "COSINE", "COSINE"][seed]
    con = duckvec.connect(str(path))
    create_table(con, vectors, column_type="FLOAT[8]" if seed % 2 else "FLOAT[]")
    create(con, index_type, metric=metric)
    open_transaction = False
    next_id = 10_000
    for step in range(60):
        action = rng.integers(0, 12)
        low = int(rng.integers(0, 2500))
        if action <= 2:
            rows = int(rng.integers(1, 60))
            con.execute(
                f"INSERT INTO items SELECT {next_id} + row_number() OVER (), 1, "
                f"embedding FROM items USING SAMPLE {rows}"
            )
            next_id += 100
        elif action <= 4:
            con.execute(f"DELETE FROM items WHERE id BETWEEN {low} AND {low + 60}")
        elif action == 5:
            con.execute(
                "UPDATE items SET embedding = list_transform(embedding::FLOAT[], "
                f"lambda x: x * 0.9) WHERE id BETWEEN {low} AND {low + 30}"
            )
        elif action == 6 and not open_transaction:
            con.execute("BEGIN")
            open_transaction = True
        elif action in (7, 8) and open_transaction:
            con.execute("COMMIT" if action == 7 else "ROLLBACK")
            open_transaction = False
        elif action == 9 and not open_transaction:
            con.execute("CHECKPOINT")
        elif action == 10 and not open_transaction:
            con.close()
            con = duckvec.connect(str(path))
            if rng.integers(0, 2):
                duckvec.load(con).wait()
        elif action == 11 and not open_transaction and step % 2:
            create(con, index_type, metric=metric)
        check(con, vectors, index_type, int(rng.choice([1, 10, 200])), metric)
    con.close()


def test_zero_vectors_have_no_direction(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    con.execute(
        "INSERT INTO items SELECT -id - 1, 0, list_transform(embedding::FLOAT[], "
        "lambda x: 0)::FLOAT[16] FROM items LIMIT 500"
    )
    for index_type in ("FLAT", "IVF_FLAT"):
        create(con, index_type, metric="COSINE")
        found = search(con, vectors.query(0), 50, params=EXHAUSTIVE[index_type])
        wanted = exact(
            con,
            vectors.query(0),
            50,
            metric="COSINE",
            source="(FROM items WHERE id >= 0)",
        )
        assert_same(found, wanted)


@pytest.mark.parametrize(
    "setting",
    [
        "preserve_insertion_order = false",
        "default_order = 'DESC'",
        "default_null_order = 'nulls_first'",
    ],
)
def test_settings_that_change_orders_change_no_answer(
    con: duckdb.DuckDBPyConnection, setting: str
) -> None:
    big = clustered(250_000, 4)
    data = arrow_table(big.rows)
    con.execute("CREATE TABLE items AS SELECT id, vector AS embedding FROM data")
    del data
    wanted = exact(con, big.query(0))
    con.execute(f"SET {setting}")
    assert_same(search(con, big.query(0)), wanted)
    create(con, "IVF_FLAT")
    con.execute("DELETE FROM items WHERE id % 10 = 0")
    con.execute(f"RESET {setting.split()[0]}")
    wanted = exact(con, big.query(0))
    con.execute(f"SET {setting}")
    for _ in range(3):
        assert_same(search(con, big.query(0), params={"nprobe": 32}), wanted)
    duckvec.load(con).wait()
    [(rows, indexed)] = con.execute(
        "SELECT row_count, indexed_rows FROM vector_indexes()"
    ).fetchall()
    assert rows == indexed == 225_000
    assert_same(search(con, big.query(0), params={"nprobe": 32}), wanted)


def test_altered_vector_columns(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.execute(
        "ALTER TABLE items ALTER embedding TYPE DOUBLE[16] "
        "USING list_transform(embedding::FLOAT[], lambda x: -x)"
    )
    check(con, vectors)
    check(con, vectors)
    con.execute("ALTER TABLE items DROP COLUMN embedding")
    con.execute("ALTER TABLE items ADD COLUMN embedding FLOAT[3]")
    con.execute("UPDATE items SET embedding = [1, 2, 3]")
    assert con.execute(
        "SELECT distance FROM vector_search('items', [1, 2, 3], 2)"
    ).fetchall() == [(0.0,), (0.0,)]


def test_generated_columns_are_not_indexed(con: duckdb.DuckDBPyConnection) -> None:
    con.execute(
        "CREATE TABLE t (a FLOAT, v FLOAT[2] GENERATED ALWAYS AS ([a, 1]::FLOAT[2]))"
    )
    con.execute("INSERT INTO t SELECT i FROM range(100) r(i)")
    with pytest.raises(duckdb.Error, match="is generated"):
        create(con, "FLAT", "t")
    con.execute("UPDATE t SET a = 1000 WHERE a = 3")
    found = con.execute("SELECT a FROM vector_search('t', [1000, 1], 1)").fetchall()
    assert found == [(1000.0,)]


def test_an_index_made_before_any_row_survives_reopening(path: Path) -> None:
    con = duckvec.connect(str(path))
    con.execute("CREATE TABLE items (id BIGINT, embedding FLOAT[16])")
    create(con, "IVF_FLAT")
    con.close()
    con = duckdb.connect(str(path))
    handle = duckvec.load(con)
    big = clustered(6000, 16)
    data = arrow_table(big.rows)
    con.execute("INSERT INTO items SELECT id, vector FROM data")
    del data
    handle.wait()
    rows = con.execute("SELECT indexed_rows FROM vector_indexes()").fetchall()
    assert rows == [(6000,)]
    check(con, big)
    con.close()


def test_queries_and_rows_without_a_finite_distance(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    for metric in ("COSINE", "L2"):
        create(con, "FLAT", metric=metric)
        query = [0.0] * 16 if metric == "COSINE" else [3e38] * 16
        by_index = [distance for _, distance in search(con, query)]
        con.execute("CALL drop_vector_index('items')").fetchall()
        assert by_index == [distance for _, distance in search(con, query)]


def test_a_row_with_entries_in_two_segments_is_found_once(path: Path) -> None:
    big = clustered(12_000, 16)
    con = duckvec.connect(str(path), background=False)
    create_table(con, big)
    create(con, "IVF_FLAT")
    # Row 7,000 matches no entry any more, so that it and all after it are in the tail,
    # and wait() seals rows that the first segment holds too.
    con.execute(
        "CREATE OR REPLACE TABLE items AS SELECT id, price, "
        "if(id = 7000, $vector::FLOAT[], embedding::FLOAT[])::FLOAT[16] AS embedding "
        "FROM items",
        {"vector": big.query(5)},
    )
    duckvec.load(con).wait()
    segments = con.execute("FROM vector_index_segments()").fetchall()
    assert len(segments) == 2
    check(con, big)
    con.close()
    con = duckdb.connect(str(path))
    duckvec.load(con).wait()
    assert route(con, big.query(0)) == "index"
    check(con, big)
    ids = [row[0] for row in search(con, big.query(0), 100)]
    assert len(set(ids)) == 100
    con.close()


def test_a_snapshot_of_an_attached_database_from_before_its_first_index(
    tmp_path: Path,
) -> None:
    con = duckvec.connect()
    con.execute(f"ATTACH '{tmp_path / 'shop.db'}' AS shop")
    con.execute("CREATE TABLE shop.t AS SELECT 1 AS id, [1, 2]::FLOAT[2] AS v")
    old = con.cursor()
    duckvec.load(old)
    old.execute("BEGIN")
    old.execute("FROM shop.t").fetchall()
    con.execute("CALL create_vector_index('shop.t', 'FLAT')").fetchall()
    found = old.execute("SELECT id FROM vector_search('shop.t', [1, 2])").fetchall()
    assert found == [(1,)]


def test_a_list_table_made_again_with_vectors_of_another_length(path: Path) -> None:
    con = duckvec.connect(str(path))
    for dimension in (8, 3):
        vectors = clustered(300, dimension)
        con.execute("DROP TABLE IF EXISTS items")
        create_table(con, vectors, column_type="FLOAT[]")
        if dimension == 8:
            create(con, "FLAT")
        check(con, vectors, "FLAT")
