"""A process that works on a database, tells of it, and dies at a named point.

What it is about to do and what it has committed goes to its parent through a pipe.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

import duckvec
from duckvec import builder, catalog, guards, leftovers, paths, rewriting, segments
from duckvec.states import DatabaseState, IndexState
from duckvec.writer import SegmentWriter
from tests.data import FUNCTIONS, PARAMS, create
from tests.upkeep import impatient

DIMENSION = 8
LONGEST_SECONDS = 1.0
HANG_SECONDS = 60
CONFIG = {"threads": 1}  # libraries with more of them wait for each other busily
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


@dataclass(frozen=True)
class NewIndex:
    """A change of the index to another type; FLAT is a drop, too."""

    kind: str


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
ALL_POINTS = ("search", "change", "compact", "create", "change", "wait", "drop")


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
    if action in ("create", "drop"):
        kind = chance.choice(list(PARAMS)) if action == "create" else "FLAT"
        pipe.send(NewIndex(kind))
        if action == "create":
            create(con, kind, metric=chance.choice(list(FUNCTIONS)))
        else:
            con.execute("CALL drop_vector_index('items')").fetchall()
        pipe.send("committed")
        return
    pipe.send(action)
    if action == "compact":
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
