"""Builds, each in a process of its own, whose memory is watched from outside.

Run as `python -m benchmarks.builds`, this is that process: it reads what to do from
its standard input, says when it is ready, and builds when it is told to.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from benchmarks.raw import new_raw
from benchmarks.watched import ready, run_watched

LIBRARY = {"HNSW": "hnswlib", "ANNOY": "annoy"}


def run_build(order: dict[str, Any]) -> dict[str, Any]:
    """Build in a new process; return what it says, with `peak_bytes` added.

    Args:
        order: side ("raw" or "duckvec"), index_type, params, threads, and database
            and, for raw, file, as paths.

    Returns:
        seconds, and for raw builds read_seconds and save_seconds; peak_bytes is the
        memory on top of what the process held before, None where it cannot be measured.
    """
    return run_watched("benchmarks.builds", order)


def warm(con: duckdb.DuckDBPyConnection, table: str = "items") -> None:
    """Bring the vectors into DuckDB's own cache, which is not what a build holds.

    What the first Arrow table of a process imports (pandas, where that is there) is no
    part of a build, either.
    """
    con.execute(f"SELECT sum(array_inner_product(embedding, embedding)) FROM {table}")
    con.fetchall()
    _read(con, f"(FROM {table} LIMIT 1)")


def _read(con: duckdb.DuckDBPyConnection, table: str = "items") -> NDArray[np.float32]:
    """Return the vectors (n, d), by the shortest way that there is."""
    column = con.sql(f"SELECT embedding FROM {table}").to_arrow_table().column(0)
    dimension = column.type.list_size
    return column.combine_chunks().values.to_numpy().reshape(-1, dimension)


def _build_raw(order: dict[str, Any]) -> dict[str, Any]:
    """Read, build and save as somebody without duckvec would; safely on disk, too."""
    with duckdb.connect(order["database"], read_only=True) as con:
        warm(con)
        started = time.perf_counter()
        vectors = _read(con)
        read_seconds = time.perf_counter() - started
    index = new_raw(
        order["index_type"], vectors.shape[1], order["params"], order["threads"]
    )
    ready()
    started = time.perf_counter()
    index.build(vectors)
    built = time.perf_counter()
    index.save(Path(order["file"]))
    with Path(order["file"]).open("rb") as file:
        os.fsync(file.fileno())
    return {
        "read_seconds": read_seconds,
        "seconds": built - started,
        "save_seconds": time.perf_counter() - built,
    }


def _build_duckvec(order: dict[str, Any]) -> dict[str, Any]:
    import duckvec

    con = duckvec.connect(order["database"])
    warm(con)
    # What the first call imports is no part of a build: one is refused.
    try:
        con.execute("CALL create_vector_index('items', 'no type')")
    except duckdb.Error as error:
        assert "no index type" in str(error), error
    ready()
    started = time.perf_counter()
    con.execute(
        "CALL create_vector_index('items', $index_type, $params, metric := 'L2')",
        {"index_type": order["index_type"], "params": json.dumps(order["params"])},
    ).fetchall()
    seconds = time.perf_counter() - started
    con.close()
    return {"seconds": seconds}


def main() -> None:
    """Do what the standard input says."""
    order = json.loads(sys.stdin.readline())
    importlib.import_module(LIBRARY.get(order["index_type"], "faiss"))
    side = _build_raw if order["side"] == "raw" else _build_duckvec
    print(json.dumps(side(order)), flush=True)


if __name__ == "__main__":
    main()
