"""Processes that work on a database and are killed: nothing is lost, nothing stays.

A child inserts, deletes, builds, seals, merges, drops and checkpoints (dying.py), and
dies by SIGKILL: at a random time, or at a named point, before or after a step of ours.
The parent then opens the database and compares it with what was committed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np

import duckvec
from duckvec import paths
from tests.data import EXHAUSTIVE, FUNCTIONS, create
from tests.dying import (
    CONFIG,
    DIMENSION,
    HANG_SECONDS,
    Change,
    Death,
    NewIndex,
    draw_death,
    only_open,
    vectors_of,
    work,
)
from tests.upkeep import let_background_end

ROUNDS_OF_ONE_DATABASE = 12


class Damage(AssertionError):
    """Raised when a database is not what was committed, or something stayed behind."""


@dataclass
class Victim:
    """A database whose processes are killed, and what was committed to it.

    Attributes:
        path: the database file.
        blocks: number of rows and version of each block of rows, by its first id;
            version 0: deleted.
        index: the type of the index; None: there never was one.
        doubtful: a change that may have been committed.
    """

    path: Path
    blocks: dict[int, tuple[int, int]] = field(default_factory=dict)
    index: str | None = None
    doubtful: Change | NewIndex | None = None

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
        context.set_forkserver_preload(["tests.dying"])
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
                elif isinstance(message, Change | NewIndex):
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
                if isinstance(message, Change | NewIndex):
                    self.doubtful = message
                elif message == "committed" and self.doubtful is not None:
                    self._apply(self.doubtful)
                    self.doubtful = None
        if process.exitcode != -signal.SIGKILL:
            raise Damage(f"the child ended by {process.exitcode}, after: {last}")
        return last, at_its_point

    def work_here(self, con: duckdb.DuckDBPyConnection, change: Change) -> None:
        """Commit a change from this process."""
        change.run(con)
        self._apply(change)

    def check_rows(self, con: duckdb.DuckDBPyConnection) -> None:
        """Compare the rows with what was committed.

        Raises:
            Damage: a committed row is missing or another, or a change came in part,
                or the index is not that which was created last.
        """
        self._check_index(con)
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
        if isinstance(self.doubtful, Change) and found != wanted:
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

    def _check_index(self, con: duckdb.DuckDBPyConnection) -> None:
        schemas = con.execute("SELECT schema_name FROM duckdb_schemas()").fetchall()
        found = None
        if ("duckvec",) in schemas:
            rows = con.execute("SELECT index_type FROM duckvec.indexes").fetchall()
            found = rows[0][0] if rows else None
        if isinstance(self.doubtful, NewIndex) and found == self.doubtful.kind:
            self.index = found
        # A drop where there was no index leaves no row.
        if found != self.index and (found, self.index) != (None, "FLAT"):
            raise Damage(f"the index is {found}, not {self.index}")

    def _apply(self, change: Change | NewIndex) -> None:
        if isinstance(change, NewIndex):
            self.index = change.kind
        else:
            self.blocks[change.first] = (change.count, change.version)

    def _firsts(self) -> list[int]:
        doubtful = self.doubtful
        pending = [doubtful.first] if isinstance(doubtful, Change) else []
        return sorted({*self.blocks, *pending})


def new_victim(path: Path) -> Victim:
    """Make an empty table, with nothing of ours in the database."""
    con = duckdb.connect(str(path))
    con.execute(
        f"CREATE TABLE items (id BIGINT, version BIGINT, embedding FLOAT[{DIMENSION}])"
    )
    con.close()
    return Victim(path)


def indexed_victim(path: Path) -> Victim:
    """Make a table with an index and a tail."""
    victim = new_victim(path)
    con = duckvec.connect(str(path), background=False, config=CONFIG)
    victim.work_here(con, Change(0, 250, 1))
    create(con, "IVF_FLAT")
    victim.index = "IVF_FLAT"
    victim.work_here(con, Change(250, 40, 1))
    con.close()
    let_background_end()
    return victim


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
            victim.index = chance.choice(list(EXHAUSTIVE))
            create(con, victim.index)
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
