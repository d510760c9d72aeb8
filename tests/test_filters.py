"""Filters: k rows whenever k pass, by every route, and the route that is quicker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pytest

from duckvec import selectivity
from duckvec.instance import loaded
from duckvec.metrics import METRICS
from tests.data import (
    EXHAUSTIVE,
    PARAMS,
    Vectors,
    arrow_table,
    assert_same,
    clustered,
    create,
    create_table,
    exact,
    search,
)
from tests.index_types import as_given, build
from tests.index_types import clustered as rows
from tests.upkeep import filters_by_index

pytestmark = pytest.mark.core

FILTERS = {
    "price < 50": 0.5,
    "price < 10": 0.1,
    "price = 3": 0.01,
    "id IN (SELECT 5 * x FROM range(30) AS r(x))": 0.01,
    "items.price = 3 AND id % 500 = 3": 0.002,
    "true": 1.0,
    "false": 0.0,
    "NULL": 0.0,
}


@pytest.fixture
def by_index() -> Iterator[None]:
    with filters_by_index():
        yield


def uses_index(con: duckdb.DuckDBPyConnection, query: list[float], where: str) -> bool:
    plan = con.execute(
        "EXPLAIN FROM vector_search('items', $query, 10, filter := $where)",
        {"query": query, "where": where},
    ).fetchall()
    return "unnest" in plan[0][1].lower()


@pytest.mark.parametrize("metric", ["L2", "IP", "COSINE"])
@pytest.mark.parametrize("index_type", ["FLAT", "IVF_FLAT"])
def test_exhaustive_searches_equal_exact_sql_at_every_selectivity(
    con: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    by_index: None,
    index_type: str,
    metric: str,
) -> None:
    create_table(con, vectors)
    create(con, index_type, metric=metric)
    for where in FILTERS:
        source = f"(FROM items WHERE {where})"
        assert uses_index(con, vectors.query(0), where)
        for k in (1, 10, 100):
            query = vectors.query(k % 5)
            found = search(
                con, query, k, filter=where, params=EXHAUSTIVE[index_type] or None
            )
            assert_same(found, exact(con, query, k, metric, source))


@pytest.mark.parametrize("index_type", sorted(PARAMS))
def test_k_rows_come_back_and_recall_holds_at_every_selectivity(
    con: duckdb.DuckDBPyConnection, by_index: None, index_type: str
) -> None:
    pytest.importorskip({"HNSW": "hnswlib", "ANNOY": "annoy"}.get(index_type, "faiss"))
    vectors = clustered(8000, 16)
    create_table(con, vectors)
    create(con, index_type)
    recalls = {where: recall(con, vectors, where) for where in FILTERS}
    for where, found in recalls.items():
        assert found >= recalls["true"] - 0.02, where


def recall(con: duckdb.DuckDBPyConnection, vectors: Vectors, where: str) -> float:
    """Return the recall@10 of joined queries; each gets as many rows as pass, or 10."""
    queries = arrow_table(vectors.queries)
    con.execute("CREATE OR REPLACE TABLE queries AS FROM queries")
    del queries
    passing = con.execute(f"SELECT count(*) FROM items WHERE {where}").fetchall()[0][0]
    rows = con.execute(
        "SELECT q.id, hit.distance, hit.price FROM queries AS q, "
        "vector_search('items', q.vector, 10, filter := $where) AS hit",
        {"where": where},
    ).fetchall()
    assert len(rows) == min(10, passing) * len(vectors.queries)
    if not passing:
        return 1.0
    right = 0
    for number in range(len(vectors.queries)):
        wanted = exact(con, vectors.query(number), source=f"(FROM items WHERE {where})")
        right += sum(row[1] <= wanted[-1] * 1.00001 for row in rows if row[0] == number)
    return right / len(rows)


@pytest.mark.parametrize("index_type", [None, "FLAT", "HNSW", "IVF_SQ8"])
def test_single_searches_with_a_filter_find_what_passes(
    con: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    by_index: None,
    index_type: str | None,
) -> None:
    pytest.importorskip("hnswlib" if index_type == "HNSW" else "faiss")
    create_table(con, vectors)
    if index_type:
        create(con, index_type)
    for where, share in FILTERS.items():
        rows = con.execute(
            "SELECT id, price FROM vector_search('items', $q, 10, filter := $where)",
            {"q": vectors.query(2), "where": where},
        ).fetchall()
        passing = dict(
            con.execute(f"SELECT id, price FROM items WHERE {where}").fetchall()
        )
        assert len(rows) == min(10, len(passing))
        assert all(passing[number] == price for number, price in rows), (where, share)


def test_rows_of_the_tail_and_of_the_own_transaction_are_filtered_too(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, by_index: None
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")
    con.execute("INSERT INTO items SELECT id + 10000, price, embedding FROM items")
    con.execute("BEGIN")
    con.execute("INSERT INTO items SELECT id + 10000, 7, embedding FROM items")
    con.execute("DELETE FROM items WHERE id % 3 = 0")
    con.execute("UPDATE items SET price = 7 WHERE id % 100 = 8")
    for where in ("price = 7", "price < 10", "id > 9000 AND price = 7"):
        query = vectors.query(1)
        wanted = exact(con, query, source=f"(FROM items WHERE {where})")
        assert_same(search(con, query, filter=where), wanted)
    con.execute("ROLLBACK")
    wanted = exact(con, query, source="(FROM items WHERE price = 7)")
    assert_same(search(con, query, filter="price = 7"), wanted)


def test_a_join_evaluates_the_filter_once(
    con: duckdb.DuckDBPyConnection, by_index: None
) -> None:
    vectors = clustered(3000, 16)
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    calls: list[int] = []

    def passes(number: int) -> bool:
        calls.append(number)
        return number % 2 == 0

    con.create_function("passes", passes, ["BIGINT"], "BOOLEAN", side_effects=False)
    rows = con.execute(
        "SELECT q.id, hit.id FROM items AS q, vector_search("
        "'items', q.embedding, 2, filter := 'passes(id)') AS hit"
    ).fetchall()
    assert len(rows) == 6000
    assert all(number % 2 == 0 for _, number in rows)
    assert len(calls) <= 3 * 3000  # counted once, and once for the covered and the tail


def test_several_filtered_searches_in_one_statement_keep_apart(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, by_index: None
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")
    parts = [
        f"SELECT {n} AS part, id, distance, price FROM vector_search("
        f"'items', $q, 5, filter := 'price = {n}')"
        for n in range(20)
    ]
    rows = con.execute(" UNION ALL ".join(parts), {"q": vectors.query(0)}).fetchall()
    assert len(rows) == 100
    assert all(part == price for part, _, _, price in rows)


def test_a_prepared_search_follows_the_rows(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, by_index: None
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")
    literal = str(vectors.query(0))
    con.execute(
        "PREPARE near AS SELECT id, distance "
        "FROM vector_search('items', ?, 5, filter := 'price = 3')"
    )
    for number in range(25):
        found = con.execute(f"EXECUTE near({literal})").fetchall()
        wanted = exact(con, vectors.query(0), 5, source="(FROM items WHERE price = 3)")
        assert_same(found, wanted)
        con.execute("DELETE FROM items WHERE id = $id", {"id": found[number % 5][0]})


def test_few_rows_are_scanned_and_many_go_by_the_index(
    con: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")
    monkeypatch.setattr(selectivity, "FEW_SECONDS", 1e-5)
    assert uses_index(con, vectors.query(0), "price < 60")
    assert not uses_index(con, vectors.query(0), "price = 3")
    # The share is measured again after the table changed.
    monkeypatch.setattr(selectivity, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(selectivity, "KEEP_TIMES", 0)
    con.execute("UPDATE items SET price = 3 WHERE id % 2 = 0")
    assert uses_index(con, vectors.query(0), "price = 3")


@pytest.mark.parametrize("text", ["price <", "1; DROP TABLE items", "price) OR (true"])
def test_what_is_no_expression_is_refused(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, by_index: None, text: str
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")
    for _ in range(2):
        with pytest.raises(duckdb.Error, match="is not one SQL expression"):
            search(con, vectors.query(0), filter=text)
    assert len(search(con, vectors.query(0), filter="price < 10")) == 10


def test_functions_of_the_connection_work_in_a_filter(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, by_index: None
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")
    con.execute("CREATE TEMP MACRO cheap(price) AS price < 10")
    wanted = exact(con, vectors.query(0), source="(FROM items WHERE price < 10)")
    assert_same(search(con, vectors.query(0), filter="cheap(price)"), wanted)


def test_the_vectors_of_few_entries_are_compared_one_and_all(
    con: duckdb.DuckDBPyConnection, by_index: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hnswlib")
    pytest.importorskip("annoy")
    vectors = clustered(4000, 16)
    create_table(con, vectors)
    for index_type in ("HNSW", "ANNOY", "NSG"):
        create(con, index_type)
        segment = _segment(con)
        with monkeypatch.context() as patch:
            patch.setattr(segment, "search", None)  # what it would be called for
            assert recall(con, vectors, "price < 10") == 1.0


def _segment(con: duckdb.DuckDBPyConnection) -> Any:
    """Return the opened segment of the only index of a connection."""
    for instance in loaded.values():
        if instance.find_session_of(con) is not None:
            (state,) = (s for s in instance.databases.values() if s.indexes)
            (index,) = state.indexes.values()
            with index.segments[0].use() as opened:
                return opened
    raise AssertionError("the connection is not loaded")


def test_vectors_come_back_as_they_were_given() -> None:
    pytest.importorskip("hnswlib")
    pytest.importorskip("annoy")
    for metric in METRICS.values():
        vectors = as_given(np.concatenate([rows(300), rows(50)]), metric)
        for name in ("HNSW", "ANNOY", "NSG"):
            _, segment = build(name, metric, vectors)
            at = np.array([3, 310, 7, 7])
            found = segment.vectors(at)
            assert found is not None
            np.testing.assert_allclose(found, vectors[at], rtol=1e-6)


@pytest.mark.parametrize("index_type", ["IVF_FLAT", "IVF_SQ8", "HNSW", "NSG", "ANNOY"])
def test_a_filter_may_exclude_the_surroundings_of_the_query(
    con: duckdb.DuckDBPyConnection, by_index: None, index_type: str
) -> None:
    pytest.importorskip({"HNSW": "hnswlib", "ANNOY": "annoy"}.get(index_type, "faiss"))
    vectors = clustered(8000, 16)
    create_table(con, vectors)
    create(con, index_type)
    right = wanted = in_range = 0
    for number in range(10):
        query = vectors.query(number)
        nearest = exact(con, query, 1500)[-1]
        where = f"array_distance(embedding, {query}::FLOAT[16]) > {nearest}"
        truth = exact(con, query, 10, source=f"(FROM items WHERE {where})")
        found = search(con, query, filter=where)
        assert len(found) == 10
        right += sum(distance <= truth[-1] * 1.00001 for _, distance in found)
        radius = exact(con, query, 1600)[-1]
        rows = con.execute(
            "SELECT id FROM vector_range_search('items', $q, $r, filter := $where)",
            {"q": query, "r": radius, "where": where},
        ).fetchall()
        in_range, wanted = in_range + len(rows), wanted + 100
    assert right >= 90
    assert in_range >= 0.85 * wanted


def test_a_filter_sees_none_of_our_names(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, by_index: None
) -> None:
    create_table(con, vectors)
    for index_type in (None, "FLAT"):
        if index_type:
            create(con, index_type)
        for where in ("vector IS NOT NULL", "__q.vector IS NOT NULL", "__t.id > 0"):
            with pytest.raises(duckdb.Error):
                search(con, vectors.query(0), filter=where)


def test_a_filter_that_takes_long_is_not_counted_to_the_end(
    con: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")
    monkeypatch.setattr(selectivity, "COUNT_SECONDS", 0.02)
    slow = "price = (SELECT sum(hash(x)) % 100 FROM range(100_000_000) AS r(x))"
    assert uses_index(con, vectors.query(0), slow)
