"""Range search in SQL: every row within the radius, nearest first."""

from __future__ import annotations

import math
from typing import Any

import duckdb
import numpy as np
import pytest

from tests.data import (
    EXHAUSTIVE,
    FUNCTIONS,
    PARAMS,
    Vectors,
    arrow_table,
    clustered,
    create,
    create_table,
)
from tests.upkeep import filters_by_index

pytestmark = pytest.mark.core

RADII = {"L2": (5.0, 7.0), "IP": (-40.0, -5.0), "COSINE": (0.2, 0.7)}


def within(
    con: duckdb.DuckDBPyConnection,
    query: list[float] | None,
    radius: float | None,
    **options: Any,
) -> list[tuple[int, float]]:
    """Return (id, distance) of a range search."""
    named = "".join(f", {name} := ${name}" for name in options)
    return con.execute(
        f"SELECT id, distance FROM vector_range_search('items', $q, $radius{named})",
        {"q": query, "radius": radius, **options},
    ).fetchall()


def exactly(
    con: duckdb.DuckDBPyConnection,
    query: list[float],
    radius: float,
    metric: str = "L2",
    where: str = "true",
) -> list[tuple[int, float]]:
    """Return what plain SQL gives."""
    distance = f"array_{FUNCTIONS[metric]}(embedding, $q::FLOAT[16])"
    return con.execute(
        f"SELECT id, {distance} AS d FROM items "
        f"WHERE {where} AND d <= $radius AND isfinite(d) ORDER BY d",
        {"q": query, "radius": radius},
    ).fetchall()


def same(left: list[tuple[int, float]], right: list[tuple[int, float]]) -> bool:
    """Tell whether rows are the same, ties in any order."""
    ascends = [row[1] for row in left] == sorted(row[1] for row in left)
    return ascends and sorted(left) == sorted(right)


@pytest.mark.parametrize("metric", sorted(RADII))
@pytest.mark.parametrize("index_type", [None, "FLAT", "IVF_FLAT", "IVF_SQ8"])
def test_an_exhaustive_range_search_is_complete(
    con: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    index_type: str | None,
    metric: str,
) -> None:
    create_table(con, vectors)
    params = None
    if index_type is None:
        create(con, "FLAT", metric=metric)
        con.execute("CALL drop_vector_index('items')")
    else:
        create(con, index_type, metric=metric)
        params = EXHAUSTIVE[index_type] or None
    query = vectors.query(0)
    for radius in (*RADII[metric], math.inf, -math.inf):
        found = within(con, query, radius, params=params)
        assert same(found, exactly(con, query, radius, metric))
    on_the_edge = exactly(con, query, math.inf, metric)[20][1]
    found = within(con, query, on_the_edge, params=params)
    assert same(found, exactly(con, query, on_the_edge, metric))
    assert len(found) >= 21


@pytest.mark.parametrize("index_type", sorted(PARAMS))
def test_default_parameters_find_most_rows_within_the_radius(
    con: duckdb.DuckDBPyConnection, index_type: str
) -> None:
    pytest.importorskip({"HNSW": "hnswlib", "ANNOY": "annoy"}.get(index_type, "faiss"))
    vectors = clustered(6000, 16)
    create_table(con, vectors)
    create(con, index_type)
    for rank in (5, 100, 1000):
        found = wanted = 0
        for number in range(10):
            query = vectors.query(number)
            radius = exactly(con, query, math.inf)[rank][1]
            truth = dict(exactly(con, query, radius))
            rows = within(con, query, radius)
            assert all(truth[each] == distance for each, distance in rows)
            found, wanted = found + len(rows), wanted + len(truth)
        assert found / wanted >= 0.9, rank


@pytest.mark.parametrize("index_type", ["FLAT", "IVF_FLAT"])
def test_a_filter_and_new_rows_count_in_a_range_search(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, index_type: str
) -> None:
    create_table(con, vectors)
    create(con, index_type)
    query = vectors.query(3)
    params = EXHAUSTIVE[index_type] or None
    con.execute("INSERT INTO items SELECT id + 5000, price, embedding FROM items")
    with filters_by_index():
        con.execute("BEGIN")
        con.execute("DELETE FROM items WHERE id % 7 = 0")
        con.execute("UPDATE items SET price = 3 WHERE id % 5 = 0")
        for where in ("price = 3", "price < 50", "false"):
            found = within(con, query, 7.0, filter=where, params=params)
            assert same(found, exactly(con, query, 7.0, where=where))
        con.execute("ROLLBACK")
        found = within(con, query, 7.0, filter="price = 3", params=params)
        assert same(found, exactly(con, query, 7.0, where="price = 3"))


@pytest.mark.parametrize("index_type", [None, "FLAT", "IVF_FLAT"])
def test_a_join_searches_the_range_of_each_row(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, index_type: str | None
) -> None:
    create_table(con, vectors)
    queries = arrow_table(vectors.queries)
    con.execute("CREATE TABLE queries AS FROM queries")
    del queries
    con.execute("INSERT INTO queries VALUES (-1, NULL)")
    params = None
    if index_type:
        create(con, index_type)
        params = EXHAUSTIVE[index_type] or None
    rows = con.execute(
        "SELECT q.id, hit.id, hit.distance FROM queries AS q, "
        "vector_range_search('items', q.vector, 6.0, params := $params) AS hit",
        {"params": params},
    ).fetchall()
    for number in range(len(vectors.queries)):
        found = sorted((row[1], row[2]) for row in rows if row[0] == number)
        assert found == sorted(exactly(con, vectors.query(number), 6.0))
    assert not [row for row in rows if row[0] == -1]


def test_a_null_query_finds_nothing_and_a_radius_has_to_be_a_number(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    for index_type in (None, "FLAT"):
        if index_type:
            create(con, index_type)
        assert within(con, None, 5.0) == []
        for radius, text in ((None, "NULL"), (math.nan, "nan")):
            with pytest.raises(duckdb.Error, match=f"radius = {text} is no number"):
                within(con, vectors.query(0), radius)


def test_a_radius_is_one_of_the_column_s_precision(
    con: duckdb.DuckDBPyConnection,
) -> None:
    for kind in ("FLOAT", "DOUBLE"):
        con.execute(
            f"CREATE OR REPLACE TABLE items AS SELECT 1 AS id, [0.1]::{kind}[1] v"
        )
        found = con.execute("FROM vector_range_search('items', [0], 0.1)").fetchall()
        assert len(found) == 1, kind
        found = con.execute("FROM vector_range_search('items', [0], 0.0999)").fetchall()
        assert not found


def test_a_temporary_table_gives_k_rows_beside_infinite_ones(
    con: duckdb.DuckDBPyConnection,
) -> None:
    con.execute(
        "CREATE TEMP TABLE mine AS SELECT i AS id, [i, 1]::FLOAT[2] AS v "
        "FROM range(5) AS r(i) UNION ALL SELECT 9, ['inf', '1']::FLOAT[2]"
    )
    found = con.execute(
        "FROM vector_search('mine', [1, 1], 3, column_name := 'v', metric := 'IP')"
    ).fetchall()
    assert [row[0] for row in found] == [4, 3, 2]


def test_a_range_search_of_a_temporary_table_is_exact(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    con.execute("CREATE TEMP TABLE mine AS FROM items")
    found = con.execute(
        "SELECT id, distance FROM vector_range_search("
        "'mine', $q, 6.0, column_name := 'embedding')",
        {"q": vectors.query(0)},
    ).fetchall()
    wanted = exactly(con, vectors.query(0), 6.0)
    assert [row[0] for row in found] == [row[0] for row in wanted]
    np.testing.assert_allclose(
        [row[1] for row in found], [row[1] for row in wanted], rtol=1e-5
    )
