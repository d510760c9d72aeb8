"""Range searches beside DuckDB's exact scan with the same condition."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import duckdb

from benchmarks.data import Dataset
from benchmarks.turns import take_turns

COUNTS = (10, 100, 1000)
QUERIES_PER_TURN = 5
MOST_QUERIES = 40
RANGE = "SELECT id, distance FROM vector_range_search('items', ?, ?)"

Radii = dict[int, list[float]]


def radii_of(con: duckdb.DuckDBPyConnection, data: Dataset) -> Radii:
    """Return, for each of COUNTS, the radius of each query that holds so many rows."""
    radii: Radii = {count: [] for count in COUNTS}
    sql = (
        f"SELECT array_distance(embedding, ?::FLOAT[{data.dimension}]) AS distance "
        f"FROM items ORDER BY distance LIMIT {max(COUNTS) + 1}"
    )
    for query in data.queries[:MOST_QUERIES]:
        near = [row[0] for row in con.execute(sql, [query.tolist()]).fetchall()]
        for count in COUNTS:  # between two rows, so that rounding decides nothing
            radii[count].append((near[count - 1] + near[count]) / 2)
    return radii


def measure_ranges(
    con: duckdb.DuckDBPyConnection, data: Dataset, radii: Radii, rounds: int
) -> dict[str, Any]:
    """Return, by the number of rows within, what both sides take and the share found.

    Args:
        con: with an index on `items`.
        data: the queries.
        radii: their radii, by the number of rows within.
        rounds: how often the sides take turns.
    """
    lists = [query.tolist() for query in data.queries[:MOST_QUERIES]]
    scan = (
        f"SELECT id, array_distance(embedding, ?::FLOAT[{data.dimension}]) AS distance "
        "FROM items WHERE distance <= ? ORDER BY distance"
    )

    def by_sql(sql: str, count: int) -> Callable[[int], list[Any]]:
        return lambda number: con.execute(
            sql, [lists[number], radii[count][number]]
        ).fetchall()

    ways = {}
    for count in COUNTS:
        ways[f"search {count}"] = by_sql(RANGE, count)
        ways[f"scan {count}"] = by_sql(scan, count)
    ids: dict[str, dict[int, set[int]]] = {name: {} for name in ways}

    def keep(name: str, number: int, answer: list[Any]) -> None:
        ids[name][number] = {row[0] for row in answer}

    times = take_turns(ways, rounds, QUERIES_PER_TURN, len(lists), keep)
    found = {}
    for count in COUNTS:
        search, exact = ids[f"search {count}"], ids[f"scan {count}"]
        both = sum(len(search[number] & rows) for number, rows in exact.items())
        within = sum(map(len, exact.values()))
        found[str(count)] = {
            "ms": 1000 * median(times[f"search {count}"]),
            "scan_ms": 1000 * median(times[f"scan {count}"]),
            "rows": within / len(exact),
            "found": both / within,
        }
    return found
