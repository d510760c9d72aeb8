"""Searches and writes while a table changes, beside the same table without an index.

Every ratio is within one run: the search at rest comes from the same connection, and
writes take turns between two databases that hold the same rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import duckvec
from benchmarks.data import Dataset, K, Truth, build_params, clustered, create_database

ROWS, DIMENSION = 200_000, 128
INDEX_TYPE = "IVF_FLAT"
INSERTS, ROWS_PER_INSERT = 1000, 20
SEARCHES = 200
NEW_ROWS = 3000  # too few for a segment
JOINED = 2000
JOINS = 5
WRITES = 150
WRITES_PER_TURN = 25
UPDATES_PER_HOUR = 3600
REST_SECONDS = 3.0
BACK_SECONDS = 10.0
BACK_RATIO = 1.2
SEARCH = f"SELECT id, distance FROM vector_search('items', ?, {K})"


def measure_changes(folder: Path, updates: int = UPDATES_PER_HOUR) -> dict[str, Any]:
    """Return what searches and writes take while the table changes.

    Args:
        folder: an empty one, for database files.
        updates: how many transactions stand for an hour of updates.
    """
    data = clustered(ROWS, DIMENSION)
    fresh = clustered(INSERTS * ROWS_PER_INSERT, DIMENSION, seed=11).rows
    found: dict[str, Any] = {"data": data.title, "index_type": INDEX_TYPE}
    with _database(folder / "changes.db", data, indexed=True) as con:
        found |= _searches_between_inserts(con, data, fresh)
        found |= _after_a_checkpoint(con, data)
        found |= _after_moved_rows(con, data)
    with _database(folder / "joins.db", data, indexed=True) as con:
        found |= _joins_beside_new_rows(con, data, fresh[:NEW_ROWS])
    with (
        _database(folder / "with.db", data, indexed=True) as own,
        _database(folder / "without.db", data, indexed=False) as plain,
    ):
        found |= _throughputs(own, plain, data, fresh)
        found |= _an_hour(folder, own, plain, data, updates)
    return found


@contextmanager
def _database(
    path: Path, data: Dataset, *, indexed: bool
) -> Iterator[duckdb.DuckDBPyConnection]:
    create_database(path, data)
    con = duckdb.connect(str(path))
    try:
        if indexed:
            duckvec.load(con)
            params = build_params(INDEX_TYPE, ROWS, DIMENSION)
            con.execute(
                "CALL create_vector_index('items', ?, ?)",
                [INDEX_TYPE, json.dumps(params)],
            ).fetchall()
        yield con
    finally:
        con.close()


class _Searches:
    """Single searches with one held-out query after another, timed."""

    def __init__(self, con: duckdb.DuckDBPyConnection, data: Dataset) -> None:
        self._con = con
        self._queries = [query.tolist() for query in data.queries]
        self._next = 0

    def one(self) -> float:
        """Return the milliseconds that one search takes."""
        query = self._queries[self._next % len(self._queries)]
        self._next += 1
        started = time.perf_counter()
        self._con.execute(SEARCH, [query]).fetchall()
        return 1000 * (time.perf_counter() - started)

    def at_rest(self) -> float:
        """Return the median when nobody wrote for some seconds."""
        until = time.perf_counter() + REST_SECONDS
        while time.perf_counter() < until:
            self.one()
        return median(self.one() for _ in range(SEARCHES))

    def answers(self) -> NDArray[np.int64]:
        """Return the ids (nq, K) found for every query, -1 for none."""
        found = np.full((len(self._queries), K), -1, dtype=np.int64)
        for number, query in enumerate(self._queries):
            rows = self._con.execute(SEARCH, [query]).fetchall()
            found[number, : len(rows)] = [row[0] for row in rows]
        return found


def _searches_between_inserts(
    con: duckdb.DuckDBPyConnection, data: Dataset, fresh: NDArray[np.float32]
) -> dict[str, Any]:
    searches = _Searches(con, data)
    quiet = searches.at_rest()
    quiet_recall = Truth(data.rows, data.queries, "L2").recall(searches.answers())
    times, first_id = [], len(data.rows)
    for start in range(0, len(fresh), ROWS_PER_INSERT):
        rows = _rows(fresh[start : start + ROWS_PER_INSERT], first_id + start)
        _insert(con, rows)
        times.append(searches.one())
    everything = np.concatenate([data.rows, fresh])
    truth = Truth(everything, data.queries, "L2")
    return {
        "quiet_ms": quiet,
        "quiet_recall": quiet_recall,
        "changing_ms": median(times),
        "changing_high_ms": float(np.quantile(times, 0.95)),
        "changing_ratio": median(times) / quiet,
        "changing_recall": truth.recall(searches.answers()),
    }


def _after_a_checkpoint(
    con: duckdb.DuckDBPyConnection, data: Dataset
) -> dict[str, Any]:
    duckvec.load(con).wait()
    searches = _Searches(con, data)
    before = searches.at_rest()
    con.execute("CHECKPOINT")
    after = searches.at_rest()
    return {
        "checkpoint_ms": after,
        "checkpoint_ratio": after / before,
    }


def _after_moved_rows(con: duckdb.DuckDBPyConnection, data: Dataset) -> dict[str, Any]:
    """Let a checkpoint move rows, and see how long searches take to be quick again."""
    searches = _Searches(con, data)
    quiet = searches.at_rest()
    time.sleep(REST_SECONDS)  # without searches, nothing holds rows in place
    con.execute("DELETE FROM items WHERE id < 130000 AND id % 8 <> 0")
    last = con.execute("SELECT max(rowid) FROM items").fetchall()
    con.execute("CHECKPOINT")
    moved = con.execute("SELECT max(rowid) FROM items").fetchall() != last
    started = time.perf_counter()
    back = None
    while back is None and time.perf_counter() - started < BACK_SECONDS:
        times = [searches.one() for _ in range(20)]
        if median(times) <= BACK_RATIO * quiet:
            back = time.perf_counter() - started
    return {"rows_moved": moved, "back_seconds": back}


def _joins_beside_new_rows(
    con: duckdb.DuckDBPyConnection, data: Dataset, fresh: NDArray[np.float32]
) -> dict[str, Any]:
    """Return how long joins take before rows came, right after, and later.

    The first one scans the new rows for each query; then they are held in memory.
    """
    queries = np.resize(data.queries, (JOINED, data.dimension))
    con.register("queries_in_memory", _rows(queries, 0))
    con.execute("CREATE TEMP TABLE queries AS FROM queries_in_memory")

    def join() -> float:
        started = time.perf_counter()
        con.execute(
            "SELECT q.id, h.id, h.distance FROM queries q, "
            f"vector_search('items', q.embedding, {K}) h"
        ).fetchnumpy()
        return time.perf_counter() - started

    _Searches(con, data).at_rest()
    quiet = median(join() for _ in range(JOINS))
    _insert(con, _rows(fresh, len(data.rows)))
    first = join()
    time.sleep(REST_SECONDS)
    later = median(join() for _ in range(JOINS))
    return {
        "join_seconds": quiet,
        "join_first_ratio": first / quiet,
        "join_beside_ratio": later / quiet,
    }


def _throughputs(
    own: duckdb.DuckDBPyConnection,
    plain: duckdb.DuckDBPyConnection,
    data: Dataset,
    fresh: NDArray[np.float32],
) -> dict[str, Any]:
    """Return how fast rows are written with an index, as a share of without one."""
    rows = _rows(fresh[:ROWS_PER_INSERT], 10_000_000)

    def insert(con: duckdb.DuckDBPyConnection, number: int) -> None:
        _insert(con, rows)

    def update(con: duckdb.DuckDBPyConnection, number: int) -> None:
        con.execute(
            "UPDATE items SET embedding = ? WHERE id = ?",
            [fresh[number].tolist(), number],
        )

    def update_in_place(con: duckdb.DuckDBPyConnection, number: int) -> None:
        con.execute("UPDATE items SET price = price + 1 WHERE id = ?", [number])

    def delete(con: duckdb.DuckDBPyConnection, number: int) -> None:
        con.execute("DELETE FROM items WHERE id = ?", [50_000 + number])

    ways: dict[str, Callable[[duckdb.DuckDBPyConnection, int], None]] = {
        "insert": insert,
        "update": update,
        "update_in_place": update_in_place,
        "delete": delete,
    }
    searches = _Searches(own, data)
    found = {}
    for name, way in ways.items():
        seconds: dict[str, list[float]] = {"own": [], "plain": []}
        for turn in range(WRITES // WRITES_PER_TURN):
            searches.one()  # a guard stands while rows are written
            for side, con in (("own", own), ("plain", plain)):
                started = time.perf_counter()
                for at in range(WRITES_PER_TURN):
                    way(con, turn * WRITES_PER_TURN + at)
                seconds[side].append(time.perf_counter() - started)
        pairs = zip(seconds["own"], seconds["plain"], strict=True)
        found[f"{name}_ratio"] = median(plain / own for own, plain in pairs)
        found[f"{name}s_per_second"] = WRITES_PER_TURN / median(seconds["own"])
    return found


def _an_hour(
    folder: Path,
    own: duckdb.DuckDBPyConnection,
    plain: duckdb.DuckDBPyConnection,
    data: Dataset,
    updates: int,
) -> dict[str, Any]:
    """Update as in an hour, searching in between; return the largest files of both.

    Every other update replaces 20 vectors, the rest change a number in 2,000 rows.
    """
    rng = np.random.default_rng(3)
    searches = _Searches(own, data)
    times = []
    largest = {"with": [0, 0], "without": [0, 0]}
    for number in range(updates):
        first = int(rng.integers(0, ROWS - 2000))
        if number % 2:
            sql = "UPDATE items SET price = price + 1 WHERE id BETWEEN ? AND ? + 1999"
        else:
            sql = (
                "UPDATE items SET embedding = list_transform(embedding::FLOAT[], "
                "lambda x: x * 1.001) WHERE id BETWEEN ? AND ? + 19"
            )
        for con in (own, plain):
            con.execute(sql, [first, first])
        times.append(searches.one())
        for name, sizes in largest.items():
            for at, path in enumerate((folder / f"{name}.db", f"{name}.db.wal")):
                file = folder / path
                if file.exists():
                    sizes[at] = max(sizes[at], file.stat().st_size)
    return {
        "hour_updates": updates,
        "hour_search_ms": median(times),
        "hour_file_bytes": largest["with"][0],
        "hour_log_bytes": largest["with"][1],
        "hour_plain_file_bytes": largest["without"][0],
        "hour_plain_log_bytes": largest["without"][1],
    }


def _insert(con: duckdb.DuckDBPyConnection, rows: pa.Table) -> None:
    con.register("fresh", rows)
    con.execute("INSERT INTO items FROM fresh")


def _rows(vectors: NDArray[np.float32], first_id: int) -> pa.Table:
    """Return rows of `items` with these vectors, as an Arrow table."""
    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    ids = np.arange(first_id, first_id + len(vectors))
    return pa.table(
        {
            "id": ids,
            "name": [f"row {number}" for number in ids],
            "price": pa.array(ids % 100, pa.int32()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    )
