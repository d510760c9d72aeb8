"""Artifacts that were altered at random: noticed before a library reads them.

A round opens a copy of one prepared database, with an index of each type in two
segments, whose files were altered before or while it is open. It runs in a child
process, because a library that reads such a file may end it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np

import duckvec
from tests.data import (
    EXHAUSTIVE,
    PARAMS,
    arrow_table,
    assert_same,
    clustered,
    create,
    exact,
    search,
)
from tests.upkeep import impatient

VECTORS = clustered(800, 16)
DATABASE = "altered.db"
FOLDER = DATABASE + ".duckvec"
CHILD_SECONDS = 60.0
MENDED_EVERY = 16


class AlteredError(AssertionError):
    """Raised when an altered artifact was not noticed, or ended the process."""


Alteration = Callable[[list[Path], np.random.Generator], None]
"""Alters the first of some files in place, perhaps by what is in the others."""


def flip_bits(files: list[Path], rng: np.random.Generator) -> None:
    data = bytearray(files[0].read_bytes())
    places = rng.choice(len(data), int(rng.integers(1, 9)), replace=False)
    for place in places:
        data[place] ^= int(rng.integers(1, 256))
    _write(files[0], bytes(data))


def flip_in_the_head(files: list[Path], rng: np.random.Generator) -> None:
    """Sizes and counts of a library's format are there."""
    data = bytearray(files[0].read_bytes())
    place = int(rng.integers(0, min(200, len(data))))
    data[place] ^= int(rng.integers(1, 256))
    _write(files[0], bytes(data))


def overwrite(files: list[Path], rng: np.random.Generator) -> None:
    data = bytearray(files[0].read_bytes())
    start = int(rng.integers(0, len(data)))
    there = data[start : start + 4096]
    data[start : start + len(there)] = bytes(b ^ 0xA5 for b in there)
    _write(files[0], bytes(data))


def truncate(files: list[Path], rng: np.random.Generator) -> None:
    os.truncate(files[0], int(rng.integers(0, files[0].stat().st_size)))


def cut_a_little(files: list[Path], rng: np.random.Generator) -> None:
    os.truncate(files[0], files[0].stat().st_size - int(rng.integers(1, 65)))


def empty(files: list[Path], rng: np.random.Generator) -> None:
    os.truncate(files[0], 0)


def grow(files: list[Path], rng: np.random.Generator) -> None:
    with files[0].open("ab") as file:
        file.write(rng.bytes(int(rng.integers(1, 100_000))))


def move_bytes(files: list[Path], rng: np.random.Generator) -> None:
    """Leave the size as it is, and the bytes but for their order."""
    data = files[0].read_bytes()
    at = int(rng.integers(1, len(data)))
    moved = data[at:] + data[:at]
    _write(files[0], moved if moved != data else bytes([data[0] ^ 1]) + data[1:])


def take_another(files: list[Path], rng: np.random.Generator) -> None:
    """Put a whole file of another segment, type or kind in its place."""
    own = files[0].read_bytes()
    others = [data for file in files[1:] if (data := file.read_bytes()) != own]
    _write(files[0], others[int(rng.integers(0, len(others)))])


def _write(file: Path, data: bytes) -> None:
    """Write into the file that is there, as `cp` does."""
    with file.open("r+b") as out:
        out.write(data)
        out.truncate(len(data))


ALTERATIONS: dict[str, Alteration] = {
    each.__name__: each
    for each in (
        flip_bits,
        flip_in_the_head,
        overwrite,
        truncate,
        cut_a_little,
        empty,
        grow,
        move_bytes,
        take_another,
    )
}


def prepare(folder: Path) -> None:
    """Write the database whose artifacts are altered: a table for each type."""
    con = duckvec.connect(str(folder / DATABASE), background=False)
    with impatient(200):
        for index_type in PARAMS:
            con.execute(f"CREATE TABLE {index_type} (id BIGINT, embedding FLOAT[16])")
            create(con, index_type, index_type)
            for start, stop in ((0, 500), (500, 800)):
                data = arrow_table(VECTORS.rows[start:stop], start)
                con.execute(f"INSERT INTO {index_type} SELECT id, vector FROM data")
                del data
                duckvec.load(con).wait()
    con.close()


def files_by_type(con: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """Return the names of the files of each type's index."""
    found: dict[str, list[str]] = {}
    for index_type, file, map_file in con.execute(
        "SELECT index_type, file, map_file FROM duckvec.segments ORDER BY ALL"
    ).fetchall():
        found.setdefault(index_type, []).extend([file, map_file])
    return found


class Round:
    """A copy of the prepared database whose artifacts are altered and looked at."""

    def __init__(self, prepared: Path, work: Path, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.seed = seed
        self.work = work
        self.counts: Counter[str] = Counter()
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(prepared, work)

    def run(self) -> Counter[str]:
        """Alter a file of each type's index, and look whether that is noticed."""
        path = self.work / DATABASE
        while_open = bool(self.rng.integers(0, 3) == 0)
        if not while_open:
            plain = duckdb.connect(str(path))
            files = files_by_type(plain)
            plain.close()
            self._alter(files)
        con = duckvec.connect(str(path), background=False)
        try:
            if while_open:
                duckvec.load(con).wait()
                for index_type in PARAMS:  # graphs and trees need not find all
                    search(con, VECTORS.query(0), collection=index_type)
                self._alter(files_by_type(con), maps=False)
            self._look(con)
            if self.seed % MENDED_EVERY == 0:
                self._mend(con)
        finally:
            con.close()
        return self.counts

    def _alter(self, files: dict[str, list[str]], *, maps: bool = True) -> None:
        folder = self.work / FOLDER
        everything = [folder / name for names in files.values() for name in names]
        for index_type, names in files.items():
            mine = [folder / name for name in names if maps or name.endswith(".index")]
            target = mine[int(self.rng.integers(0, len(mine)))]
            others = [file for file in (*mine, *everything) if file != target]
            name = list(ALTERATIONS)[int(self.rng.integers(0, len(ALTERATIONS)))]
            case = {"type": index_type, "file": target.suffix, "alteration": name}
            print(json.dumps({"seed": self.seed, **case}), flush=True)
            ALTERATIONS[name]([target, *others], self.rng)
            self.counts["altered artifacts"] += 1
            self.counts[f"altered artifacts: {name}"] += 1

    def _look(self, con: duckdb.DuckDBPyConnection) -> None:
        """Look for right answers, and for a state that says what is wrong."""
        for index_type in PARAMS:
            self._compare(con, index_type)
        rows = con.execute("FROM vector_indexes() SELECT index_type, state, last_error")
        for index_type, state, error in rows.fetchall():
            if state != "broken" or "build the index again" not in (error or ""):
                raise AlteredError(f"{index_type} is {state}: {error}")

    def _compare(self, con: duckdb.DuckDBPyConnection, index_type: str) -> None:
        query = VECTORS.query(int(self.rng.integers(0, len(VECTORS.queries))))
        found = search(
            con, query, collection=index_type, params=EXHAUSTIVE.get(index_type)
        )
        assert_same(found, exact(con, query, source=index_type))
        self.counts["searches compared"] += 1

    def _mend(self, con: duckdb.DuckDBPyConnection) -> None:
        """Build all indexes again: they serve, and no old file stays."""
        for index_type in PARAMS:
            create(con, index_type, index_type)
        rows = con.execute("SELECT DISTINCT state, last_error FROM vector_indexes()")
        if (found := rows.fetchall()) != [("ready", None)]:
            raise AlteredError(f"built again, the indexes are {found}")
        files = len(list((self.work / FOLDER).iterdir()))
        if files != 2 * len(PARAMS):
            raise AlteredError(f"built again, there are {files} files")
        self.counts["indexes built again"] += len(PARAMS)


def run_altered(folder: Path, seed: int, seconds: float) -> Counter[str]:
    """Alter artifacts in child processes for a time; return what was done.

    Raises:
        AlteredError: something was not noticed, or a process ended; the text tells
            the case.
    """
    prepared = folder / "prepared"
    prepared.mkdir(parents=True)
    prepare(prepared)
    until = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    while (left := until - time.monotonic()) > 0:
        words = [sys.executable, "-X", "faulthandler", "-m", "tests.altering"]
        order = [str(prepared), str(folder / "work"), str(seed)]
        child = subprocess.run(
            [*words, *order, str(min(left, CHILD_SECONDS))],
            capture_output=True,
            text=True,
            timeout=10 * CHILD_SECONDS,
        )
        lines = child.stdout.splitlines()
        last = json.loads(lines[-1]) if lines else {}
        if child.returncode or "counts" not in last:
            raise AlteredError(
                f"process ended with {child.returncode} after {last}\n{child.stderr}"
            )
        counts.update(last["counts"])
        seed = last["next"]
    return counts


def main() -> None:
    """Run rounds for some seconds, and print each case before it is tried."""
    parser = argparse.ArgumentParser(prog="python -m tests.altering")
    parser.add_argument("prepared", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("seconds", type=float)
    order = parser.parse_args()
    logging.getLogger("duckvec").setLevel(logging.CRITICAL)
    until = time.monotonic() + order.seconds
    counts: Counter[str] = Counter()
    seed = order.seed
    while not counts or time.monotonic() < until:
        counts += Round(order.prepared, order.work, seed).run()
        seed += 1
    print(json.dumps({"counts": counts, "next": seed}), flush=True)


if __name__ == "__main__":
    main()
