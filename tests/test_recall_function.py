"""vector_recall: what searches find of the exact answer, measured on stored vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import duckvec
from duckvec.measuring import Runner
from duckvec.requests import Request
from duckvec.tables import Caller, find_column, read_only, require_table
from tests.data import EXHAUSTIVE, Vectors, clustered, create, create_table, search

COLUMNS = ["recall", "index_ms", "exact_ms", "sample", "k", "params"]


def recall(
    con: duckdb.DuckDBPyConnection, collection: str = "items", **options: Any
) -> dict[str, Any]:
    """Return the row of vector_recall."""
    named = "".join(f", {name} := ${name}" for name in options)
    result = con.execute(
        f"FROM vector_recall($collection{named})", {"collection": collection, **options}
    )
    names = [column[0] for column in result.description or ()]
    assert names == COLUMNS
    return dict(zip(names, result.fetchall()[0], strict=True))


@pytest.mark.core
@pytest.mark.parametrize("metric", ["L2", "IP", "COSINE"])
@pytest.mark.parametrize("column_type", ["FLOAT[16]", "FLOAT[]", "DOUBLE[16]"])
@pytest.mark.parametrize("index_type", ["FLAT", "IVF_FLAT"])
def test_a_search_that_looks_at_everything_finds_everything(
    memory: duckdb.DuckDBPyConnection, index_type: str, column_type: str, metric: str
) -> None:
    create_table(memory, clustered(1000, 16), column_type=column_type)
    create(
        memory,
        index_type,
        metric=metric,
        params={} if index_type == "FLAT" else {"nlist": 16},
    )
    params = {} if index_type == "FLAT" else {"nprobe": 16}
    row = recall(memory, sample=20, params=params)
    assert row["recall"] == 1
    assert row["sample"] == 20
    assert json.loads(row["params"]) == params
    assert row["index_ms"] > 0
    assert row["exact_ms"] > 0


@pytest.mark.core
@pytest.mark.parametrize("metric", ["L2", "IP", "COSINE"])
@pytest.mark.parametrize("k", [1, 7])
def test_the_recall_is_that_of_the_searches_of_all_rows(
    memory: duckdb.DuckDBPyConnection, metric: str, k: int
) -> None:
    few = clustered(120, 8)
    create_table(memory, few)
    create(memory, "IVF_FLAT", params={"nlist": 7}, metric=metric)
    wanted, found = (
        memory.execute(
            "SELECT list(h.distance ORDER BY h.distance) FROM items AS q, "
            f"vector_search('items', q.embedding, {k}, "
            f"params := {{'nprobe': {nprobe}}}) AS h GROUP BY q.id ORDER BY q.id"
        ).fetchall()
        for nprobe in (7, 1)
    )
    assert len(wanted) == len(found) == 120
    shares = [
        sum(distance <= best[-1] for distance in some) / k
        for (best,), (some,) in zip(wanted, found, strict=True)
    ]
    row = recall(memory, k=k, sample=1000, params={"nprobe": 1})
    assert row["recall"] == pytest.approx(np.mean(shares))
    assert (row["sample"], row["k"]) == (120, k)
    assert metric == "COSINE" or k == 1 or row["recall"] < 1


@pytest.mark.core
def test_the_same_rows_are_drawn_each_time(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(memory, vectors)
    create(memory, "IVF_FLAT")
    rows = [recall(memory, sample=30, params={"nprobe": 1}) for _ in range(3)]
    memory.execute("CREATE TABLE shuffled AS FROM items ORDER BY hash(id)")
    create(memory, "IVF_FLAT", "shuffled", params={"nlist": 1})
    assert len({row["recall"] for row in rows}) == 1
    assert rows[0]["recall"] < 1


@pytest.mark.core
def test_the_parameters_in_effect_are_shown(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(memory, vectors)
    create(memory, "IVF_SQ8")
    [(default,)] = memory.execute(
        "SELECT search_params FROM vector_indexes()"
    ).fetchall()
    assert json.loads(recall(memory, sample=5)["params"]) == json.loads(default)
    given = json.loads(recall(memory, sample=5, params='{"nprobe": 3}')["params"])
    assert given == {**json.loads(default), "nprobe": 3}


@pytest.mark.core
def test_without_an_index_nothing_is_missed(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(memory, vectors)
    memory.execute("CREATE VIEW seen AS SELECT id, embedding FROM items")
    for collection in ("items", "memory.main.seen"):
        row = recall(memory, collection, sample=5)
        assert (row["recall"], row["sample"], row["params"]) == (1, 5, "{}")


@pytest.mark.core
def test_a_filter_is_passed_on(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(memory, vectors)
    create(memory, "IVF_FLAT")
    for condition in ("price < 10", "id = 3", "false"):
        assert recall(memory, sample=5, filter=condition)["recall"] == 1


@pytest.mark.core
def test_equal_rows_may_come_in_any_order(memory: duckdb.DuckDBPyConnection) -> None:
    rows = np.repeat(clustered(40, 8).rows, 25, axis=0)
    create_table(memory, Vectors(rows, rows[:1]))
    create(memory, "IVF_FLAT", params={"nlist": 4})
    assert recall(memory, sample=50, params={"nprobe": 4})["recall"] == 1


@pytest.mark.core
def test_rows_without_a_vector_to_search_with_are_not_drawn(
    memory: duckdb.DuckDBPyConnection,
) -> None:
    memory.execute(
        """
        CREATE TABLE items AS
        SELECT i AS id, sin(i) AS distance, CASE i % 5
            WHEN 0 THEN NULL WHEN 1 THEN ['nan'::FLOAT, 1, 2] WHEN 2 THEN [1, 2]
            WHEN 3 THEN [0, 0, 0] ELSE [i, sin(i), cos(i)] END::FLOAT[] AS embedding
        FROM range(100) t(i)
        """
    )
    assert recall(memory, sample=1000)["sample"] == 40
    memory.execute("DELETE FROM items WHERE id % 5 IN (1, 2)")
    create(memory, "IVF_FLAT", metric="COSINE", params={"nlist": 2})
    row = recall(memory, sample=1000, params={"nprobe": 2})
    assert (row["sample"], row["recall"]) == (20, 1)


@pytest.mark.core
@pytest.mark.parametrize(
    "call",
    [
        "CALL vector_recall('items', sample := 3)",
        "FROM vector_recall('items', 5, 3)",
        "SELECT recall FROM vector_recall('items', k => 5, sample := 3, "
        "column_name := 'embedding', filter := NULL, params := NULL)",
    ],
)
def test_spellings_of_a_call(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors, call: str
) -> None:
    create_table(memory, vectors)
    [row] = memory.execute(call).fetchall()
    assert row[0] == 1


@pytest.mark.core
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("'itms'", 'no table "itms"; did you mean "items"?'),
        ("'items', k := 0", "k = 0 is outside [1, 16384]"),
        ("'items', k := NULL", "k = NULL is outside [1, 16384]"),
        ("'items', sample := 0", "sample = 0 is outside [1, 10000]"),
        ("'items', sample := 10001", "sample = 10001 is outside [1, 10000]"),
        ("'items', sample := NULL", "sample = NULL is outside [1, 10000]"),
        ("'items', sample := 'many'", "sample = many is no integer"),
        ("'items', filter := 'id <'", "is not one SQL expression"),
        ("'items', params := {'nprobe': 3}", "FLAT takes no search parameters"),
        ("'items', column_name := 'id'", 'column "id" of "items" is BIGINT'),
        ("'empty'", 'there is no vector in "v" of "empty" to measure with'),
        ("'unset'", 'there is no vector in "v" of "unset" to measure with'),
    ],
)
def test_errors_are_one_sentence(
    memory: duckdb.DuckDBPyConnection, arguments: str, sentence: str
) -> None:
    create_table(memory, clustered(50, 4))
    memory.execute("CREATE TABLE empty (v FLOAT[])")
    memory.execute("CREATE TABLE unset AS SELECT NULL::FLOAT[3] AS v")
    with pytest.raises(duckdb.InvalidInputException) as caught:
        memory.execute(f"CALL vector_recall({arguments})").fetchall()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.core
def test_it_works_in_a_transaction_on_one_thread_and_where_nothing_can_be_written(
    path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(path), config={"threads": 1})
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.execute("BEGIN")
    con.execute("INSERT INTO items SELECT 5000, 1, embedding FROM items LIMIT 1")
    assert recall(con, sample=5, params=EXHAUSTIVE["IVF_FLAT"])["recall"] == 1
    con.execute("COMMIT")
    con.execute("CREATE SCHEMA other; USE other")
    assert recall(con, "main.items", sample=5)["recall"] > 0.5
    con.close()
    reader = duckvec.connect(str(path), read_only=True)
    assert recall(reader, sample=5, params=EXHAUSTIVE["IVF_FLAT"])["recall"] == 1
    reader.close()


@pytest.mark.core
def test_a_runner_takes_the_same_routes_as_a_search(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "HNSW")
    handle = duckvec.load(con)
    instance, session = handle._instance, handle._session
    caller = Caller(session.number, "test", "main", "")
    request = Request("items", "10", None, None, None, None, -1)
    with read_only(session.cursor()) as cursor:
        table = require_table(cursor, "items", caller)
    with Runner(instance, session, caller, table, find_column(table, None)) as runner:
        for number in range(3):
            with runner.snapshot():
                found = runner.run(request, vectors.queries[number])
                exact = runner.run_exactly(request, vectors.queries[number])
            assert "__duckvec" in found.text
            assert "__duckvec" not in exact.text
            wanted = [d for _, d in search(con, vectors.query(number))]
            assert found.distances.tolist() == wanted
            assert found.seconds == found.plan_seconds + found.run_seconds > 0
            assert exact.distances[0] == found.distances[0]
