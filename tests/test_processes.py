"""Several processes: forked and spawned children, and rivals for one file."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import duckdb
import pytest

import duckvec
from tests.data import (
    AS_SCRIPT,
    Vectors,
    assert_same,
    create,
    create_table,
    exact,
    search,
)
from tests.upkeep import eventually

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
SECONDS = 60
REFUSAL = (
    "this process was forked after duckvec was loaded, and neither DuckDB's nor its "
    'threads came along; start it with the method "spawn"'
)


def run_python(code: str, *arguments: str) -> list[str]:
    """Run a program that must end well and in silence; return the lines it printed."""
    result = subprocess.run(
        [sys.executable, "-c", AS_SCRIPT + code, *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=ROOT,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout.splitlines()


# Forked children

# A child tries something and prints what it was told. It ends as the children of
# multiprocessing do, after what Python does at exit: DuckDB crashes where a connection
# of the parent is closed in a child.
FORK = """
import atexit, faulthandler, gc, json, os, sys, threading
import duckdb, duckvec

path, works = sys.argv[1:]
con = duckvec.connect(path)
con.execute(
    "CREATE TABLE t AS SELECT i AS id, [i, i % 7]::FLOAT[2] AS v FROM range(5000) r(i)"
)
con.execute("CALL create_vector_index('t', 'IVF_FLAT', {'nlist': 4})").fetchall()
search = "SELECT id FROM vector_search('t', [3, 3], 1)"
assert con.execute(search).fetchall() == [(3,)]
handle = duckvec.load(con)
cursor = con.cursor()
instance = handle._instance
files = con.execute("SELECT file FROM duckvec.segments").fetchall()
(folder,) = {state.folder for state in instance.databases.values() if state.folder}

# A thread that is not there in the child holds what locks there are.
held, over = threading.Event(), threading.Event()
def hold():
    with instance.lock, instance.keeper._lock, instance.armer._lock, duckvec_lock:
        held.set()
        over.wait()
duckvec_lock = __import__("duckvec.install").install._lock
thread = threading.Thread(target=hold)
thread.start()
held.wait()

for name, work in json.loads(works).items():
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(20, exit=True)
        try:
            exec(work)
            said = "no error"
        except Exception as error:
            said = str(error).partition("\\n")[0]
        print(json.dumps([name, said]), flush=True)
        atexit._run_exitfuncs()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
over.set()
thread.join()
assert con.execute("SELECT state FROM vector_indexes()").fetchall() == [("ready",)]
assert all((folder / name).is_file() for (name,) in files)
con.execute("INSERT INTO t VALUES (-1, [3, 3.1])")
found = con.execute("SELECT id FROM vector_search('t', [3, 3.1], 2)").fetchall()
assert found == [(-1,), (3,)], found
con.execute("CALL create_vector_index('t', 'FLAT')").fetchall()
assert con.execute(search).fetchall() == [(3,)]
con.close()
"""
REFUSED = {
    "search": "con.execute(search).fetchall()",
    "create": "con.execute(\"CALL create_vector_index('t', 'FLAT')\").fetchall()",
    "drop": "con.execute(\"CALL drop_vector_index('t')\").fetchall()",
    "list": "con.execute('FROM vector_indexes()').fetchall()",
    "load a cursor": "duckvec.load(cursor)",
    "load a connection of its own": "duckvec.connect()",
    "unload": "duckvec.unload(con)",
    "handle": "handle.wait()",
}
ALLOWED = {
    "nothing": "",
    "exact SQL": "assert con.execute('FROM t LIMIT 3').fetchall()[0][0] == 0",
    "close the handle": "handle.close()",
    "let go of a cursor": "del cursor; gc.collect()",
}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@needs_fork
@pytest.mark.parametrize("place", ["file", "memory"])
def test_forked_children_are_refused_at_once_and_leave_all_to_their_parent(
    path: Path, place: str
) -> None:
    database = str(path) if place == "file" else ":memory:"
    said = dict(
        json.loads(line)
        for line in run_python(FORK, database, json.dumps({**REFUSED, **ALLOWED}))
    )
    assert said.keys() == {*REFUSED, *ALLOWED}
    for work, words in said.items():
        if work in ALLOWED:
            assert words == "no error", work
        else:
            assert words.endswith(REFUSAL), (work, words)
    if place == "file":
        with duckvec.connect(str(path), read_only=True) as con:
            assert con.execute("SELECT count(*) FROM t").fetchall() == [(5001,)]
            states = con.execute("SELECT state FROM vector_indexes()").fetchall()
            assert states == [("ready",)]


MULTIPROCESSING = """
import multiprocessing, sys
import duckvec
con = duckvec.connect(sys.argv[1])
con.execute(
    "CREATE TABLE t AS SELECT i AS id, [i, 1]::FLOAT[2] AS v FROM range(900) r(i)"
)
con.execute("CALL create_vector_index('t', 'FLAT')").fetchall()
search = "SELECT id FROM vector_search('t', [3, 1], 1)"
assert con.execute(search).fetchall() == [(3,)]

def ask(number):
    try:
        return con.execute(search).fetchall()
    except Exception as error:
        return str(error).partition("\\n")[0]

with multiprocessing.get_context("fork").Pool(2) as pool:
    for answer in pool.map(ask, range(4)):
        print(answer)
    pool.close()
    pool.join()
assert con.execute(search).fetchall() == [(3,)]
assert con.execute("SELECT state FROM vector_indexes()").fetchall() == [("ready",)]
con.close()
"""


@needs_fork
@pytest.mark.parametrize("place", ["file", "memory"])
def test_forked_workers_get_a_sentence(path: Path, place: str) -> None:
    database = str(path) if place == "file" else ":memory:"
    said = run_python(MULTIPROCESSING, database)
    assert len(said) == 4
    assert all(line.endswith(REFUSAL) for line in said), said


EARLY_FORK = """
import os, sys
import duckvec
child = os.fork()
con = duckvec.connect(sys.argv[1] + (".child" if child == 0 else ""))
con.execute(
    "CREATE TABLE t AS SELECT i AS id, [i, 1]::FLOAT[2] AS v FROM range(900) r(i)"
)
con.execute("CALL create_vector_index('t', 'IVF_FLAT', {'nlist': 4})").fetchall()
found = con.execute("SELECT id FROM vector_search('t', [3, 1], 1)").fetchall()
con.close()
assert found == [(3,)]
if child == 0:
    os._exit(0)  # DuckDB 1.5 has threads since it was imported, and crashes at exit
assert os.waitpid(child, 0)[1] == 0
print("done")
"""


@needs_fork
def test_a_child_that_was_forked_before_the_first_load_works(path: Path) -> None:
    assert run_python(EARLY_FORK, str(path)) == ["done"]


# Spawned children


def search_read_only(path: str, query: list[float]) -> list[tuple[int, float]]:
    """Search in a process of its own; the module is imported there anew."""
    with duckvec.connect(path, read_only=True) as con:
        duckvec.load(con).wait(SECONDS)
        return search(con, query)


def test_spawned_children_search_a_closed_database(
    path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "FLAT")
    wanted = [exact(con, vectors.query(number)) for number in range(4)]
    con.close()
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawning) as pool:
        queries = [vectors.query(number) for number in range(4)]
        found = list(pool.map(search_read_only, [str(path)] * 4, queries))
    for hits, distances in zip(found, wanted, strict=True):
        assert_same(hits, distances)


# Two processes and one file

HOLDER = """
import sys
import duckvec
con = duckvec.connect(sys.argv[1], read_only=sys.argv[2] == "read-only")
con.execute("FROM vector_search('items', (SELECT embedding FROM items LIMIT 1), 3)")
con.fetchall()
print("open", flush=True)
sys.stdin.readline()
con.close()
"""


@pytest.mark.parametrize("holder", ["read-write", "read-only"])
@pytest.mark.parametrize("other", ["read-write", "read-only"])
def test_a_file_of_another_process_gives_duckdbs_own_error_at_once(
    path: Path,
    vectors: Vectors,
    caplog: pytest.LogCaptureFixture,
    holder: str,
    other: str,
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "FLAT")
    con.close()
    process = subprocess.Popen(
        [sys.executable, "-c", AS_SCRIPT + HOLDER, str(path), holder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        folder = path.with_name(path.name + ".duckvec")
        files, threads = sorted(folder.iterdir()), threading.active_count()
        with caplog.at_level(logging.WARNING, "duckvec"):
            started = time.monotonic()
            if holder == other == "read-only":
                duckvec.connect(str(path), read_only=True).close()
            else:
                with pytest.raises(duckdb.IOException, match="lock"):
                    duckvec.connect(str(path), read_only=other == "read-only")
            assert time.monotonic() - started < 5
        assert caplog.records == []
        eventually(lambda: threading.active_count() <= threads)
        assert sorted(folder.iterdir()) == files
        said = process.communicate("\n", timeout=SECONDS)
        assert (process.returncode, *said) == (0, "", "")
    finally:
        process.kill()
        process.wait()
    with duckvec.connect(str(path)) as con:
        assert len(search(con, vectors.query(0))) == 10


FIGHTER = """
import json, random, sys, time
import duckdb, duckvec
path, number = sys.argv[1], int(sys.argv[2])
rng = random.Random(number)
counts = {"written": 0, "refused": 0}
until = time.monotonic() + 60
while counts["written"] < 5 and time.monotonic() < until:
    try:
        con = duckvec.connect(path)
    except duckdb.IOException as error:
        assert "lock" in str(error), error
        counts["refused"] += 1
        time.sleep(rng.random() * 0.02)
        continue
    key = 1000 * number + counts["written"]
    con.execute("INSERT INTO items SELECT $key, 0, embedding FROM items LIMIT 1",
                {"key": -key})
    if counts["written"] == 3:
        con.execute("CALL create_vector_index('items', 'IVF_FLAT', {'nlist': 8})")
        con.fetchall()
    hits = con.execute("SELECT id FROM vector_search('items', "
        "(SELECT embedding FROM items WHERE id = $key), 40)", {"key": -key}).fetchall()
    assert (-key,) in hits
    counts["written"] += 1
    con.close()
    time.sleep(rng.random() * 0.02)
print(json.dumps(counts))
"""


def test_processes_that_fight_for_one_file_lose_nothing(
    path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "FLAT")
    con.close()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", AS_SCRIPT + FIGHTER, str(path), str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for number in (1, 2)
    ]
    counts = []
    for process in processes:
        out, errors = process.communicate(timeout=2 * SECONDS)
        assert (process.returncode, errors) == (0, "")
        counts.append(json.loads(out))
    assert [count["written"] for count in counts] == [5, 5]
    assert sum(count["refused"] for count in counts) > 0
    with duckvec.connect(str(path)) as con:
        found = con.execute("SELECT count(*) FROM items WHERE id < 0").fetchall()
        assert found == [(10,)]
        named = con.execute(
            "SELECT file FROM duckvec.segments "
            "UNION ALL SELECT map_file FROM duckvec.segments"
        ).fetchall()
    folder = path.with_name(path.name + ".duckvec")
    assert {file.name for file in folder.iterdir()} == {name for (name,) in named}


# What the garbage collector does

COLLECTED = """
import faulthandler, gc, threading
import duckvec
from duckvec import keeper
faulthandler.dump_traceback_later(20, exit=True)

class Collecting(threading.Thread):
    def __init__(self, *arguments, **options):
        if stock:
            stock.pop()
            gc.collect()
        super().__init__(*arguments, **options)

gc.disable()
con = duckvec.connect()
stock = []
for _ in range(3):
    forgotten = con.cursor()
    duckvec.load(forgotten)
    cycle = [forgotten]
    cycle.append(cycle)
    stock.append(cycle)
del forgotten, cycle
instance = duckvec.load(con)._instance
assert len(instance.sessions) == 4
con.execute(
    "CREATE TABLE t AS SELECT i AS id, [i, 1]::FLOAT[2] AS v FROM range(9) r(i)"
)
keeper.threading.Thread = Collecting
con.execute("CALL create_vector_index('t', 'FLAT')").fetchall()
print(con.execute("SELECT id FROM vector_search('t', [3, 1], 1)").fetchall())
print(len(stock), len(instance.sessions))
con.close()
"""


def test_a_connection_may_be_collected_while_a_thread_of_ours_begins() -> None:
    assert run_python(COLLECTED) == ["[(3,)]", "0 1"]
