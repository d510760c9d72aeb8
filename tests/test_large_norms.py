"""Norms so large that squares overflow: refused or scanned, never given to a library.

Without that, faiss ends the process, and NSG computes for ever.
"""

from __future__ import annotations

import duckdb
import numpy as np
import pytest

import duckvec
from duckvec.metrics import LARGEST_SQUARED_NORM
from tests.data import (
    EXHAUSTIVE,
    FUNCTIONS,
    PARAMS,
    Vectors,
    clustered,
    create,
    create_table,
    search,
)
from tests.upkeep import eventually, impatient, info

pytestmark = pytest.mark.core

VECTORS = clustered(1500, 8)
LARGEST = float(np.sqrt(LARGEST_SQUARED_NORM))
HUGE = [3e19] * 8


def scaled(norm: float) -> Vectors:
    """Return the vectors, scaled to a largest norm."""
    rows, queries = VECTORS.rows, VECTORS.queries
    factor = np.float32(norm / np.linalg.norm(rows, axis=1).max())
    return Vectors(rows * factor, queries * factor)


def by_duckdb(
    con: duckdb.DuckDBPyConnection, query: list[float], metric: str = "L2"
) -> list[float]:
    """Return the ten smallest finite distances, as DuckDB computes them."""
    distance = f"array_{FUNCTIONS[metric]}(embedding, $query::FLOAT[8])"
    rows = con.execute(
        f"SELECT {distance} AS d FROM items WHERE isfinite(d) ORDER BY d LIMIT 10",
        {"query": query},
    ).fetchall()
    return [row[0] for row in rows]


def check(con: duckdb.DuckDBPyConnection, query: list[float]) -> None:
    wanted = by_duckdb(con, query)
    params = EXHAUSTIVE["IVF_FLAT"]
    found = [distance for _, distance in search(con, query, params=params)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("index_type", PARAMS)
def test_vectors_of_the_largest_norm_are_indexed(
    memory: duckdb.DuckDBPyConnection, index_type: str
) -> None:
    vectors = scaled(LARGEST * 0.999)
    create_table(memory, vectors)
    create(memory, index_type)
    for number in range(5):
        wanted = by_duckdb(memory, vectors.query(number))
        found = [distance for _, distance in search(memory, vectors.query(number))]
        assert len(found) == 10
        assert len(np.intersect1d(found, wanted)) >= 7


@pytest.mark.parametrize("metric", FUNCTIONS)
@pytest.mark.parametrize("index_type", PARAMS)
def test_larger_ones_are_refused(
    memory: duckdb.DuckDBPyConnection, index_type: str, metric: str
) -> None:
    create_table(memory, VECTORS)
    memory.execute("UPDATE items SET embedding = ? WHERE id IN (7, 9)", [HUGE])
    long = "SELECT min(rowid) FROM items WHERE embedding[1] > 1e19"
    rowid = memory.execute(long).fetchall()[0][0]
    with pytest.raises(
        duckdb.InvalidInputException,
        match=r'2 vectors in "embedding" of "items" have a norm above 4\.6e18, such as '
        rf"the one at rowid {rowid}; set them to NULL",
    ):
        create(memory, index_type, metric=metric)
    assert memory.execute("FROM vector_indexes()").fetchall() == []


@pytest.mark.parametrize("index_type", PARAMS)
def test_an_estimate_leaves_them_out(
    memory: duckdb.DuckDBPyConnection, index_type: str
) -> None:
    create_table(memory, VECTORS)
    memory.execute("UPDATE items SET embedding = ? WHERE id % 100 = 7", [HUGE])
    rows = memory.execute(
        "SELECT row_count FROM vector_index_estimate('items', ?, ?)",
        [index_type, PARAMS[index_type]],
    ).fetchall()
    assert rows == [(len(VECTORS.rows),)]


def test_those_that_come_later_are_found_and_stay_in_the_tail(
    con: duckdb.DuckDBPyConnection,
) -> None:
    create_table(con, VECTORS)
    create(con, "IVF_FLAT")
    for number in range(3):
        con.execute("INSERT INTO items VALUES (?, 0, ?)", [10_000 + number, HUGE])
    con.execute("INSERT INTO items SELECT id + 20000, price, embedding FROM items")
    handle = duckvec.load(con)
    with pytest.raises(duckdb.InvalidInputException, match="6 vectors in"):
        con.execute("CALL vector_compact('items')")
    with impatient():
        check(con, VECTORS.query(0))
        eventually(lambda: "a norm above 4.6e18" in (info(con)["last_error"] or ""))
    check(con, HUGE)
    check(con, VECTORS.query(0))
    assert info(con)["unindexed_rows"] == 1506
    con.execute("UPDATE items SET embedding = NULL WHERE embedding[1] > 1e19")
    con.execute("CALL vector_compact('items')")
    handle.wait()
    assert info(con)["unindexed_rows"] == 0
    assert info(con)["last_error"] is None
    check(con, VECTORS.query(0))


def test_after_opening_they_are_still_found(
    con: duckdb.DuckDBPyConnection, path: object
) -> None:
    create_table(con, VECTORS)
    create(con, "IVF_FLAT")
    con.execute("INSERT INTO items VALUES (10000, 0, ?)", [HUGE])
    con.close()
    again = duckvec.connect(str(path))
    check(again, HUGE)
    duckvec.load(again).wait()
    assert [row[0] for row in search(again, HUGE, 1)] == [10000]
    check(again, HUGE)
    again.close()


@pytest.mark.parametrize("metric", FUNCTIONS)
@pytest.mark.parametrize("index_type", PARAMS)
def test_large_queries_are_answered_as_by_duckdb(
    memory: duckdb.DuckDBPyConnection, index_type: str, metric: str
) -> None:
    create_table(memory, VECTORS)
    create(memory, index_type, metric=metric)
    params = EXHAUSTIVE.get(index_type)
    for length in (1e15, 1e19, 1e25, 3e38):
        query = [length, -length / 3, 1.0, 0.0, length / 7, 2.0, 3.0, length / 9]
        wanted = by_duckdb(memory, query, metric)
        found = [distance for _, distance in search(memory, query, params=params)]
        assert len(found) == len(wanted), length
        if length > LARGEST and metric != "COSINE":
            np.testing.assert_allclose(found, wanted, rtol=1e-5)
