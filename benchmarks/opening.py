"""Opening a database with many segments: before the first search, and after it.

Each opening is in a process of its own, which has its modules imported already.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import duckdb

import duckvec
from benchmarks.data import K, build_params, clustered, create_database

SEGMENTS, ROWS_PER_SEGMENT, DIMENSION = 20, 50_000, 128
INDEX_TYPES = ("IVF_FLAT", "HNSW")
OPENINGS = 5
MOST_SECONDS = 60.0
SEARCH = f"SELECT id, distance FROM vector_search('items', ?, {K})"
EXPLAIN = f"SELECT route FROM vector_explain('items', ?, {K})"


def measure_opening(folder: Path, segments: int = SEGMENTS) -> dict[str, Any]:
    """Return, by type, medians in ms of what opening takes, and what follows.

    Args:
        folder: an empty one, for database files.
        segments: how many the index has.
    """
    data = clustered(segments * ROWS_PER_SEGMENT, DIMENSION)
    size = -(-ROWS_PER_SEGMENT * DIMENSION * 4 // (1 << 20))
    found: dict[str, Any] = {"data": data.title, "segments": segments, "types": {}}
    for index_type in INDEX_TYPES:
        path = folder / f"{index_type}.db"
        create_database(path, data)
        params = build_params(index_type, ROWS_PER_SEGMENT, DIMENSION)
        with duckvec.connect(str(path), background=False) as con:
            con.execute(
                "CALL create_vector_index('items', ?, ?, index_file_size := ?)",
                [index_type, json.dumps(params), size],
            ).fetchall()
        query = json.dumps(data.queries[0].tolist())
        openings = [_open_elsewhere(path, query) for _ in range(OPENINGS)]
        found["types"][index_type] = {
            name: median(each[name] for each in openings) for name in openings[0]
        }
        path.unlink()
        print(f"opening, {index_type}: {found['types'][index_type]}", flush=True)
    return found


def _open_elsewhere(path: Path, query: str) -> dict[str, float]:
    words = [sys.executable, "-m", "benchmarks.opening", str(path), query]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def open_database(path: str, query: list[float]) -> dict[str, float]:
    """Open a database and search until the index answers; return times in ms."""
    duckvec.connect().close()  # imports what the first load imports
    times = [time.perf_counter()]
    con = duckdb.connect(path)
    times.append(time.perf_counter())
    duckvec.load(con, background=False)
    times.append(time.perf_counter())
    con.execute("FROM vector_indexes()").fetchall()
    times.append(time.perf_counter())
    con.execute(SEARCH, [query]).fetchall()
    times.append(time.perf_counter())
    while con.execute(EXPLAIN, [query]).fetchall() != [("index",)]:
        if time.perf_counter() - times[0] > MOST_SECONDS:
            raise SystemExit("the index does not come to serve")
        time.sleep(0.05)
    times.append(time.perf_counter())
    con.execute(SEARCH, [query]).fetchall()
    times.append(time.perf_counter())
    con.close()
    names = ("connect", "load", "indexes", "first_search", "until_index", "search")
    steps = [1e3 * (b - a) for a, b in itertools.pairwise(times)]
    found = dict(zip(names, steps, strict=True))
    return {**found, "opening": sum(steps[:3])}


if __name__ == "__main__":
    print(json.dumps(open_database(sys.argv[1], json.loads(sys.argv[2]))))
