"""Searches and joins, with filters and without, beside DuckDB's own exact ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import duckdb
import numpy as np

from benchmarks.data import Dataset, K
from benchmarks.searches import SINGLE, join_sql
from benchmarks.turns import take_turns

PRICES = 1000
# What share of the rows passes, and the filter; "all" goes without.
SHARES = {
    "all": None,
    "50 %": "price < 500",
    "10 %": "price < 100",
    "1 %": "price < 10",
    "0.1 %": "price < 1",
}
JOINED_SHARES = ("all", "50 %", "1 %")
JOINED_QUERIES = 200
LATERAL_QUERIES = 8
QUERIES_PER_TURN = 5
LATERAL = f"""
SELECT q.id, h.id AS hit, h.distance
FROM (FROM queries WHERE id < {LATERAL_QUERIES}) AS q, LATERAL (
    SELECT i.id, array_distance(i.embedding, q.embedding) AS distance
    FROM items AS i ORDER BY distance LIMIT {K}
) AS h
"""

Answer = Sequence[tuple[Any, ...]]


def spread_prices(con: duckdb.DuckDBPyConnection) -> None:
    """Give each row of `items` one of PRICES prices, whatever its vector."""
    con.execute(f"UPDATE items SET price = (hash(id) % {PRICES})::INTEGER")
    con.execute("CHECKPOINT")


class ExactAnswers:
    """What exact SQL finds for the first queries, at each share."""

    def __init__(self, con: duckdb.DuckDBPyConnection, data: Dataset) -> None:
        self._answers = {}
        for share in SHARES:
            scan = _scan_sql(share, data.dimension)
            self._answers[share] = [
                con.execute(scan, [query.tolist()]).fetchall()
                for query in data.queries[:JOINED_QUERIES]
            ]

    def recall(self, share: str, found: Mapping[int, Answer]) -> float:
        """Return the share of the exact answers that was found; ties count.

        Args:
            share: a name of SHARES.
            found: ids and distances, by the number of the query.
        """
        hits = wanted = 0
        for number, rows in found.items():
            exact = self._answers[share][number]
            far = exact[-1][1] * (1 + 1e-6) + 1e-9
            near = {row_id for row_id, distance in rows if distance <= far}
            hits += min(len(exact), len(near))
            wanted += len(exact)
        return hits / wanted


def measure_filters(
    con: duckdb.DuckDBPyConnection, data: Dataset, exact: ExactAnswers, rounds: int
) -> dict[str, Any]:
    """Return, by share, what a search and DuckDB's exact scan take, and recall.

    Args:
        con: with an index on `items`, whose prices are spread.
        data: the queries.
        exact: the answers to them.
        rounds: how often the sides take turns.
    """
    lists = [query.tolist() for query in data.queries[:JOINED_QUERIES]]

    def by_sql(sql: str) -> Callable[[int], Answer]:
        return lambda number: con.execute(sql, [lists[number]]).fetchall()

    searches = {share: by_sql(_search_sql(share)) for share in SHARES}
    scans = {share: by_sql(_scan_sql(share, data.dimension)) for share in SHARES}
    ways = {f"search {share}": way for share, way in searches.items()}
    ways |= {f"scan {share}": way for share, way in scans.items()}
    times = take_turns(ways, rounds, QUERIES_PER_TURN, len(lists))
    found = {}
    for share, search in searches.items():
        answers = {number: search(number) for number in range(len(lists))}
        found[share] = {
            "ms": 1000 * median(times[f"search {share}"]),
            "scan_ms": 1000 * median(times[f"scan {share}"]),
            "recall": exact.recall(share, answers),
        }
    return found


def measure_joins(
    con: duckdb.DuckDBPyConnection, exact: ExactAnswers, rounds: int
) -> dict[str, Any]:
    """Return queries per second and recall of joins of JOINED_QUERIES, by share."""
    found: dict[str, Any] = {}
    ways = {
        share: _join(con, join_sql(JOINED_QUERIES, SHARES[share]))
        for share in JOINED_SHARES
    }
    times, answers = _timed(ways, rounds)
    for share, seconds in times.items():
        by_number = _by_number(answers[share])
        found[share] = {
            "per_second": len(by_number) / median(seconds),
            "recall": exact.recall(share, by_number),
        }
    return found


def measure_lateral(
    con: duckdb.DuckDBPyConnection, data: Dataset, exact: ExactAnswers, rounds: int
) -> dict[str, Any]:
    """Return what a join of all queries does beside DuckDB's exact one of a few."""
    ways = {"join": _join(con, join_sql()), "lateral": _join(con, LATERAL)}
    times, answers = _timed(ways, rounds)
    pairs = zip(times["join"], times["lateral"], strict=True)
    counts = {"join": len(data.batch), "lateral": LATERAL_QUERIES}
    factor = counts["join"] / counts["lateral"]
    found: dict[str, Any] = {
        "queries": counts["join"],
        "ratio": median(lateral / join * factor for join, lateral in pairs),
    }
    for name, count in counts.items():
        by_number = _by_number(answers[name])
        known = range(min(len(data.queries), JOINED_QUERIES, count))
        first = {number: by_number[number] for number in known}
        found[f"{name}_per_second"] = count / median(times[name])
        found[f"{name}_recall"] = exact.recall("all", first)
    return found


def _search_sql(share: str) -> str:
    filtered = f", filter := '{SHARES[share]}'" if SHARES[share] else ""
    return f"{SINGLE[:-1]}{filtered})"


def _scan_sql(share: str, dimension: int) -> str:
    where = f"WHERE {SHARES[share]}" if SHARES[share] else ""
    return (
        f"SELECT id, array_distance(embedding, ?::FLOAT[{dimension}]) AS distance "
        f"FROM items {where} ORDER BY distance LIMIT {K}"
    )


def _join(con: duckdb.DuckDBPyConnection, sql: str) -> Callable[[int], Any]:
    return lambda number: con.sql(sql).to_arrow_table()


def _timed(
    ways: Mapping[str, Callable[[int], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return the times of the ways, and the last answer of each."""
    answers: dict[str, Any] = {}

    def keep(name: str, number: int, answer: Any) -> None:
        answers[name] = answer

    return take_turns(ways, max(3, rounds // 2), 1, 1, keep), answers


def _by_number(joined: Any) -> dict[int, Answer]:
    """Return ids and distances by the number of the query, nearest first."""
    columns = [np.asarray(joined[name]) for name in ("id", "hit", "distance")]
    found: dict[int, list[tuple[Any, ...]]] = {}
    for number, hit, distance in zip(*columns, strict=True):
        found.setdefault(int(number), []).append((int(hit), float(distance)))
    return {number: sorted(rows, key=lambda r: r[1]) for number, rows in found.items()}
