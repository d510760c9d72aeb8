"""vector_explain: how a search was answered, and why so."""

from __future__ import annotations

from typing import Any

import duckdb
import pytest

import duckvec
from tests.data import Vectors, create, create_table, search
from tests.upkeep import filters_by_index

pytestmark = pytest.mark.core

COLUMNS = [
    *("route", "reason", "index_type", "params", "segments", "entries_visited"),
    *("tail_rows", "candidates", "result_rows", "plan_ms", "index_ms", "join_ms"),
    "total_ms",
]


def explain(
    con: duckdb.DuckDBPyConnection, query: list[float] | None, **options: Any
) -> dict[str, Any]:
    named = "".join(f", {name} := ${name}" for name in options)
    result = con.execute(
        f"FROM vector_explain('items', $query{named})", {"query": query, **options}
    )
    names = [column[0] for column in result.description or ()]
    assert names == COLUMNS
    (row,) = result.fetchall()
    return dict(zip(names, row, strict=True))


def test_a_search_without_an_index_is_exact(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    row = explain(con, vectors.query(0))
    assert (row["route"], row["reason"]) == ("exact", "there is no index")
    assert row["index_type"] is None
    assert row["result_rows"] == 10
    assert row["total_ms"] >= row["plan_ms"] > 0


def test_a_search_by_index_says_what_it_looked_at(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.execute("INSERT INTO items SELECT id + 5000, 1, embedding FROM items LIMIT 30")
    row = explain(con, vectors.query(0), k=7, params={"nprobe": 32})
    assert (row["route"], row["index_type"]) == ("index", "IVF_FLAT")
    assert row["params"] == '{"nprobe": 32}'
    assert (row["segments"], row["entries_visited"], row["tail_rows"]) == (1, 3000, 30)
    assert row["candidates"] >= row["result_rows"] == 7
    fewer = explain(con, vectors.query(0), params={"nprobe": 1})
    assert 0 < fewer["entries_visited"] < 1000
    phases = row["plan_ms"] + row["index_ms"] + row["join_ms"]
    assert row["total_ms"] == pytest.approx(phases)
    assert min(row["plan_ms"], row["index_ms"], row["join_ms"]) > 0


def test_the_filter_decides_about_the_route(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")
    row = explain(con, vectors.query(0), filter="price = 3")
    assert (row["route"], row["result_rows"]) == ("allowed rows", 10)
    assert row["reason"] == "few rows pass the filter"
    with filters_by_index():
        row = explain(con, vectors.query(0), filter="price < 50")
        assert row["route"] == "index"
        assert row["entries_visited"] == 1500
        row = explain(con, vectors.query(0), k=50, filter="price = 3")
        assert (row["route"], row["candidates"]) == ("allowed rows", 30)
        assert row["result_rows"] == 30


def test_why_an_index_is_not_used(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    older = con.cursor()
    duckvec.load(older)
    older.execute("BEGIN")
    older.execute("FROM items LIMIT 1").fetchall()
    create(con, "IVF_SQ8")
    row = explain(older, vectors.query(0))
    assert row["reason"] == "the transaction is older than the index"
    older.close()
    row = explain(con, vectors.query(0), params={"nprobe": 32})
    assert (row["route"], row["reason"]) == ("exact", "every row is asked for")
    con.execute("CREATE VIEW seen AS FROM items")
    found = con.execute(
        "SELECT route, reason FROM vector_explain('seen', $q)", {"q": vectors.query(0)}
    ).fetchall()
    assert found == [("exact", "it is a view")]


def test_a_filter_that_cannot_be_counted_is_scanned_and_said_so(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")
    con.execute("CREATE TEMP TABLE mine AS SELECT id FROM items")
    row = explain(con, vectors.query(0), filter="id IN (FROM mine)")
    assert row["route"] == "exact"
    assert row["reason"] == "the filter is one that only this connection understands"


def test_the_batches_of_a_join_are_added_up(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")
    rows = con.execute(
        "SELECT h.entries_visited, h.candidates, h.join_ms FROM items AS q, "
        "vector_explain('items', q.embedding, 2) AS h"
    ).fetchall()
    entries, candidates, join_ms = rows[-1]
    assert entries == 3000 * 3000
    assert candidates >= 2 * 3000
    assert join_ms >= 0


def test_the_own_transaction_is_explained(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")
    con.execute("BEGIN")
    con.execute("INSERT INTO items SELECT id + 5000, 1, embedding FROM items LIMIT 20")
    assert explain(con, vectors.query(0))["tail_rows"] == 20
    con.execute("ROLLBACK")
    assert explain(con, vectors.query(0))["tail_rows"] == 0


def test_wrong_arguments_are_refused_as_in_a_search(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    with pytest.raises(duckdb.Error, match=r"k = 0 is outside \[1, 16384\]"):
        explain(con, vectors.query(0), k=0)
    with pytest.raises(duckdb.Error, match='did you mean "items"'):
        con.execute("FROM vector_explain('itmes', [1, 2])")
    assert explain(con, None)["result_rows"] == 0
    assert len(search(con, vectors.query(0))) == 10


def test_explain_statements_show_readable_names(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")
    plan = con.execute(
        "EXPLAIN FROM vector_search('items', $q, 10)", {"q": vectors.query(0)}
    ).fetchall()[0][1]
    assert "items" in plan
    assert "distance" in plan
