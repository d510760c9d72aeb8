"""What is known of one loaded connection, one attached database and one index.

The fields change under the lock of the instance that holds them.
"""

from __future__ import annotations

import collections
import itertools
import math
import os
import threading
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from duckvec.calls import Calls
from duckvec.catalog import CATALOG_VERSION, IndexRow
from duckvec.errors import ClosedError
from duckvec.keeper import Task
from duckvec.segments import Segment
from duckvec.selections import Selections
from duckvec.tables import Table
from duckvec.traces import Traces
from duckvec.tracking import Generation, Guard, Mark

# What a tiny commit of ours adds to the log: 135 bytes on DuckDB 2.0, 132 on 1.5, more
# in an encrypted one. Another commit beside it adds 50 more at least.
COMMIT_BYTES, COMMIT_SLACK_BYTES = 134, 8
# So long after the last change of its file a commit is visible that was on disk.
SETTLED_SECONDS = 2.0
# How often a connection is asked whether it is open, where nothing tells otherwise.
ASK_SECONDS = 1.0
# All searches of one statement are planned within this time.
PLANNING_SECONDS = 30.0

_session_numbers = itertools.count(1)

ChangeSign = tuple[tuple[int, int], tuple[int, int]]
"""Size in bytes and time in nanoseconds of a database file and of its log."""


class Session:
    """One loaded connection, known by a number that its macros carry.

    Only a weak reference to the connection is held, so that letting go of it closes
    it; its guards are cursors of it, and end with it. Python's default connection,
    which nothing but its end closes, is `kept` once nobody else held it.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, number: int | None = None
    ) -> None:
        self.number = next(_session_numbers) if number is None else number
        self.kept: duckdb.DuckDBPyConnection | None = None
        self.connection = weakref.ref(connection)
        self.guards: dict[int, Guard] = {}
        self.selections = Selections()
        self.traces = Traces()
        self.calls = Calls()
        # How many guards of each database ended before they could safely.
        self.losses: collections.Counter[int] = collections.Counter()
        self._asked_at = time.monotonic()
        # What plans of this connection name, and since when: a statement that runs for
        # long finds it, however often another takes its place meanwhile.
        self._planned: tuple[tuple[float, Generation, IndexState], ...] = ()
        self._relied_at = 0.0

    def rely_on(self, generation: Generation, index: IndexState) -> None:
        """Keep a generation that a plan names while its statement may run.

        A connection plans its next statement after that; then those go that were
        planned long before.
        """
        now = self._relied_at = time.monotonic()
        others = [
            each
            for each in self._planned
            if each[1] is not generation and now - each[0] < PLANNING_SECONDS
        ]
        self._planned = (*others, (now, generation, index))

    def find_generation(self, number: int) -> tuple[Generation, IndexState] | None:
        """Return a generation that a plan of this connection names, if it is good."""
        self._relied_at = time.monotonic()
        for _, generation, index in self._planned:
            if generation.number == number > index.forgotten:
                return generation, index
        return None

    def let_go(self, before: float) -> None:
        """Keep no generation where no search ran since a time."""
        if self._relied_at < before:
            self._planned = ()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Return a new cursor of the connection.

        Raises:
            ClosedError: the connection is closed or gone.
        """
        connection = self.connection()
        if connection is not None:
            try:
                return connection.cursor()
            except duckdb.ConnectionException:
                pass
        raise ClosedError("the connection is closed; connect and load again")

    @property
    def open(self) -> bool:
        """Whether the connection is still open."""
        try:
            self.cursor().close()
        except ClosedError:
            return False
        return True

    def seems_closed(self, log_bytes: int, now: float) -> bool:
        """Tell whether the connection was closed, which takes the log along.

        To ask it, one has to hold it, and its file would stay open if it were let go of
        just then: so it is asked only where there is no log, and now and then.

        Args:
            log_bytes: length of the log of a database that it searched.
            now: the time on the monotonic clock.
        """
        if log_bytes and now - self._asked_at < ASK_SECONDS:
            return False
        self._asked_at = now
        return not self.open


@dataclass(frozen=True)
class StoredPlan:
    """A macro that holds the text of a search.

    Attributes:
        path: its quoted name.
        transaction: callers whose transaction has a higher number see it.
    """

    path: str
    transaction: int


@dataclass
class IndexState:
    """One indexed column as this process knows it; fields change under the lock.

    Attributes:
        row: the catalog row.
        segments: those of the catalog, opened or not.
        generation: what new plans may use, once proven.
        extended: the current one with rows of its tail, held in memory.
        unheld: rows of the tail that could not be held when that was tried last.
        forgotten: no generation with a lower number may be used.
        last_error: what the background failed at last.
        fault: why its catalog rows cannot be used; searches are exact until it is
            created anew.
        unusable: the segments of such rows, never opened; their files go with them.
        failed: chain and table identity for which a proof failed, so that searches do
            not ask for it again and again.
        prove_again_at: when they may all the same, on the monotonic clock.
        surplus_sign: the database's change sign when `surplus` was counted.
        surplus_at: when that was, on the monotonic clock.
        surplus: indexed rows that are gone.
        tail_rows: rows above the watermark, counted then.
        held_rows: how many of them were among those held in memory, or passed over
            there.
        held_gone: rows up to the end of those that are gone since they were held.
        looks: how often a row was looked at to see whether it still has its vector.
        looking: the task that looked into its table last.
        witnessed: generation, extended one and change sign for which its table was
            looked into.
        seen: the table as it was found last, to know it again by its number; None
            where it was not there when the catalog was read.
        looked: once nothing certain was found of what became of its table: identity
            of the table that had its name then, () where none had.
        work: the task that writes segments for it now.
        failures: how often background work on it failed in a row.
        retry_at: when it may be tried again, on the monotonic clock.
        postponed_since: since when the rewriting of a segment gives way to searches.
        changing: held by background threads while they change or prove it; no query
            waits for it.
        changer: the task that holds it.
    """

    row: IndexRow
    segments: tuple[Segment, ...] = ()
    generation: Generation | None = None
    extended: Generation | None = None
    unheld: int = 0
    forgotten: int = 0
    last_error: str | None = None
    fault: str | None = None
    unusable: tuple[Segment, ...] = ()
    failed: tuple[int, tuple[int, str] | None] | None = None
    prove_again_at: float = math.inf
    surplus_sign: object = None
    surplus_at: float = -math.inf
    surplus: int = 0
    tail_rows: int = 0
    held_rows: int = 0
    held_gone: int = 0
    witnessed: tuple[tuple[int, int | None], object] | None = None
    looks: int = 0
    looking: Task | None = None
    seen: Table | None = None
    looked: tuple[int, str] | tuple[()] | None = None
    work: Task | None = None
    failures: int = 0
    retry_at: float = 0.0
    postponed_since: float | None = None
    changing: threading.Lock = field(default_factory=threading.Lock)
    changer: Task | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is to be indexed: it was dropped, or its rows are wrong."""
        return self.row.dropped or self.fault is not None

    def set_fault(self, fault: str) -> None:
        """Use nothing of what the catalog says of its segments."""
        self.fault, self.last_error = fault, fault
        self.unusable, self.segments = self.segments, ()

    def is_for(self, table: Table) -> bool:
        """Tell whether the current generation was made from this very table."""
        generation = self.generation
        return generation is not None and generation.table_identity == table.identity

    def fits(self, table: Table) -> bool:
        """Tell whether any row of this table is known to be in the index."""
        generation = self.generation
        return self.is_for(table) and bool(generation and generation.entries)

    def cannot_be_proven(self, chain: int, identity: tuple[int, str] | None) -> bool:
        """Tell whether a proof failed, and trying it again is of no use yet."""
        given_up = self.failed == (chain, identity)
        return given_up and time.monotonic() < self.prove_again_at

    def succeeded(self) -> None:
        """Forget failures: background work on it went well, or it was made anew."""
        self.last_error = self.failed = self.fault = None
        self.unusable = ()
        self.failures, self.retry_at = 0, 0.0
        self.postponed_since = None

    def use(self, generation: Generation | None) -> None:
        """Make `generation` the one that new plans get; running ones keep theirs."""
        self.generation = generation
        self.extend(None)
        self.surplus = self.tail_rows = self.held_rows = self.unheld = 0

    def extend(self, generation: Generation | None) -> None:
        """Hold rows of the tail in memory, by a generation that extends the current."""
        self.extended = generation
        self.surplus_sign, self.surplus_at, self.held_gone = None, -math.inf, 0

    def forget(self) -> None:
        """Let no plan use any generation, not even one that is about to run."""
        self.use(None)
        self.forgotten = Generation.next_number()


@dataclass(frozen=True)
class Building:
    """An index that is being created: its row as far as it is known, and the task."""

    row: IndexRow
    task: Task


@dataclass
class DatabaseState:
    """One attached database: what it is, and its indexes where it has any.

    Attributes:
        name: what it is attached by, and oid its number in the instance.
        path: its file; None in memory.
        read_only: whether it is attached so.
        kind: its type, "duckdb" for DuckDB's own.
        encrypted: whether it is.
        attached: whether it came later than the instance's first, by ATTACH.
        has_catalog: whether the schema `duckvec` is there.
        catalog_version: the version that its catalog has, or will be created with.
        catalog_seals: where this process made the catalog, for each database by name:
            the number of a transaction that began after that.
        error: why its catalog cannot be used.
        folder: where its artifacts lie, once somebody asked.
        indexes: by catalog key.
        building: those that are being created, by catalog key.
        committing: held while the epoch is advanced; no query waits for it.
        commits: how often this process advanced the epoch.
        begun_commits: how often it began to.
        last_commit: which of those it finished last.
        epoch: the one that it committed last; None: the table has to be asked.
        changes: how often others were seen to have changed the database.
        mark: the last one taken.
        log_limit: bytes of its log from which on it is checkpointed.
        log_looked_at: when the length of its log was looked at, on the monotonic clock.
        counted: whether its tails were ever counted.
        counted_at: when they were, or the watch began, on the monotonic clock.
        counted_sign: its change sign then.
        searched_at: when a search by index was planned last, on the same clock.
        quiet_looks: how many looks in a row found nothing to do.
    """

    name: str
    oid: int
    path: str | None
    read_only: bool
    kind: str
    encrypted: bool
    attached: bool = False
    has_catalog: bool = False
    catalog_version: int = CATALOG_VERSION
    catalog_seals: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    folder: Path | None = None
    indexes: dict[tuple[str, str, str], IndexState] = field(default_factory=dict)
    building: dict[tuple[str, str, str], Building] = field(default_factory=dict)
    committing: threading.Lock = field(default_factory=threading.Lock)
    commits: int = 0
    begun_commits: int = 0
    last_commit: int = 0
    epoch: int | None = None
    changes: int = 0
    mark: Mark | None = None
    log_limit: int = 1 << 24
    log_looked_at: float = 0.0
    counted: bool = False
    counted_at: float = 0.0
    counted_sign: ChangeSign | None = None
    searched_at: float = -math.inf
    quiet_looks: int = 0
    _sign: ChangeSign | None = None
    _changed_at: float = 0.0
    _own_sign: ChangeSign | None = None
    _commit_bytes: int = COMMIT_BYTES
    _commit_bytes_seen: bool = False
    _last_added: int | None = None

    def change_sign(self) -> ChangeSign | None:
        """Return what changes with every commit that reaches the disk.

        Looks at the sizes and times of the database file and its log, and opens
        neither: closing a descriptor would drop DuckDB's lock. An in-memory database
        has no such sign: None.
        """
        if self.path is None:
            return None
        return _size_and_time(self.path), _size_and_time(self.path + ".wal")

    def file_sign(self) -> tuple[int, int] | None:
        """Return what changes with every checkpoint; None in memory."""
        return None if self.path is None else _size_and_time(self.path)

    def log_bytes(self) -> int:
        """Return the length of the log, 0 in memory."""
        return 0 if self.path is None else _size_and_time(self.path + ".wal")[0]

    def look(self) -> int:
        """Return how often others changed the database, as far as its sign tells."""
        self.look_closely()
        return self.changes

    def forget(self) -> None:
        """Let no plan use any index any more: they, or the database, are gone."""
        for index in self.indexes.values():
            index.forget()

    def look_closely(self) -> ChangeSign | None:
        """Count a change if there was one, and return the sign of now."""
        sign = self.change_sign()
        if sign != self._sign:
            self._sign = sign
            self._changed_at = time.monotonic()
            self.changes += 1
        return sign

    def settled(self, sign: ChangeSign) -> bool:
        """Tell whether all that led to this sign is visible to new transactions.

        A commit changes the sign before it is visible. DuckDB writes one commit at a
        time to the log, and holds its lock until that is visible: when our own tiny
        commit is over, and nothing was written since, all others are. Else they get
        SETTLED_SECONDS.
        """
        if sign == self._own_sign:
            return True
        newest = max(changed for _, changed in sign) / 1e9
        if time.time() - newest >= SETTLED_SECONDS:
            return True
        if self.look_closely() != sign:
            return False
        return time.monotonic() - self._changed_at >= SETTLED_SECONDS

    def count_commit(self, epoch: int, number: int) -> None:
        """Note that this process committed an epoch, in its so manieth try."""
        self.epoch = epoch
        self.commits += 1
        self.last_commit = number

    def overlook_own_commit(self, before: ChangeSign | None) -> None:
        """Do not count the tiny commit that was made since `look_closely`.

        It is recognised by what it adds to the log; where others may have written
        beside it, it counts.
        """
        after = self.change_sign()
        if before is None or after is None:
            return
        added = after[1][0] - before[1][0]
        usual = abs(added - self._commit_bytes) <= COMMIT_SLACK_BYTES
        better = not self._commit_bytes_seen or added < self._commit_bytes
        if usual or (better and 0 < added == self._last_added):
            self._commit_bytes, self._commit_bytes_seen = added, True
        self._last_added = added
        if usual and after[0] == before[0]:
            self._own_sign = after
            if self._sign == before:
                self._sign = after


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
