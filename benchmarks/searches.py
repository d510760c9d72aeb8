"""Searches through SQL and by the raw library, in turns, on one index type."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

import duckvec
from benchmarks.data import Dataset, K, Truth
from benchmarks.raw import new_raw
from benchmarks.turns import take_turns

SINGLE = f"SELECT id, distance FROM vector_search('items', ?, {K})"
ALL_COLUMNS = f"SELECT * FROM vector_search('items', ?, {K})"
FLOOR = "SELECT ?"
QUERIES_PER_ROUND = 20
REST_SECONDS = 3


def join_sql(queries: int | None = None, condition: str | None = None) -> str:
    """Return the join of the first queries, or all; filtered where that is asked."""
    some = "" if queries is None else f" WHERE id < {queries}"
    filtered = "" if condition is None else f", filter := '{condition}'"
    return (
        f"SELECT q.id, h.id AS hit, h.distance FROM (FROM queries{some}) AS q, "
        f"vector_search('items', q.embedding, {K}{filtered}) AS h"
    )


def open_database(path: Path) -> duckdb.DuckDBPyConnection:
    """Open the database with duckvec, and wait until its indexes are ready."""
    con = duckdb.connect(str(path))
    duckvec.load(con).wait()
    return con


def create_index(
    con: duckdb.DuckDBPyConnection, index_type: str, params: Mapping[str, int]
) -> None:
    """Build an L2 index on `items`, in place of the one that is there."""
    con.execute(
        "CALL create_vector_index('items', ?, ?)", [index_type, json.dumps(params)]
    ).fetchall()


def search_params(con: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Return the search parameters that duckvec chose as the index's default."""
    row = con.execute(
        "SELECT search_params, size_bytes FROM vector_indexes()"
    ).fetchall()
    return dict(json.loads(row[0][0] or "{}"))


def measure_searches(
    con: duckdb.DuckDBPyConnection,
    index_type: str,
    params: Mapping[str, int],
    raw_file: Path,
    data: Dataset,
    truths: Mapping[str, Truth],
    threads: int,
    rounds: int,
    *,
    to_arrow: bool = False,
) -> dict[str, Any]:
    """Return medians in milliseconds, queries per second, and recall beside each.

    Args:
        con: with an open L2 index on `items`.
        index_type: its type.
        params: its build parameters.
        raw_file: the raw library's index of the same parameters.
        data: the queries.
        truths: exact answers to "single" and "batch" queries.
        threads: what the raw library may use for a batch; a connection uses as many.
        rounds: how often the sides take turns.
        to_arrow: fetch joins as Arrow tables, not as NumPy arrays.
    """
    chosen = search_params(con)
    raw = new_raw(index_type, data.dimension, params, threads)
    raw.load(raw_file)
    if "overfetch" in chosen:
        raw.refine(data.rows)
    plain = {name: value for name, value in chosen.items() if name != "overfetch"}
    result: dict[str, Any] = {"search_params": chosen}
    result |= _single(con, raw, chosen, plain, data, truths["single"], rounds)
    ways = _batch_ways(con, raw, chosen, plain, data.batch, to_arrow)
    result |= _batch(ways, len(data.batch), truths["batch"], rounds)
    return result


def recall_of(con: duckdb.DuckDBPyConnection, data: Dataset, truth: Truth) -> float:
    """Return recall@10 of the queries through SQL with the default parameters."""
    return truth.recall(_ids(con, data.queries))


def _single(
    con: duckdb.DuckDBPyConnection,
    raw: Any,
    chosen: Mapping[str, int],
    plain: Mapping[str, int],
    data: Dataset,
    truth: Truth,
    rounds: int,
) -> dict[str, Any]:
    lists = [query.tolist() for query in data.queries]
    rows = [query[np.newaxis] for query in data.queries]

    def by_sql(sql: str) -> Callable[[int], Any]:
        return lambda number: con.execute(sql, [lists[number]]).fetchall()

    ways = {
        "raw": lambda number: raw.search(rows[number], K, chosen),
        "raw_plain": lambda number: raw.search(rows[number], K, plain),
        "sql": by_sql(SINGLE),
        "sql_all_columns": by_sql(ALL_COLUMNS),
        "floor": by_sql(FLOOR),
    }
    if chosen == plain:
        del ways["raw_plain"]
    rest(ways["sql"])
    times = take_turns(ways, rounds, QUERIES_PER_ROUND, len(lists))
    found = {f"{name}_ms": 1000 * median(seconds) for name, seconds in times.items()}
    found |= {
        f"{name}_low_ms": 1000 * float(np.quantile(seconds, 0.1))
        for name, seconds in times.items()
    }
    found["raw_recall"] = truth.recall(raw.search(data.queries, K, chosen))
    if chosen != plain:
        found["raw_plain_recall"] = truth.recall(raw.search(data.queries, K, plain))
    found["sql_recall"] = truth.recall(_ids(con, data.queries))
    return found


def rest(search: Callable[[int], Any]) -> None:
    """Search until the last change is so old that the table is at rest."""
    until = time.perf_counter() + REST_SECONDS
    while time.perf_counter() < until:
        search(0)


def _batch_ways(
    con: duckdb.DuckDBPyConnection,
    raw: Any,
    chosen: Mapping[str, int],
    plain: Mapping[str, int],
    queries: NDArray[np.float32],
    to_arrow: bool,
) -> dict[str, Callable[[int], Any]]:
    def join(number: int) -> Any:
        if to_arrow:
            return con.sql(join_sql()).to_arrow_table()
        return con.execute(join_sql()).fetchnumpy()

    ways: dict[str, Callable[[int], Any]] = {
        "raw": lambda number: raw.search(queries, K, chosen),
        "raw_plain": lambda number: raw.search(queries, K, plain),
        "join": join,
    }
    if chosen == plain:
        del ways["raw_plain"]
    return ways


def _batch(
    ways: Mapping[str, Callable[[int], Any]], count: int, truth: Truth, rounds: int
) -> dict[str, Any]:
    answers: dict[str, Any] = {}

    def keep(name: str, number: int, answer: Any) -> None:
        answers[name] = answer

    times = take_turns(ways, max(3, rounds // 2), 1, 1, keep)
    found: dict[str, Any] = {
        f"{name}_per_second": count / median(seconds) for name, seconds in times.items()
    }
    pairs = zip(times["raw"], times["join"], strict=True)
    found["join_ratio"] = median(raw / join for raw, join in pairs)
    found["raw_batch_recall"] = truth.recall(answers["raw"])
    found["join_recall"] = truth.recall(by_query(answers["join"], count))
    return found


def measure_duckdb(
    con: duckdb.DuckDBPyConnection, data: Dataset, truth: Truth, rounds: int
) -> dict[str, float]:
    """Return what DuckDB takes by itself: a scan, and the floors below a search."""
    kind = f"FLOAT[{data.dimension}]"
    scan = (
        f"SELECT id, array_distance(embedding, ?::{kind}) AS distance FROM items "
        f"ORDER BY distance LIMIT {K}"
    )
    ids = np.random.default_rng(1).choice(len(data.rows), (200, K)).tolist()
    lists = [query.tolist() for query in data.queries]
    ways: dict[str, tuple[str, Callable[[int], list[Any]]]] = {
        "scan_ms": (scan, lambda number: [lists[number]]),
        "select_ms": ("SELECT 1", lambda number: []),
        "bind_ms": (f"SELECT (?::{kind})[1]", lambda number: [lists[number]]),
        "join_ms": (
            "SELECT t.id FROM (SELECT unnest(?::BIGINT[]) AS id) AS h "
            "JOIN items AS t ON t.rowid = h.id",
            lambda number: [ids[number]],
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    found = []
    for number in range(min(10 * rounds, len(lists))):
        for name, (sql, values) in ways.items():
            started = time.perf_counter()
            rows = con.execute(sql, values(number)).fetchall()
            times[name].append(time.perf_counter() - started)
            if name == "scan_ms":
                found.append([row[0] for row in rows])
    result = {name: 1000 * median(seconds) for name, seconds in times.items()}
    result["scan_recall"] = truth.recall(np.array(found))
    return result


def measure_reading(con: duckdb.DuckDBPyConnection, rounds: int) -> float:
    """Return the seconds that reading all vectors from the table takes, by Arrow."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        for batch in con.sql("SELECT rowid, embedding FROM items").to_arrow_reader(
            16384
        ):
            batch.column(1).flatten().to_numpy(zero_copy_only=False)
        times.append(time.perf_counter() - started)
    return median(times)


def _ids(
    con: duckdb.DuckDBPyConnection, queries: NDArray[np.float32]
) -> NDArray[np.int64]:
    found = np.full((len(queries), K), -1, dtype=np.int64)
    for number, query in enumerate(queries):
        ids = [row[0] for row in con.execute(SINGLE, [query.tolist()]).fetchall()]
        found[number, : len(ids)] = ids
    return found


def by_query(columns: Mapping[str, Any], count: int) -> NDArray[np.int64]:
    """Return the ids (count, K) that a join gave each query, -1 for none."""
    queries, hits = np.asarray(columns["id"]), np.asarray(columns["hit"])
    order = np.argsort(queries, kind="stable")
    queries, hits = queries[order], hits[order]
    starts = np.searchsorted(queries, np.arange(count))
    found = np.full((count, K), -1, dtype=np.int64)
    found[queries, np.arange(len(queries)) - starts[queries]] = hits
    return found
