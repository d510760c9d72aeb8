"""Searching: every route gives what plain SQL gives, in every form of SQL."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pytest

import duckvec
from duckvec.index_types._ivf_segment import IvfSegment
from tests.data import (
    EXHAUSTIVE,
    FUNCTIONS,
    PARAMS,
    Vectors,
    arrow_table,
    assert_same,
    create,
    create_table,
    exact,
    search,
)

pytestmark = pytest.mark.core

METRICS = ("L2", "IP", "COSINE")
COLUMN_TYPES = ("FLOAT[16]", "FLOAT[]", "DOUBLE[16]", "DOUBLE[]")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("column_type", COLUMN_TYPES)
def test_without_an_index_every_search_is_exact(
    memory: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    metric: str,
    column_type: str,
) -> None:
    create_table(memory, vectors, column_type=column_type)
    for number in range(3):
        query = vectors.query(number)
        found = search(memory, query, metric=metric)
        assert_same(found, exact(memory, query, metric=metric))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("index_type", EXHAUSTIVE)
def test_exhaustive_parameters_give_the_exact_answer(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, index_type: str, metric: str
) -> None:
    create_table(con, vectors)
    create(con, index_type, metric=metric)
    for number in range(5):
        query = vectors.query(number)
        found = search(con, query, params=EXHAUSTIVE[index_type])
        assert_same(found, exact(con, query, metric=metric))


@pytest.mark.parametrize("column_type", COLUMN_TYPES)
@pytest.mark.parametrize("index_type", ["FLAT", "IVF_FLAT"])
def test_every_column_type_can_be_indexed(
    con: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    index_type: str,
    column_type: str,
) -> None:
    create_table(con, vectors, column_type=column_type)
    create(con, index_type)
    query = vectors.query(0)
    found = search(con, query, params=EXHAUSTIVE[index_type])
    assert_same(found, exact(con, query))


@pytest.mark.parametrize("index_type", PARAMS)
def test_distances_are_duckdbs_and_k_rows_come_back(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, index_type: str
) -> None:
    pytest.importorskip({"HNSW": "hnswlib", "ANNOY": "annoy"}.get(index_type, "faiss"))
    create_table(con, vectors)
    create(con, index_type)
    for k in (1, 10, 500):
        found = search(con, vectors.query(1), k)
        assert len(found) == k
        assert len({number for number, _ in found}) == k
        wanted = con.execute(
            "SELECT id, array_distance(embedding, $query::FLOAT[16]) FROM items "
            "WHERE list_contains($ids, id)",
            {"query": vectors.query(1), "ids": [number for number, _ in found]},
        ).fetchall()
        assert dict(found) == dict(wanted)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("column_type", COLUMN_TYPES)
def test_distances_of_hits_have_the_bits_of_array_functions(
    memory: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    column_type: str,
    metric: str,
) -> None:
    create_table(memory, vectors, column_type=column_type)
    create(memory, "IVF_FLAT", metric=metric)
    array = column_type.replace("[]", "[16]")
    function = f"array_{FUNCTIONS[metric]}"
    query = vectors.query(0)
    assert memory.execute(
        f"SELECT count(*), count(*) FILTER (distance = {function}("
        f"embedding::{array}, $query::{array})) "
        "FROM vector_search('items', $query, 1000)",
        {"query": query},
    ).fetchall() == [(1000, 1000)]


@pytest.mark.parametrize("buffers", ["false", "true"], ids=["small", "large"])
def test_arrow_may_be_set_to_list_views(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, buffers: str
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.execute("SET arrow_output_version = '1.4'")
    con.execute("SET arrow_output_list_view = true")
    con.execute(f"SET arrow_large_buffer_size = {buffers}")
    query = vectors.query(0)
    for condition in ("true", "price < 50"):
        found = search(con, query, params=EXHAUSTIVE["IVF_FLAT"], filter=condition)
        passing = f"(FROM items WHERE {condition})"
        assert_same(found, exact(con, query, source=passing))
    assert_same(search(con, query, 3000), exact(con, query, 3000))
    assert con.execute(
        "SELECT count(*) FROM (FROM items LIMIT 50) AS q, "
        "vector_search('items', q.embedding, 3) AS h"
    ).fetchall() == [(150,)]


def test_k_beyond_the_rows_returns_all_rows(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    assert len(search(con, vectors.query(0), 16384)) == 3000


def test_the_table_s_columns_come_back_with_the_distance(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    for index_type in (None, "IVF_FLAT"):
        if index_type:
            create(con, index_type)
        result = con.execute("FROM vector_search('items', ?, 3)", [vectors.query(0)])
        names = [column[0] for column in result.description or ()]
        assert names == ["id", "price", "embedding", "distance"]


@pytest.fixture
def indexed(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> duckdb.DuckDBPyConnection:
    """A table `items` with an exhaustively searched index, and a table `queries`."""
    create_table(con, vectors)
    create(con, "FLAT")
    queries = arrow_table(vectors.queries)
    con.execute("CREATE TABLE queries AS SELECT id, vector AS embedding FROM queries")
    del queries
    return con


def test_literals_parameters_and_text(
    indexed: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    query = vectors.query(0)
    literal = "[" + ", ".join(repr(x) for x in query) + "]"
    wanted = search(indexed, query, 4)
    sql = "SELECT id, distance FROM vector_search('items', {}, 4)"
    for text in (literal, f"'{literal}'", f"{literal}::FLOAT[16]"):
        assert indexed.execute(sql.format(text)).fetchall() == wanted
    positional = "SELECT id, distance FROM vector_search(?, ?, ?)"
    assert indexed.execute(positional, ["items", query, 4]).fetchall() == wanted
    named = "SELECT id, distance FROM vector_search('items', query => $q, k => $k)"
    assert indexed.execute(named, {"q": query, "k": 4}).fetchall() == wanted


def test_subqueries_views_ctes_and_prepared_statements(
    indexed: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    one = "(SELECT embedding FROM queries WHERE id = 3)"
    wanted = search(indexed, vectors.query(3), 5)
    sql = f"SELECT id, distance FROM vector_search('items', {one}, 5)"
    assert indexed.execute(sql).fetchall() == wanted
    indexed.execute(f"CREATE VIEW nearest AS {sql}")
    assert indexed.execute("FROM nearest").fetchall() == wanted
    indexed.execute(f"CREATE TABLE kept AS {sql}")
    assert indexed.execute("FROM kept ORDER BY distance").fetchall() == wanted
    cte = f"WITH hits AS ({sql}) SELECT * FROM hits"
    assert indexed.execute(cte).fetchall() == wanted
    indexed.execute(
        "PREPARE near AS SELECT id, distance FROM vector_search('items', ?, 5)"
    )
    literal = "[" + ", ".join(repr(x) for x in vectors.query(3)) + "]"
    assert indexed.execute(f"EXECUTE near({literal})").fetchall() == wanted
    # The prepared statement and the view follow the index and the rows.
    indexed.execute(f"INSERT INTO items VALUES (99999, 1, {literal})")
    assert indexed.execute(f"EXECUTE near({literal})").fetchall()[0][0] == 99999
    assert indexed.execute("FROM nearest").fetchall()[0][0] == 99999
    create(indexed, "IVF_FLAT")
    assert indexed.execute(f"EXECUTE near({literal})").fetchall()[0][0] == 99999
    indexed.execute("CALL drop_vector_index('items')")
    assert indexed.execute(f"EXECUTE near({literal})").fetchall()[0][0] == 99999


@pytest.mark.parametrize("index_type", [None, "FLAT", "IVF_FLAT", "IVF_SQ8"])
@pytest.mark.parametrize("join", [",", "LEFT JOIN LATERAL"])
def test_a_join_searches_once_for_each_row(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, index_type: str | None, join: str
) -> None:
    create_table(con, vectors)
    queries = arrow_table(vectors.queries)
    con.execute("CREATE TABLE queries AS SELECT id, vector AS embedding FROM queries")
    del queries
    params = None
    if index_type:
        create(con, index_type)
        params = EXHAUSTIVE[index_type] or None
    on = " ON true" if join.startswith("LEFT") else ""
    call = "vector_search('items', q.embedding, 7, params := $params)"
    rows = con.execute(
        f"SELECT q.id, h.id, h.distance FROM queries q {join} {call} h{on} "
        "ORDER BY q.id, h.distance",
        {"params": params},
    ).fetchall()
    assert len(rows) == 7 * len(vectors.queries)
    for number in range(len(vectors.queries)):
        found = [(row[1], row[2]) for row in rows if row[0] == number]
        assert_same(found, exact(con, vectors.query(number), 7))


def test_a_large_join_runs_in_several_chunks(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    rows = con.execute(
        "SELECT q.id, h.id, h.distance FROM items q, "
        "vector_search('items', q.embedding, 2) h"
    ).fetchall()
    assert len(rows) == 2 * 3000
    own = {(query, hit): distance for query, hit, distance in rows if query == hit}
    assert len(own) == 3000
    assert max(own.values()) < 1e-3


@pytest.mark.parametrize("index_type", [None, "IVF_FLAT"])
def test_null_queries_find_nothing(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, index_type: str | None
) -> None:
    create_table(con, vectors)
    if index_type:
        create(con, index_type)
    assert search(con, None) == []
    assert con.execute("FROM vector_search('items', NULL)").fetchall() == []
    rows = con.execute(
        "SELECT q.n, count(h.id) FROM (SELECT 1 AS n, NULL::FLOAT[] AS v UNION ALL "
        "SELECT 2, embedding FROM items WHERE id = 5) q "
        "LEFT JOIN LATERAL vector_search('items', q.v, 3) h ON true "
        "GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    assert rows == [(1, 0), (2, 3)]


@pytest.mark.parametrize("index_type", [None, "IVF_FLAT"])
def test_null_vectors_are_never_returned(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, index_type: str | None
) -> None:
    create_table(con, vectors)
    con.execute("INSERT INTO items VALUES (-1, 0, NULL), (-2, 0, NULL)")
    if index_type:
        create(con, index_type)
    con.execute("INSERT INTO items VALUES (-3, 0, NULL)")
    found = search(con, vectors.query(0), 16384)
    assert len(found) == 3000
    assert min(number for number, _ in found) >= 0


@pytest.mark.parametrize("index_type", [None, "FLAT"])
def test_a_filter_limits_the_rows(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, index_type: str | None
) -> None:
    create_table(con, vectors)
    if index_type:
        create(con, index_type)
    query = vectors.query(0)
    found = search(con, query, filter="price < 3 -- cheap")
    wanted = exact(con, query, source="(FROM items WHERE price < 3)")
    assert_same(found, wanted)


def test_a_filter_limits_the_rows_to_those_that_qualify(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    condition = "price IN (SELECT 7) AND id BETWEEN 100 AND 1000"
    assert len(search(con, vectors.query(0), 50, filter=condition)) == 9


def test_search_parameters_are_used(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT", params={"nlist": 64})
    exact_rows = search(con, vectors.query(0), 100, params={"nprobe": 64})
    few = search(con, vectors.query(0), 100, params={"nprobe": 1})
    assert_same(exact_rows, exact(con, vectors.query(0), 100))
    assert few != exact_rows
    for params in ('{"nprobe": 64}', '<"nprobe":64>'):
        assert search(con, vectors.query(0), 100, params=params) == exact_rows
    struct = con.execute(
        "SELECT id, distance FROM "
        "vector_search('items', ?, 100, params := {'nprobe': 64})",
        [vectors.query(0)],
    ).fetchall()
    assert struct == exact_rows


def test_several_searches_in_one_statement(
    indexed: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    rows = indexed.execute(
        "SELECT a.id, b.id FROM vector_search('items', $a, 2) a, "
        "vector_search('items', $b, 2) b",
        {"a": vectors.query(0), "b": vectors.query(1)},
    ).fetchall()
    assert {row[0] for row in rows} == {
        n for n, _ in search(indexed, vectors.query(0), 2)
    }
    assert {row[1] for row in rows} == {
        n for n, _ in search(indexed, vectors.query(1), 2)
    }


def test_the_handle_searches_one_vector_and_many(
    path: object, vectors: Vectors
) -> None:
    with duckdb.connect() as con:
        handle = duckvec.load(con)
        create_table(con, vectors)
        handle.create("items", "IVF_FLAT", {"nlist": 32})
        one = handle.search("items", vectors.queries[0], 3).project("id, distance")
        assert one.fetchall() == search(con, vectors.query(0), 3)
        many = handle.search("items", vectors.queries, 3, params={"nprobe": 32})
        assert many.columns[0] == "query_index"
        assert len(many.fetchall()) == 3 * len(vectors.queries)
        data = arrow_table(vectors.queries)
        con.execute("CREATE TABLE queries AS FROM data")
        del data
        table = handle.search("queries", "queries", 1)
        assert [row[-1] for row in table.fetchall()] == pytest.approx(
            np.zeros(len(vectors.queries)), abs=1e-3
        )
        assert handle.indexes().project("index_type").fetchall() == [("IVF_FLAT",)]
        assert handle.drop("items")["index_type"] == "FLAT"


def test_vectors_of_nulls_in_a_list_column_are_not_found(
    memory: duckdb.DuckDBPyConnection,
) -> None:
    memory.execute(
        "CREATE TABLE t AS SELECT i AS id, [i, i]::FLOAT[] AS v FROM range(9) r(i)"
    )
    memory.execute("INSERT INTO t VALUES (-1, [NULL, NULL])")
    found = memory.execute("SELECT id FROM vector_search('t', [3, 3], 1)").fetchall()
    assert found == [(3,)]


def test_a_join_sorts_hits_so_that_it_can_spill_and_does_not_sort_a_table(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    """DuckDB's arg_min of the k nearest cannot spill, and is quicker with many rows."""
    create_table(con, vectors)
    join = "EXPLAIN SELECT h.id FROM items q, vector_search('items', q.embedding, 10) h"
    plan = con.execute(join).fetchall()[0][1]
    assert "arg_min" in plan and "WINDOW" not in plan.upper()
    create(con, "IVF_FLAT")
    plan = con.execute(join).fetchall()[0][1]
    assert "arg_min" not in plan and "WINDOW" in plan.upper()


@pytest.mark.parametrize("index_type", [None, "FLAT"])
def test_a_plan_does_not_name_the_query_by_its_numbers(
    memory: duckdb.DuckDBPyConnection, index_type: str | None
) -> None:
    """Writing 384 of them takes DuckDB 0.4 ms of a search."""
    memory.execute("CREATE TABLE t AS SELECT [i, i]::FLOAT[2] AS v FROM range(99) r(i)")
    if index_type:
        create(memory, index_type, "t")
    for call in ("vector_search('t', {}, 10)", "vector_range_search('t', {}, 2.5)"):
        search = call.format("[1.4142, 2.7182]")
        plan = memory.execute(f"EXPLAIN FROM {search}").fetchall()[0][1]
        assert "__duckvec_query" in plan
        assert "1.4142" not in plan


def test_joins_use_the_threads_that_duckdb_is_set_to(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    used: list[int] = []
    original = IvfSegment.search

    def spy(self: IvfSegment, *arguments: Any, **options: Any) -> Any:
        used.append(options["threads"])
        return original(self, *arguments, **options)

    monkeypatch.setattr(IvfSegment, "search", spy)
    for threads in (1, 3):
        used.clear()
        con.execute(f"SET threads = {threads}")
        con.execute(
            "SELECT count(*) FROM items AS q, vector_search('items', q.embedding, 2)"
        ).fetchall()
        assert set(used) == {threads}
