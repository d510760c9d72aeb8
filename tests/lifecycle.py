"""Many short lives of a connection, in two processes that take turns at one file.

Each life opens the database, loads, perhaps writes, searches, and closes or just lets
go; the next one, in the other mode or process, begins at once. Nothing may be left: no
lock, no thread, no open file, no word on stderr. `python -m tests.lifecycle FILE` is
one of the processes: it reads a life a line, as JSON, and answers with a line.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

import duckvec

DIMENSION = 4
ENDS = ("close", "drop", "cursor first", "cursor last", "unload", "in a transaction")
LIFE_SECONDS = 60


class LeftOver(AssertionError):
    """Raised when a life failed, or left something behind."""


def live(path: str, life: dict[str, Any]) -> dict[str, Any]:
    """Open, write, search and let go; return what was found and what is left."""
    started = time.perf_counter()
    con = duckdb.connect(path, read_only=life["read_only"])
    opened = time.perf_counter() - started
    handle = duckvec.load(con)
    cursor = con.cursor()
    duckvec.load(cursor)
    if not life["read_only"]:
        number = life["number"]
        if number % 7 == 0:
            con.execute("CALL create_vector_index('t', 'IVF_FLAT', '{\"nlist\": 8}')")
            con.fetchall()
        con.execute(f"INSERT INTO t SELECT -1 - {number}, [{number % 50}, 1, 1, 1]")
        con.execute(f"DELETE FROM t WHERE id % 997 = {number % 997}")
    if life["wait"]:
        handle.wait(LIFE_SECONDS)
    query = life["query"]
    distances = [
        row[0]
        for session in (con, cursor)
        for row in session.execute(
            "SELECT distance FROM vector_search('t', $q::FLOAT[], 5)", {"q": query}
        ).fetchall()
    ]
    wanted = con.execute(
        f"SELECT array_distance(v, $q::FLOAT[{DIMENSION}]) FROM t", {"q": query}
    ).fetchall()
    nearest = sorted(row[0] for row in wanted)[:5]
    # By default settings IVF_FLAT may miss a row, and never gives fewer.
    right = len(distances) == 2 * len(nearest) and distances[0] >= nearest[0]
    end = life["end"]
    if end == "cursor first":
        cursor.close()
        con.close()
    elif end == "cursor last":
        con.close()
        cursor.close()
    elif end == "unload":
        duckvec.unload(cursor)
        duckvec.unload(con)
        con.close()
        cursor.close()
    elif end == "in a transaction":
        con.execute("BEGIN")
        con.execute("SELECT count(*) FROM t").fetchall()
        con.close()
        cursor.close()
    elif end == "close":
        con.close()
    del con, cursor, handle
    gc.collect()
    return {
        "right": right,
        "open files": open_files(path),
        "opened": opened,
        "threads": [t.name for t in threading.enumerate()][1:],
    }


def open_files(path: str) -> list[str]:
    """Return which files of a database this process has open."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{descriptor}")
            if target.startswith(path) and ".duckvec/" not in target:
                found.append(target)
    return found


def run_lives(folder: Path, rounds: int, seed: int) -> Counter[str]:
    """Take turns between two processes; return what was done.

    Raises:
        LeftOver: a life could not open the file, was wrong, or left something.
    """
    path = folder / "lives.db"
    con = duckvec.connect(str(path))
    con.execute(
        f"CREATE TABLE t AS SELECT i AS id, [i % 50, i % 7, i % 3, 1]"
        f"::FLOAT[{DIMENSION}] AS v FROM range(5000) r(i)"
    )
    con.execute(
        "CALL create_vector_index('t', 'IVF_FLAT', '{\"nlist\": 8}')"
    ).fetchall()
    con.close()
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    with _process(path) as first, _process(path) as second:
        for number in range(rounds):
            life = {
                "number": number,
                "read_only": bool(number % 2) if rng.random() < 0.8 else False,
                "end": str(rng.choice(ENDS)),
                "wait": bool(rng.random() < 0.2),
                "query": [float(np.float32(x)) for x in rng.standard_normal(4) * 5],
            }
            process = first if rng.random() < 0.5 else second
            answer = _ask(process, life)
            if "error" in answer or not answer["right"] or answer["open files"]:
                raise LeftOver(f"seed {seed}, round {number}, {life}: {answer}")
            counts["lives"] += 1
            counts[f"ended by {life['end']}"] += 1
            counts["read-only" if life["read_only"] else "read-write"] += 1
            counts["threads seen for a moment"] += len(answer["threads"])
            slowest = max(counts["slowest opening, ms"], round(1e3 * answer["opened"]))
            counts["slowest opening, ms"] = slowest
    return counts


@contextlib.contextmanager
def _process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Hold a process that lives; at its end it must be silent and have no threads."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.lifecycle", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        try:
            yield process
            rest, _ = process.communicate("", timeout=LIFE_SECONDS)
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        noise = errors.read()
    if noise or process.returncode or json.loads(rest) != []:
        raise LeftOver(
            f"at its end: code {process.returncode}, threads {rest}, stderr {noise!r}"
        )


def _ask(process: subprocess.Popen[str], life: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(life) + "\n")
    process.stdin.flush()
    timer = threading.Timer(LIFE_SECONDS, process.kill)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    answer: dict[str, Any] = json.loads(line or '{"error": "it died, or hung"}')
    return answer


def _serve(path: str) -> None:
    """Live as the lines on stdin say; at the end print which threads stayed."""
    for line in sys.stdin:
        try:
            answer = live(path, json.loads(line))
        except Exception as error:
            answer = {"error": "".join(traceback.format_exception(error))}
        print(json.dumps(answer), flush=True)
    for thread in threading.enumerate()[1:]:
        thread.join(10)
    print(json.dumps([thread.name for thread in threading.enumerate()][1:]))


if __name__ == "__main__":
    _serve(sys.argv[1])
