"""What is done with an index while calls on its files fail, and what must hold then."""

from __future__ import annotations

import errno
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest

import duckvec
from duckvec import backoff, policy
from tests.data import EXHAUSTIVE, assert_same, clustered, create, exact, search
from tests.faults import ERRORS, Disk, from_nth, nth, unwatched, watched
from tests.upkeep import create_empty, info, insert

FIRST = 150
ROWS = clustered(FIRST + 100, 4)
Work = Callable[[duckdb.DuckDBPyConnection], object]


def compact(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("CALL vector_compact('items')").fetchall()


def drop(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("CALL drop_vector_index('items')").fetchall()


def seal(con: duckdb.DuckDBPyConnection) -> None:
    duckvec.load(con).wait(60)


@dataclass(frozen=True)
class Case:
    """Something that is done on disk, and what is there before.

    Attributes:
        work: what is done, on a loaded connection.
        index_type: of the index before; None: there is none.
        tail: rows that are not indexed yet.
        after: the type of the index once it was done.
        raises: whether a failure comes as an error of the call.
    """

    work: Work
    index_type: str | None
    tail: int
    after: str
    raises: bool = True


CASES = {
    "the first build": Case(lambda con: create(con, "FLAT"), None, 0, "FLAT"),
    "a build by hnswlib": Case(lambda con: create(con, "HNSW"), "FLAT", 9, "HNSW"),
    "a build by annoy": Case(lambda con: create(con, "ANNOY"), "FLAT", 9, "ANNOY"),
    "a replacement": Case(lambda con: create(con, "FLAT"), "IVF_FLAT", 9, "FLAT"),
    "a seal": Case(seal, "FLAT", 90, "FLAT", raises=False),
    "a compaction": Case(compact, "FLAT", 9, "FLAT"),
    "a drop": Case(drop, "IVF_FLAT", 9, "FLAT"),
}


class Prepared:
    """The databases that cases begin with, made once each in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[str | None, int], Path] = {}

    def make(self, case: Case) -> Path:
        """Return the folder of a closed database as a case begins with it."""
        key = (case.index_type, case.tail)
        if key not in self._made:
            folder = self._folder / f"prepared-{len(self._made)}"
            folder.mkdir()
            con = duckvec.connect(str(folder / "test.db"), background=False)
            create_empty(con, 4)
            insert(con, ROWS, 0, FIRST)
            if case.index_type:
                create(con, case.index_type)
            insert(con, ROWS, FIRST, FIRST + case.tail)
            con.close()
            self._made[key] = folder
        return self._made[key]


@contextmanager
def small_and_quick() -> Iterator[None]:
    """Seal small tails, and delete again at once what could not be deleted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backoff, "RETRY_SECONDS", 0.0)
        patch.setattr(policy, "MINIMUM_SEGMENT_ROWS", 80)
        yield


def opened(source: Path, place: Path) -> duckdb.DuckDBPyConnection:
    """Return a connection to a copy of a prepared database, with its index proven."""
    shutil.copytree(source, place)
    con = duckvec.connect(str(place / "test.db"), background=False)
    search(con, ROWS.query(0))
    return con


def check_searches(con: duckdb.DuckDBPyConnection, rows: int) -> None:
    """Compare searches with exact SQL, and count the rows."""
    assert con.execute("SELECT count(*) FROM items").fetchall() == [(rows,)]
    kinds = [row[0] for row in con.execute(INDEX_TYPES).fetchall()]
    query = ROWS.query(1)
    if not kinds or kinds[0] in EXHAUSTIVE:
        params = EXHAUSTIVE[kinds[0]] if kinds else {}
        assert_same(search(con, query, params=params), exact(con, query))
    else:
        assert len(search(con, query)) == 10


INDEX_TYPES = "SELECT index_type FROM vector_indexes()"
NAMED = "SELECT unnest([file, map_file]) FROM duckvec.segments"


def files(con: duckdb.DuckDBPyConnection, place: Path) -> tuple[set[str], set[str]]:
    """Return the files that are there, and those that the catalog names."""
    folder = place / "test.db.duckvec"
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    schemas = con.execute("SELECT schema_name FROM duckdb_schemas()").fetchall()
    if ("duckvec",) not in schemas:
        return there, set()
    return there, {row[0] for row in con.execute(NAMED).fetchall()}


def route(con: duckdb.DuckDBPyConnection, query: list[float] | None = None) -> str:
    """Return how a search is answered."""
    text = "SELECT route FROM vector_explain('items', $q)"
    [(found,)] = con.execute(text, {"q": query or ROWS.query(2)}).fetchall()
    return str(found)


def calls_of(case: Case, source: Path, place: Path) -> list[str]:
    """Return the calls that a case makes where none fails."""
    con = opened(source, place)
    with watched(place / "test.db.duckvec") as disk:
        case.work(con)
    con.close()
    return list(disk.calls)


def check_a_failure(case: Case, con: duckdb.DuckDBPyConnection, place: Path) -> None:
    """Check what holds while a fault lasts, right after it was met."""
    rows = FIRST + case.tail
    check_searches(con, rows)
    con.execute("BEGIN")
    con.execute("INSERT INTO items SELECT 5000, 1, embedding FROM items LIMIT 1")
    con.execute("ROLLBACK")
    with unwatched():
        there, named = files(con, place)
    assert named <= there


def check_recovery(case: Case, con: duckdb.DuckDBPyConnection, place: Path) -> None:
    """Check that all works once the fault is over, and that nothing stayed behind."""
    case.work(con)
    duckvec.load(con).wait(60)  # which deletes what could not be deleted, as the watch
    check_searches(con, FIRST + case.tail)
    there, named = files(con, place)
    assert there == named
    row = info(con)
    assert (row["index_type"], row["state"]) == (case.after, "ready")
    assert row["last_error"] is None
    con.close()


def run_case(
    case: Case,
    source: Path,
    place: Path,
    fails: Callable[[int, str], bool],
    error: int,
    call: str,
) -> int:
    """Run a case in which calls fail; return how many did.

    Args:
        case: what is done.
        source: the database that it begins with.
        place: where a copy of it goes, which is deleted at the end.
        fails: which calls fail.
        error: the number of the error that they meet.
        call: the name of the first one.
    """
    con = opened(source, place)
    before = None if case.index_type is None else route(con)
    with watched(place / "test.db.duckvec", fails, error) as disk:
        told = attempt(case, con)
        assert disk.failed
        check_told(case, con, disk, call, told)
        check_a_failure(case, con, place)
        if told and before:
            assert route(con) == before == "index"
    check_recovery(case, con, place)
    shutil.rmtree(place)
    return len(disk.failed)


def attempt(case: Case, con: duckdb.DuckDBPyConnection) -> str | None:
    """Do what a case does; return the sentence of its error."""
    try:
        case.work(con)
    except duckdb.Error as error:
        return str(error)
    return None


def check_told(
    case: Case,
    con: duckdb.DuckDBPyConnection,
    disk: Disk,
    call: str,
    told: str | None,
) -> None:
    """Check that a failure came as one sentence, unless only a deletion failed."""
    if call == "remove" or call == "list":
        assert told is None
        return
    if not case.raises:
        assert told is None
        told = info(con)["last_error"]
    assert told is not None, disk.calls
    assert "cannot be written" in told
    assert "load(con, directory=" in told
    assert "Traceback" not in told and "\n" not in told.strip()


def soak_faults(seed: int, seconds: float, folder: Path) -> bool:
    """Let random calls fail for a time; return whether all promises held."""
    chance = random.Random(seed)
    until = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    place = folder / "faults"
    place.mkdir()
    prepared = Prepared(place)
    failure = None
    with small_and_quick():
        known: dict[str, list[str]] = {}
        while time.monotonic() < until and failure is None:
            name = chance.choice(list(CASES))
            case = CASES[name]
            source = prepared.make(case)
            if name not in known:
                known[name] = calls_of(case, source, place / f"counted {name}")
            number = chance.randrange(len(known[name]))
            lasting = chance.random() < 0.5
            error = chance.choice(ERRORS)
            call = known[name][number]
            fails = from_nth(number) if lasting else nth(number)
            try:
                met = run_case(case, source, place / "now", fails, error, call)
            except Exception as problem:
                failure = (
                    f"{name}: {'from ' if lasting else ''}call {number} ({call}) met "
                    f"{errno.errorcode[error]}: {type(problem).__name__}: {problem}"
                )
            else:
                counts[f"faults during {name}"] += met
                counts["faults"] += met
                counts["operations with faults"] += 1
    print(f"Faults of the file system, seed {seed}:")
    print("\n".join(f"{count:,} {what}" for what, count in sorted(counts.items())))
    print(failure or "0 failures", flush=True)
    return failure is None
