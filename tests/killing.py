"""Processes that work on a database and are killed: nothing is lost, nothing stays.

A child inserts, deletes, builds, seals, merges, drops and checkpoints. It tells its
parent through a pipe what it is about to do and what it has committed, and dies by
SIGKILL: at a random time, or at a named point, before or after a step of ours. The
parent then opens the database and compares it with what was committed.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

import duckvec
from duckvec import builder, catalog, guards, leftovers, paths, rewriting, segments
from duckvec.states import DatabaseState, IndexState
from duckvec.writer import SegmentWriter
from tests.data import EXHAUSTIVE, FUNCTIONS, PARAMS, create
from tests.upkeep import impatient, let_background_end

DIMENSION = 8
LONGEST_SECONDS = 1.0
HANG_SECONDS = 60
CONFIG = {"threads": 1}  # libraries with more of them wait for each other busily
ROUNDS_OF_ONE_DATABASE = 12
# A step of ours by name: where it is called from, and its name there.
POINTS: dict[str, tuple[Any, str]] = {
    "folder made": (paths, "make_folder"),
    "index file written": (segments, "file_checksum"),
    "file flushed": (paths, "fsync"),
    "file renamed": (os, "replace"),
    "both files published": (paths, "publish"),
    "catalog made": (catalog, "create"),
    "catalog rows written": (catalog, "replace_index"),
    "epoch written": (catalog, "insert_epoch"),
    "old epochs deleted": (catalog, "delete_epochs"),
    "committed": (DatabaseState, "count_commit"),
    "build committed": (builder, "commit"),
    "seal or merge committed": (rewriting, "commit"),
    "files kept": (SegmentWriter, "keep"),
    "published": (IndexState, "use"),
    "marked": (guards, "mark"),
    "old files deleted after a build or drop": (builder, "remove_files"),
    "old files deleted after a merge": (rewriting, "remove_files"),
    "one file deleted": (leftovers.Leftovers, "discard"),
}


@dataclass(frozen=True)
class Death:
    """How a child dies.

    Attributes:
        point: one of POINTS; None: at a random time.
        after: whether after the step, else before it.
        times: at the so manieth time.
        seconds: when at the latest.
    """

    point: str | None
    after: bool
    times: int
    seconds: float


def draw_death(chance: random.Random) -> Death:
    """Return a death: at a named point twice as often as at a random time."""
    point = chance.choice(list(POINTS)) if chance.random() < 2 / 3 else None
    times = 1 if chance.random() < 0.5 else chance.randint(2, 6)
    seconds = LONGEST_SECONDS if point else chance.uniform(0.01, LONGEST_SECONDS)
    return Death(point, chance.random() < 0.5, times, seconds)


def arm(death: Death) -> None:
    """Let this process die at the named point."""
    if death.point is None:
        return
    owner, name = POINTS[death.point]
    step = getattr(owner, name)
    left = death.times

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and not death.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = step(*arguments, **named)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)


# What the child does


def vectors_of(first: int, count: int, version: int) -> pa.Table:
    """Return rows of `items`: each vector follows from its row's id and version."""
    rng = np.random.default_rng([first, version])
    flat = pa.array(rng.standard_normal(count * DIMENSION).astype(np.float32))
    return pa.table(
        {
            "id": np.arange(first, first + count),
            "version": np.full(count, version),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, DIMENSION),
        }
    )


@dataclass(frozen=True)
class Change:
    """A transaction that changes rows: `first` to `first + count` get a version.

    They are inserted where the version is 1, get new vectors where it is higher, and
    are deleted where it is 0.
    """

    first: int
    count: int
    version: int

    def run(self, con: duckdb.DuckDBPyConnection) -> None:
        """Commit it."""
        rows = vectors_of(self.first, self.count, self.version)
        con.execute("BEGIN")
        if self.version != 1:
            con.execute(
                "DELETE FROM items WHERE id BETWEEN ? AND ?",
                [self.first, self.first + self.count - 1],
            )
        if self.version:
            con.execute("INSERT INTO items SELECT * FROM rows")
        con.execute("COMMIT")
        del rows


def draw_change(chance: random.Random, blocks: dict[int, tuple[int, int]]) -> Change:
    """Return a change of one block of rows; `blocks`: count and version by first id."""
    there = [first for first, (_, version) in blocks.items() if version]
    if there and chance.random() < 0.35:
        first = chance.choice(there)
        count, version = blocks[first]
        return Change(first, count, 0 if chance.random() < 0.6 else version + 1)
    end = max((first + count for first, (count, _) in blocks.items()), default=0)
    return Change(end, chance.choice([1, 40, 250, 700]), 1)


# What the child does at random, and how often.
ACTIONS = {
    "change": 60,
    "create": 16,
    "drop": 4,
    "compact": 7,
    "checkpoint": 7,
    "search": 6,
}
# What comes by every point.
ALL_POINTS = ("create", "change", "change", "compact", "create", "wait", "drop")


def work(
    path: str,
    seed: int,
    blocks: dict[int, tuple[int, int]],
    death: Death,
    plan: tuple[str, ...],
    pipe: Connection,
) -> None:
    """Work on the database until death; the child's whole life.

    Args:
        path: the database file.
        seed: of what is random.
        blocks: what is in the table, as Victim has it.
        death: when to die.
        plan: what is done at first, and never without it.
        pipe: where it is told.
    """
    chance = random.Random(seed)
    arm(death)
    with impatient():
        con = duckvec.connect(path, background=not plan, config=CONFIG)
        pipe.send("opened")
        for action in itertools.chain(plan, iter(lambda: draw_action(chance), "")):
            act(con, action, chance, blocks, pipe)


def draw_action(chance: random.Random) -> str:
    """Return one of ACTIONS."""
    return chance.choices(list(ACTIONS), list(ACTIONS.values()))[0]


def act(
    con: duckdb.DuckDBPyConnection,
    action: str,
    chance: random.Random,
    blocks: dict[int, tuple[int, int]],
    pipe: Connection,
) -> None:
    """Do one thing, and tell of it."""
    if action == "change":
        change = draw_change(chance, blocks)
        pipe.send(change)
        change.run(con)
        pipe.send("committed")
        blocks[change.first] = (change.count, change.version)
        return
    kind = chance.choice(list(PARAMS))
    pipe.send(f"create {kind}" if action == "create" else action)
    if action == "create":
        create(con, kind, metric=chance.choice(list(FUNCTIONS)))
    elif action == "drop":
        con.execute("CALL drop_vector_index('items')").fetchall()
    elif action == "compact":
        with contextlib.suppress(duckdb.Error):  # there may be no index
            con.execute("CALL vector_compact('items')").fetchall()
    elif action == "checkpoint":
        with contextlib.suppress(duckdb.Error):  # a guard may be in the way
            con.execute("CHECKPOINT")
    elif action == "wait":
        duckvec.load(con).wait()
    else:
        query = [chance.gauss(0, 1) for _ in range(DIMENSION)]
        con.execute("FROM vector_search('items', $q)", {"q": query}).fetchall()


def only_open(path: str, death: Death, pipe: Connection) -> None:
    """Open the database, and search, until death."""
    arm(death)
    con = duckvec.connect(path, config=CONFIG)
    pipe.send("opened")
    con.execute("FROM vector_indexes()").fetchall()
    query = [1.0] * DIMENSION
    con.execute("FROM vector_search('items', $q)", {"q": query}).fetchall()
    duckvec.load(con).wait()
    time.sleep(HANG_SECONDS)


# What the parent does


class Damage(AssertionError):
    """Raised when a database is not what was committed, or something stayed behind."""


@dataclass
class Victim:
    """A database whose processes are killed, and what was committed to it.

    Attributes:
        path: the database file.
        blocks: number of rows and version of each block of rows, by its first id;
            version 0: deleted.
        doubtful: a change that may have been committed.
    """

    path: Path
    blocks: dict[int, tuple[int, int]] = field(default_factory=dict)
    doubtful: Change | None = None

    def kill_a_child(
        self,
        seed: int,
        death: Death,
        plan: tuple[str, ...] = (),
        opening: bool = False,
    ) -> tuple[str, bool]:
        """Let a child work, or just open, until its death.

        Returns:
            What it did last, and whether it came to the point where it was to die.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.killing"])
        mine, its = context.Pipe(duplex=False)
        common = (str(self.path),)
        process = (
            context.Process(target=only_open, args=(*common, death, its))
            if opening
            else context.Process(
                target=work, args=(*common, seed, dict(self.blocks), death, plan, its)
            )
        )
        process.start()
        its.close()
        last, at_its_point = "nothing", False
        until: float | None = time.monotonic() + HANG_SECONDS
        try:
            while True:
                left = None if until is None else max(0.0, until - time.monotonic())
                if not mine.poll(left):
                    break
                message = mine.recv()
                if message == "opened":
                    until = time.monotonic() + death.seconds
                elif isinstance(message, Change):
                    self.doubtful = message
                elif message == "committed" and self.doubtful is not None:
                    self._apply(self.doubtful)
                    self.doubtful = None
                    continue
                last = str(message)
        except EOFError:
            at_its_point = True  # it died by itself
        process.kill()
        process.join()
        # What it told before it died may still be in the pipe.
        with contextlib.suppress(EOFError, OSError):
            while mine.poll(0):
                message = mine.recv()
                if isinstance(message, Change):
                    self.doubtful = message
                elif message == "committed" and self.doubtful is not None:
                    self._apply(self.doubtful)
                    self.doubtful = None
        if process.exitcode != -signal.SIGKILL:
            raise Damage(f"the child ended by {process.exitcode}, after: {last}")
        return last, at_its_point

    def check_rows(self, con: duckdb.DuckDBPyConnection) -> None:
        """Compare the rows with what was committed.

        Raises:
            Damage: a committed row is missing or another, or a change came in part.
        """
        found = dict(
            (first, (count, version))
            for first, count, version in con.execute(
                "SELECT block, count(*), min(version) FROM "
                "(SELECT max(b.first) AS block, any_value(version) AS version "
                "FROM items JOIN (SELECT unnest($firsts::BIGINT[]) AS first) b "
                "ON b.first <= id GROUP BY id, items.rowid) GROUP BY block",
                {"firsts": self._firsts()},
            ).fetchall()
        )
        wanted = {first: block for first, block in self.blocks.items() if block[1]}
        if self.doubtful is not None and found != wanted:
            self._apply(self.doubtful)
            wanted = {first: block for first, block in self.blocks.items() if block[1]}
        self.doubtful = None
        if found != wanted:
            raise Damage(f"rows {found} are there, not {wanted}")
        for first, (count, version) in list(wanted.items())[-3:]:
            there = con.execute(
                "SELECT embedding FROM items WHERE id BETWEEN ? AND ? ORDER BY id",
                [first, first + count - 1],
            ).fetchall()
            rows = vectors_of(first, count, version)["embedding"].to_pylist()
            if [list(row[0]) for row in there] != rows:
                raise Damage(f"the vectors of rows from {first} are others")

    def check_files(self, con: duckdb.DuckDBPyConnection) -> None:
        """Compare the files with the catalog.

        Raises:
            Damage: a file is there without a row, or a row without a whole file.
        """
        schemas = con.execute("SELECT schema_name FROM duckdb_schemas()").fetchall()
        named: set[str] = set()
        if ("duckvec",) in schemas:
            rows = con.execute(
                "SELECT unnest([file, map_file]) FROM duckvec.segments"
            ).fetchall()
            named = {row[0] for row in rows}
        folder = paths.artifact_folder(str(self.path), None)
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if there != named:
            raise Damage(f"files {there - named} stayed, {named - there} are missing")
        for state in duckvec.load(con)._instance.databases.values():
            for index in state.indexes.values():
                for segment in index.segments:
                    segment.read_map()
                    segment.index()

    def check_searches(
        self, con: duckdb.DuckDBPyConnection, chance: random.Random, count: int
    ) -> int:
        """Compare searches with exact SQL; return how many were.

        Raises:
            Damage: they differ.
        """
        [indexed] = con.execute(
            "SELECT any_value(index_type), coalesce(any_value(metric), 'L2') "
            "FROM vector_indexes()"
        ).fetchall()
        kind, metric = indexed
        exhaustive = kind is None or kind in EXHAUSTIVE
        for _ in range(count):
            query = [float(np.float32(chance.gauss(0, 1))) for _ in range(DIMENSION)]
            k = chance.choice([1, 10, 300])
            named = {"q": query, "p": EXHAUSTIVE.get(kind, {}) or None, "k": k}
            found = con.execute(
                "SELECT id, distance FROM vector_search('items', $q, $k, params := $p)",
                named,
            ).fetchall()
            wanted = con.execute(
                f"SELECT array_{FUNCTIONS[metric]}(embedding, $q::FLOAT[{DIMENSION}]) "
                "AS d, id FROM items ORDER BY d LIMIT $k",
                {"q": query, "k": k},
            ).fetchall()
            distances = [distance for _, distance in found]
            if len(found) != len(wanted):
                raise Damage(f"{kind}: {len(found)} rows are found, not {len(wanted)}")
            same = np.allclose(distances, [row[0] for row in wanted], 1e-4, 1e-4)
            if exhaustive and not same:
                raise Damage(f"{kind} {metric}: {distances}, not {wanted}")
            if len({id for id, _ in found}) != len(found):
                raise Damage(f"{kind}: a row is found twice")
        return count

    def _apply(self, change: Change) -> None:
        self.blocks[change.first] = (change.count, change.version)

    def _firsts(self) -> list[int]:
        pending = [] if self.doubtful is None else [self.doubtful.first]
        return sorted({*self.blocks, *pending})


def new_victim(path: Path) -> Victim:
    """Make an empty table, with nothing of ours in the database."""
    con = duckdb.connect(str(path))
    con.execute(
        f"CREATE TABLE items (id BIGINT, version BIGINT, embedding FLOAT[{DIMENSION}])"
    )
    con.close()
    return Victim(path)


def check(victim: Victim, chance: random.Random, counts: Counter[str]) -> None:
    """Open a database after a kill, and check all that was promised.

    Raises:
        Damage: a promise was broken.
    """
    if chance.random() < 0.5:
        con = duckdb.connect(str(victim.path))
        victim.check_rows(con)
        if chance.random() < 0.5:  # and rows move
            con.execute("CHECKPOINT")
        con.close()
        counts["opened without duckvec first"] += 1
    con = duckvec.connect(str(victim.path), background=False, config=CONFIG)
    try:
        victim.check_rows(con)
        victim.check_files(con)
        counts["searches compared"] += victim.check_searches(con, chance, 2)
        duckvec.load(con).wait(HANG_SECONDS)
        counts["searches compared"] += victim.check_searches(con, chance, 3)
        broken = con.execute(
            "SELECT state, last_error FROM vector_indexes() "
            "WHERE state <> 'ready' OR last_error IS NOT NULL"
        ).fetchall()
        if broken:
            raise Damage(f"an index is {broken}")
        if chance.random() < 0.3:
            create(con, chance.choice(list(EXHAUSTIVE)))
            counts["searches compared"] += victim.check_searches(con, chance, 1)
            victim.check_files(con)
            counts["builds afterwards"] += 1
    finally:
        con.close()
        let_background_end()


def kill_again_and_again(
    folder: Path, seed: int, until: Callable[[int], bool]
) -> Counter[str]:
    """Kill children until enough were; return what was done.

    Raises:
        Damage: a promise was broken; the database stays in the folder.
    """
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    victim, number = new_victim(folder / "victim-0.db"), 0
    while not until(counts["kills"]):
        if number % ROUNDS_OF_ONE_DATABASE == ROUNDS_OF_ONE_DATABASE - 1:
            remove(victim)
            victim = new_victim(folder / f"victim-{number}.db")
        number += 1
        death = draw_death(chance)
        try:
            last, at_its_point = victim.kill_a_child(chance.randrange(1 << 30), death)
            counts["kills"] += 1
            if at_its_point:
                counts[f"killed at the point: {death.point}"] += 1
            counts[f"killed during: {last.split('(')[0]}"] += 1
            while chance.random() < 0.2:
                again = draw_death(chance)
                victim.kill_a_child(0, again, opening=True)
                counts["kills"] += 1
                counts["killed while opening"] += 1
            check(victim, chance, counts)
        except Exception as error:
            raise Damage(
                f"seed {seed}, round {number}, {death}, {victim.path}: "
                f"{type(error).__name__}: {error}"
            ) from error
    remove(victim)
    return counts


def remove(victim: Victim) -> None:
    """Delete a database and its artifacts."""
    shutil.rmtree(paths.artifact_folder(str(victim.path), None), ignore_errors=True)
    for ending in ("", ".wal"):
        victim.path.with_name(victim.path.name + ending).unlink(missing_ok=True)


def soak_kills(seed: int, seconds: float, folder: Path) -> bool:
    """Kill for a time; return whether every promise was kept."""
    until = time.monotonic() + seconds
    place = folder / "kills"
    place.mkdir()
    print(f"Kills, seed {seed}:")
    try:
        counts = kill_again_and_again(
            place, seed, lambda kills: time.monotonic() > until
        )
    except Damage as damage:
        print(damage, flush=True)
        return False
    print("\n".join(f"{count:,} {what}" for what, count in sorted(counts.items())))
    print("0 rows lost, 0 files left", flush=True)
    return True
