"""New rows that are held in memory are found as exactly as those that are scanned."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path

import duckdb
import numpy as np
import pytest

import duckvec
from duckvec import held_tails
from duckvec.states import IndexState
from duckvec.tracking import Generation
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
from tests.upkeep import eventually

NEW = 300


def insert(
    con: duckdb.DuckDBPyConnection, rows: int = NEW, first_id: int = 50_000
) -> None:
    data = arrow_table(clustered(rows, 16, seed=first_id).rows, first_id)
    con.execute("INSERT INTO items SELECT id, (id % 100)::INTEGER, vector FROM data")
    del data


def index_of(con: duckdb.DuckDBPyConnection) -> IndexState:
    (state,) = duckvec.load(con)._instance.databases.values()
    (index,) = state.indexes.values()
    return index


def held(index: IndexState) -> int:
    found = index.extended and index.extended.held
    return len(found.rowids) if found else 0


def hold(con: duckdb.DuckDBPyConnection, vectors: Vectors) -> IndexState:
    """Search until the new rows are held; return the index."""
    index = index_of(con)

    def is_held() -> bool:
        search(con, vectors.query(0))
        return held(index) > 0 and not held_tails.is_due(
            duckvec.load(con)._instance, index
        )

    eventually(is_held)
    return index


def check(
    con: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    index_type: str,
    metric: str = "L2",
) -> None:
    for number in range(3):
        query = vectors.query(number)
        for k in (1, 20, 500):
            found = search(con, query, k, params=EXHAUSTIVE[index_type] or None)
            assert_same(found, exact(con, query, k, metric=metric))


@pytest.mark.core
@pytest.mark.parametrize("index_type", EXHAUSTIVE)
@pytest.mark.parametrize("metric", ["L2", "IP", "COSINE"])
def test_every_type_finds_held_rows(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, index_type: str, metric: str
) -> None:
    create_table(con, vectors)
    create(con, index_type, metric=metric)
    insert(con)
    index = hold(con, vectors)
    assert held(index) == NEW
    check(con, vectors, index_type, metric)
    con.execute("DELETE FROM items WHERE id % 3 = 0 AND id >= 50000")
    con.execute("DELETE FROM items WHERE id < 100")
    check(con, vectors, index_type, metric)
    insert(con, 30, 60_000)
    check(con, vectors, index_type, metric)


@pytest.mark.core
@pytest.mark.parametrize("index_type", ["IVF_PQ", "HNSW"])
def test_a_neighbour_is_found_whatever_the_codes_of_others_say(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, index_type: str
) -> None:
    create_table(con, vectors)
    create(con, index_type)
    insert(con)
    hold(con, vectors)
    new = con.execute("SELECT id, embedding FROM items WHERE id >= 50000").fetchall()
    for rowid, vector in new[::10]:
        assert search(con, list(vector), 1) == [(rowid, 0.0)]


@pytest.mark.core
def test_transactions_see_their_own_rows_and_no_others(
    path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    insert(con)
    older = con.cursor()
    duckvec.load(older)
    older.execute("BEGIN")
    before = exact(older, vectors.query(0), 20)
    (gone,) = older.execute("SELECT embedding FROM items WHERE id = 50050").fetchall()
    con.execute("DELETE FROM items WHERE id BETWEEN 50000 AND 50100")
    insert(con, 200, 70_000)
    hold(con, vectors)
    assert_same(search(older, vectors.query(0), 20), before)
    assert search(older, list(gone[0]), 1) == [(50050, 0.0)]  # others deleted it
    assert search(con, list(gone[0]), 1)[0][0] != 50050
    older.execute("ROLLBACK")
    older.execute("BEGIN")
    older.execute("DELETE FROM items WHERE id > 50200 AND id < 70050")
    older.execute("INSERT INTO items VALUES (-1, 0, ?)", [vectors.query(1)])
    check(older, vectors, "IVF_FLAT")
    check(con, vectors, "IVF_FLAT")
    older.execute("COMMIT")
    check(con, vectors, "IVF_FLAT")
    con.close()


@pytest.mark.core
def test_joins_ranges_and_filters_find_held_rows(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    insert(con)
    index = hold(con, vectors)
    params = EXHAUSTIVE["IVF_FLAT"]
    joined = con.execute(
        "SELECT q.id, list(h.distance ORDER BY h.distance) FROM items q, "
        "vector_search('items', q.embedding, 5, params := $params) h "
        "WHERE q.id % 100 = 0 GROUP BY q.id",
        {"params": params},
    ).fetchall()
    assert len(joined) > 30
    for number, distances in joined:
        (vector,) = con.execute(
            "SELECT embedding FROM items WHERE id = ?", [number]
        ).fetchall()[0]
        wanted = exact(con, list(vector), 5)
        np.testing.assert_allclose(distances, wanted, rtol=1e-4, atol=1e-3)
    query = vectors.query(0)
    few = "price < 90"
    found = search(con, query, 30, params=params, filter=few)
    assert_same(found, exact(con, query, 30, source=f"(FROM items WHERE {few})"))
    radius = exact(con, query, 200)[-1] + 1e-3
    inside = con.execute(
        "SELECT count(*), count(*) FILTER (WHERE id >= 50000) FROM "
        "vector_range_search('items', $query, $radius, params := $params)",
        {"query": query, "radius": radius, "params": params},
    ).fetchall()[0]
    there = con.execute(
        "SELECT count(*), count(*) FILTER (WHERE id >= 50000) FROM items "
        "WHERE array_distance(embedding, $query::FLOAT[16]) <= $radius",
        {"query": query, "radius": radius},
    ).fetchall()[0]
    assert inside == there
    assert held(index) == NEW
    told = con.execute(
        "SELECT segments, tail_rows FROM vector_explain('items', ?, 5)", [query]
    ).fetchall()
    assert told == [(1, NEW)]


@pytest.mark.core
def test_odd_vectors_are_passed_over_and_too_large_ones_scanned(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    insert(con, 100, 50_000)
    con.execute("INSERT INTO items SELECT 60000 + i, 0, NULL FROM range(100) t(i)")
    con.execute(
        "INSERT INTO items SELECT 61000 + i, 0, "
        "list_transform(range(16), lambda x: 'nan'::FLOAT)::FLOAT[16] "
        "FROM range(9) t(i)"
    )
    insert(con, 100, 62_000)
    large = [5e18] + [0.0] * 15
    con.execute("INSERT INTO items VALUES (63000, 0, ?)", [large])
    insert(con, 100, 64_000)
    index = hold(con, vectors)
    assert held(index) == 200
    query = vectors.query(0)
    finite = "(FROM items WHERE isfinite(list_sum(embedding::FLOAT[])))"
    found = search(con, query, 40, params=EXHAUSTIVE["IVF_FLAT"])
    assert_same(found, exact(con, query, 40, source=finite))
    assert search(con, large, 1) == [(63000, 0.0)]


def test_the_background_holds_new_rows_before_anyone_searches(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    insert(con)
    index = index_of(con)
    eventually(lambda: held(index) == NEW)
    check(con, vectors, "IVF_FLAT")
    duckvec.load(con).wait()
    assert len(index.segments) == 1  # too few for a segment


def test_sealed_rows_are_held_no_more(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    insert(con)
    index = hold(con, vectors)
    con.execute("FROM vector_compact('items')").fetchall()
    assert index.extended is None
    check(con, vectors, "IVF_FLAT")
    kept = weakref.ref(hold_and_plan(con, vectors))
    assert kept() is not None
    con.execute("FROM drop_vector_index('items')").fetchall()
    eventually(lambda: gc.collect() >= 0 and kept() is None)


def hold_and_plan(con: duckdb.DuckDBPyConnection, vectors: Vectors) -> Generation:
    """Return what the connection's last plan names: a generation with held rows."""
    insert(con, NEW, 80_000)
    extended = hold(con, vectors).extended
    assert extended is not None
    search(con, vectors.query(0))
    return extended


def test_nothing_is_held_where_memory_is_limited(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    handle = duckvec.load(con, memory_limit="1GB")
    insert(con)
    for number in range(5):
        search(con, vectors.query(number))
        handle.wait()
    assert held(index_of(con)) == 0
    check(con, vectors, "IVF_FLAT")


def test_a_statement_keeps_what_it_was_planned_with(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    insert(con)
    hold(con, vectors)
    other = con.cursor()
    duckvec.load(other)
    search(other, vectors.query(0))
    sessions = duckvec.load(con)._instance.sessions
    session = sessions[max(sessions)]
    index = index_of(con)
    planned = index.extended
    assert planned is not None
    for number in range(3):
        insert(con, 200, 60_000 + 1000 * number)
        hold(con, vectors)
    con.execute("FROM vector_compact('items')").fetchall()
    assert planned is not index.extended
    assert session.find_generation(planned.number) == (planned, index)
    session.let_go(time.monotonic())
    assert session.find_generation(planned.number) is None
    search(other, vectors.query(0))
    now = index.generation
    assert now is not None and session.find_generation(now.number) is not None
    index.forget()
    assert session.find_generation(now.number) is None


def test_a_join_goes_on_with_its_generation(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    """Others insert all the time while it runs, so that its rows are held anew."""
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    insert(con)
    hold(con, vectors)
    join = (
        "SELECT count(*), count(DISTINCT number) FROM range(20) r(number), items q, "
        "vector_search('items', q.embedding, 5) h WHERE q.id < 3000"
    )
    done = threading.Event()
    found: list[tuple[int, int]] = []

    def work() -> None:
        cursor = con.cursor()
        duckvec.load(cursor)
        found.extend(cursor.execute(join).fetchall())
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    first_id = 60_000
    while not done.wait(0.05):
        insert(con, 100, first_id)
        first_id += 100
        search(con, vectors.query(0))
    thread.join()
    assert found == [(20 * 3000 * 5, 20)]


def test_a_tail_that_was_rewritten_in_place_is_held_no_more(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    insert(con)
    hold(con, vectors)
    con.execute(
        "ALTER TABLE items ALTER embedding TYPE FLOAT[16] USING CASE WHEN id < 50000 "
        "THEN embedding ELSE list_transform(embedding::FLOAT[], lambda x: x / 2) END"
    )
    query = vectors.query(0)

    def is_right() -> bool:
        found = [distance for _, distance in search(con, query, 20)]
        return bool(np.allclose(found, exact(con, query, 20), atol=1e-4))

    eventually(is_right)
    check(con, vectors, "IVF_FLAT")


def test_what_cannot_be_held_is_no_failure_of_the_index(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors, column_type="DOUBLE[16]")
    create(con, "IVF_FLAT")
    insert(con)
    con.execute("INSERT INTO items VALUES (60000, 0, ?)", [[1e300] + [0.0] * 15])
    for _ in range(3):
        search(con, vectors.query(0))
        duckvec.load(con)._instance.keeper.submit("nothing", lambda task: None).wait()
    index = index_of(con)
    assert held(index) == 0 and index.last_error is None and not index.failures
    assert not held_tails.is_due(duckvec.load(con)._instance, index)


def test_nothing_is_held_beside_an_index_without_entries(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, Vectors(vectors.rows[:0], vectors.queries))
    create(con, "IVF_FLAT")
    insert(con)
    search(con, vectors.query(0))
    duckvec.load(con)._instance.keeper.submit("nothing", lambda task: None).wait()
    assert held(index_of(con)) == 0
