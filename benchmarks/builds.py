"""Builds, each in a process of its own, whose memory is watched from outside.

Run as `python -m benchmarks.builds`, this is that process: it reads what to do from
its standard input, says when it is ready, and builds when it is told to.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from benchmarks.data import REPOSITORY
from benchmarks.raw import new_raw

SAMPLE_SECONDS = 0.004
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
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.builds"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        process.stdout.readline()
        watch = _Watch(process.pid)
        process.stdin.write("go\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        peak = watch.stop()
    if not answer:
        raise SystemExit(f"the build of {order['index_type']} failed, see above")
    return {**json.loads(answer), "peak_bytes": peak}


class _Watch:
    """Samples the anonymous memory of a process; mapped files are not counted."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._before = self._peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int | None:
        self._stop.set()
        self._thread.join()
        if self._before is None or self._peak is None:
            return None
        return self._peak - self._before

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            now = self._now()
            if now is not None and self._peak is not None:
                self._peak = max(self._peak, now)

    def _now(self) -> int | None:
        try:
            text = self._status.read_text()
        except OSError:
            return None
        for line in text.splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        return None


def _ready() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def _warm(con: duckdb.DuckDBPyConnection) -> None:
    """Bring the table into DuckDB's own cache, which is not what a build holds."""
    con.execute("SELECT sum(array_inner_product(embedding, embedding)) FROM items")
    con.fetchall()


def _read(con: duckdb.DuckDBPyConnection) -> NDArray[np.float32]:
    """Return the vectors (n, d), by the shortest way that there is."""
    column = con.sql("SELECT embedding FROM items").to_arrow_table().column(0)
    dimension = column.type.list_size
    return column.combine_chunks().flatten().to_numpy().reshape(-1, dimension)


def _build_raw(order: dict[str, Any]) -> dict[str, Any]:
    """Read, build and save as somebody without duckvec would; safely on disk, too."""
    with duckdb.connect(order["database"], read_only=True) as con:
        _warm(con)
        started = time.perf_counter()
        vectors = _read(con)
        read_seconds = time.perf_counter() - started
    index = new_raw(
        order["index_type"], vectors.shape[1], order["params"], order["threads"]
    )
    _ready()
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
    _warm(con)
    _ready()
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
