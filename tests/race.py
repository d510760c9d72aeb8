"""Eight threads that write, checkpoint, make indexes and search, and a watchdog.

Each reader runs a search and exact SQL inside one read-only transaction and compares
them: its own snapshot bounds what it may find, whatever the others do. Nobody writes to
the table `quiet`, whose indexes come and go all the same. A thread that makes no
progress for a while is a hang: every stack is printed and the process ends.
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

import duckvec
from tests.comparison import Mismatch, Subject, check_joined, check_plain

DIMENSION = 4
ROWS = 3000
# Types whose parameters make a search exhaustive, and others, each in its own table:
# a reader knows which result it may expect, whatever the administrator does meanwhile.
TYPES: dict[str, list[tuple[str, str, dict[str, int] | None]]] = {
    "packed": [("FLAT", "{}", None)],
    "quiet": [
        ("IVF_FLAT", '{"nlist": 16}', {"nprobe": 16}),
        ("IVF_SQ8", '{"nlist": 16}', {"nprobe": 16}),
    ],
    "lists": [
        ("IVF_FLAT", '{"nlist": 16}', {"nprobe": 16}),
        ("IVF_SQ8", '{"nlist": 16}', {"nprobe": 16}),
    ],
    "graphs": [
        ("HNSW", '{"M": 8, "efConstruction": 100}', None),
        ("ANNOY", '{"n_trees": 4}', None),
        ("IVF_PQ", '{"nlist": 8, "m": 4}', None),
    ],
}
METRIC = {"packed": "L2", "quiet": "L2", "lists": "COSINE", "graphs": "IP"}
KEYED = {"packed", "graphs"}
MOVING = [name for name in TYPES if name != "quiet"]
# What transactions of others may do to one's own.
EXPECTED = re.compile(
    r"write transactions|Cannot CHECKPOINT|Conflict|conflict|write-write|"
    r"transaction.local changes|Duplicate key|violates primary key|"
    r"index on .* to compact|meanwhile; try again|"
    r"cannot begin while a checkpoint waits|transaction is aborted",
)
# A search with the parameters of an index that was replaced a moment before.
REPLACED = re.compile(r"is no parameter of|takes no|has no search parameters|no index")


@dataclass(frozen=True)
class Plan:
    """How many threads there are, and for how long.

    Attributes:
        seconds: how long they work.
        seed: of what they do.
        writers: threads that change rows and checkpoint.
        readers: threads that search and compare.
        administrators: threads that create, drop and compact indexes.
        hang_seconds: after how long without progress a thread hangs.
        forced: whether writers force checkpoints, and then update nothing: a forced
            checkpoint waits for every transaction that is older than an update or a
            definition.
    """

    seconds: float
    seed: int
    writers: int = 3
    readers: int = 3
    administrators: int = 2
    hang_seconds: float = 60
    forced: bool = False


class Race:
    """One run: the threads, what they count, and the first failure."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.plan = plan
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._beats: dict[str, float] = {}
        self._ids = iter(range(10_000_000, 2**62))
        self.con = duckvec.connect(str(path), config={"checkpoint_threshold": "100KB"})
        rng = np.random.default_rng(plan.seed)
        for name in TYPES:
            key = " PRIMARY KEY" if name in KEYED else ""
            self.con.execute(
                f"CREATE TABLE {name} (id BIGINT{key}, price INTEGER, "
                f"v FLOAT[{DIMENSION}])"
            )
            data = self._rows(rng, ROWS)
            self.con.execute(f"INSERT INTO {name} FROM data")
            del data
        self.con.execute(
            "CREATE TABLE queries AS SELECT row_number() OVER () AS number, "
            "v AS vector FROM (FROM lists WHERE v IS NOT NULL LIMIT 5)"
        )
        for name in TYPES:  # an index gives the table its metric
            self.con.execute(_create(name, 0)).fetchall()

    def run(self) -> None:
        """Run all threads until the time is over; end the process where one hangs."""
        until = time.monotonic() + self.plan.seconds
        jobs = [(f"writer {n}", self._write) for n in range(self.plan.writers)]
        jobs += [(f"reader {n}", self._read) for n in range(self.plan.readers)]
        jobs += [
            (f"administrator {n}", self._administer)
            for n in range(self.plan.administrators)
        ]
        threads = []
        for number, (name, job) in enumerate(jobs):
            cursor = self.con.cursor()
            duckvec.load(cursor)
            rng = np.random.default_rng([self.plan.seed, number])
            self._beats[name] = time.monotonic()
            arguments = (name, job, cursor, rng, until)
            threads.append(
                threading.Thread(target=self._work, args=arguments, name=name)
            )
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            for thread in threads:
                silent = time.monotonic() - self._beats[thread.name]
                if thread.is_alive() and silent > self.plan.hang_seconds:
                    print(f"{thread.name} hangs since {silent:.0f} s", file=sys.stderr)
                    faulthandler.dump_traceback(all_threads=True)
                    os._exit(1)
        self.con.close()

    def _work(
        self,
        name: str,
        job: Callable[[duckdb.DuckDBPyConnection, np.random.Generator], None],
        cursor: duckdb.DuckDBPyConnection,
        rng: np.random.Generator,
        until: float,
    ) -> None:
        while time.monotonic() < until and not self.failures:
            self._beats[name] = time.monotonic()
            try:
                job(cursor, rng)
            except (duckdb.FatalException, duckdb.InternalException) as error:
                self._fail(name, error)
            except duckdb.Error as error:
                if not EXPECTED.search(str(error)):
                    self._fail(name, error)
                self._count(f"refused: {type(error).__name__}")
                _roll_back(cursor)
            except BaseException as error:
                self._fail(name, error)
        self._beats[name] = time.monotonic()
        cursor.close()

    def _fail(self, name: str, error: BaseException) -> None:
        with self._lock:
            self.failures.append(f"{name}: {type(error).__name__}: {error}")

    def _count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    def _rows(self, rng: np.random.Generator, count: int) -> pa.Table:
        with self._lock:
            ids = [next(self._ids) for _ in range(count)]
        centres = np.random.default_rng(0).standard_normal((30, DIMENSION)) * 2
        vectors = centres[rng.integers(0, 30, count)]
        vectors = vectors + rng.integers(0, 3, (count, DIMENSION)) * 0.25
        flat = pa.array(vectors.astype(np.float32).ravel())
        return pa.table(
            {
                "id": ids,
                "price": rng.integers(0, 100, count).astype(np.int32),
                "v": pa.FixedSizeListArray.from_arrays(flat, DIMENSION),
            }
        )

    # What the threads do, once

    def _write(self, con: duckdb.DuckDBPyConnection, rng: np.random.Generator) -> None:
        action = rng.random()
        if action < 0.03:
            forced = self.plan.forced and rng.random() < 0.5
            con.execute("FORCE CHECKPOINT" if forced else "CHECKPOINT")
            self._count("forced checkpoints" if forced else "checkpoints")
            return
        if action < 0.2:
            con.execute("BEGIN")
            for _ in range(int(rng.integers(1, 4))):
                self._change(con, rng)
            con.execute("COMMIT" if rng.random() < 0.7 else "ROLLBACK")
            self._count("transactions of several statements")
            return
        self._change(con, rng)

    def _change(self, con: duckdb.DuckDBPyConnection, rng: np.random.Generator) -> None:
        name = str(rng.choice(MOVING))
        data = self._rows(rng, int(rng.choice([1, 20, 100])))
        modulus = int(rng.choice([50, 200]))
        some = f"id % {modulus} = {int(rng.integers(0, modulus))}"
        statements = [
            f"INSERT INTO {name} FROM data",
            f"DELETE FROM {name} WHERE {some}",
            f"INSERT INTO {name} SELECT * FROM data",
            f"DELETE FROM {name} WHERE id % 10 = {int(rng.integers(0, 10))}",
        ]
        updates = [
            f"UPDATE {name} SET v = (SELECT v FROM data LIMIT 1) WHERE {some}",
            f"UPDATE {name} SET price = price + 1 WHERE {some}",
        ]
        if name in KEYED:
            updates.append(
                f"INSERT OR REPLACE INTO {name} SELECT t.id, 1, d.v FROM "
                f"(SELECT id FROM {name} WHERE {some} LIMIT 20) AS t, "
                "(SELECT v FROM data LIMIT 1) AS d"
            )
        if not self.plan.forced:
            statements += updates
        con.register("data", data)
        try:
            con.execute(statements[int(rng.integers(0, len(statements)))])
        finally:
            con.unregister("data")
        self._count("statements that write")

    def _administer(
        self, con: duckdb.DuckDBPyConnection, rng: np.random.Generator
    ) -> None:
        name = str(rng.choice(list(TYPES)))
        action = rng.random()
        if action < 0.55:
            con.execute(_create(name, int(rng.integers(0, 10)))).fetchall()
            self._count("indexes created")
        elif action < 0.7:
            con.execute(f"CALL drop_vector_index('{name}')").fetchall()
            self._count("indexes dropped")
        elif action < 0.8:
            duckvec.load(con).wait(30)
            self._count("waits")
        elif action < 0.9:
            con.execute("FROM vector_indexes()").fetchall()
        elif _has_compact(con):
            con.execute(f"CALL vector_compact('{name}')").fetchall()
            self._count("compactions")
        time.sleep(float(rng.random()) * 0.2)

    def _read(self, con: duckdb.DuckDBPyConnection, rng: np.random.Generator) -> None:
        name = str(rng.choice(list(TYPES)))
        thorough = rng.random() < 0.7
        params = TYPES[name][0][2] if thorough else None
        exhaustive = name == "packed" or params is not None
        subject = Subject(
            name,
            "v",
            "price",
            "FLOAT",
            DIMENSION,
            False,
            METRIC[name],
            params,
            exhaustive,
        )
        query = [float(np.float32(x)) for x in rng.standard_normal(DIMENSION) * 2]
        k = int(rng.choice([1, 10, 100]))
        where = "price < 30" if rng.random() < 0.15 else None
        con.execute("BEGIN TRANSACTION READ ONLY")
        try:
            if rng.random() < 0.2:
                check_joined(con, subject, "queries", k, where)
                self._count("joined searches compared")
            else:
                check_plain(con, subject, query, k, where)
                self._count("searches compared")
            con.execute("COMMIT")
        except Mismatch as error:
            text = f"{subject.call('…', k, where)} for {query}: {error}"
            raise Mismatch(text) from None
        except duckdb.Error as error:
            if params is None or not REPLACED.search(str(error)):
                raise
            self._count("searches refused: the index was replaced")
            _roll_back(con)


def _create(name: str, number: int) -> str:
    """Return the call that creates one of the table's indexes."""
    index_type, params, _ = TYPES[name][number % len(TYPES[name])]
    return (
        f"CALL create_vector_index('{name}', '{index_type}', '{params}', "
        f"metric := '{METRIC[name]}')"
    )


def _roll_back(con: duckdb.DuckDBPyConnection) -> None:
    """End the transaction, if there is one."""
    try:
        con.execute("ROLLBACK")
    except duckdb.TransactionException:
        return


def _has_compact(con: duckdb.DuckDBPyConnection) -> bool:
    sql = "SELECT 1 FROM duckdb_functions() WHERE function_name = 'vector_compact'"
    return bool(con.execute(sql).fetchall())
