"""Which row ids an index may be trusted for.

An index entry is a hint: "a row with this vector was at this row id". A generation
says for which table, which snapshots and which stretch of time that hint holds:

- `chain`: row ids stay put while a guard transaction stands, older than the last
  commit, because DuckDB's checkpoints then move nothing. Guards that overlap form a
  chain; a generation is good while the caller's connection holds a guard of its
  chain. A read-only database moves nothing: its chain is READ_ONLY_CHAIN.
- `seal`: a caller whose snapshot began before the seal may see rows that the build
  did not; it gets the exact scan.
- `watermark`: rows with higher ids came later, and are scanned exactly (the tail).

After a database was opened nothing proves where its rows are: entries are matched to
rows again by the hashes of their vectors.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import duckdb
import numpy as np
from numpy.typing import NDArray

from duckvec.keeper import Task
from duckvec.segments import Segment

READ_ONLY_CHAIN = 0
UNSEALED = -1  # all snapshots of a read-only database are the same

_chain_numbers = itertools.count(READ_ONLY_CHAIN + 1)
_generation_numbers = itertools.count(1)


def new_chain() -> int:
    """Return the number of a chain of guards that begins now."""
    return next(_chain_numbers)


@dataclass(frozen=True)
class Seal:
    """When a generation's snapshot was taken, in two measures.

    Attributes:
        transaction: number of a transaction of the table's database that began after
            the snapshot; a caller of that database must have a higher one.
        epoch: value of the catalog's epoch that was committed after the snapshot; a
            caller whose default database is another one must see at least it.
    """

    transaction: int
    epoch: int


@dataclass(frozen=True)
class LiveSegment:
    """A segment with the row id that each of its entries has now, or -1.

    Attributes:
        segment: the immutable segment.
        rowids: int64 (entries,), -1 where an entry's row is gone.
        alive: bool (entries,) mask of the entries with a row; None: all of them.
    """

    segment: Segment
    rowids: NDArray[np.int64]
    alive: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Generation:
    """One immutable state of one index that searches can use.

    Attributes:
        number: unique in the process.
        chain: the chain of guards under which its row ids hold.
        seal: which callers may use it.
        table_identity: the table that it was made from, as it was defined.
        watermark: highest row id it covers; -1 where it covers none.
        covered_rows: rows with ids up to the watermark in its snapshot.
        segments: what to search.
        extends: the generation to which this one adds the first rows of its tail, as
            a last segment that is held in memory (held_tails.py).
    """

    chain: int
    seal: Seal
    table_identity: tuple[int, str]
    watermark: int
    covered_rows: int
    segments: tuple[LiveSegment, ...]
    extends: Generation | None = None
    number: int = field(default_factory=lambda: Generation.next_number())

    @staticmethod
    def next_number() -> int:
        """Return a number that no generation of this process has."""
        return next(_generation_numbers)

    @property
    def stored(self) -> Generation:
        """The generation of the segments that the catalog names."""
        return self.extends or self

    @property
    def held(self) -> LiveSegment | None:
        """The segment that is held in memory, if any."""
        more = self.extends and len(self.segments) > len(self.extends.segments)
        return self.segments[-1] if more else None

    @functools.cached_property
    def entries(self) -> int:
        """Entries whose row is there."""
        return sum(
            len(live.rowids) if live.alive is None else int(live.alive.sum())
            for live in self.segments
        )


@dataclass(frozen=True)
class Mark:
    """How much of the catalog's epochs no checkpoint had written, at some time.

    A checkpoint writes all of them. They are rows that only commits of this process
    add, one each.

    Attributes:
        chain: the chain of the guard that stood.
        commits: how many epochs this process had committed.
        fresh: how many rows, deleted ones included, were not written.
        file_sign: size and time of the database file; None in memory.
    """

    chain: int
    commits: int
    fresh: int
    file_sign: tuple[int, int] | None

    def leads_to(self, commits: int, fresh: int) -> bool:
        """Tell whether no checkpoint ran between this mark and the given numbers."""
        return self.fresh > 0 and fresh - self.fresh == commits - self.commits


@dataclass(frozen=True)
class Standing:
    """How far things had come when a search was planned.

    A commit after the search's transaction began makes that transaction one that no
    checkpoint overlooks.

    Attributes:
        begun_commits: how many commits of epochs this process had begun.
        log_bytes: length of the log.
        losses: how many of the session's guards there had ended before they safely
            could.
    """

    begun_commits: int
    log_bytes: int
    losses: int


class Guard:
    """A read-only transaction that keeps row ids where they are.

    It is begun only inside a call that the user made on the connection it belongs to,
    and sits idle otherwise; closing that connection ends it. It guards once it is
    armed: when a commit came after its begin.

    Attributes:
        chain: the chain it belongs to once it is armed.
        changes: how often others had changed the database when it began.
        begun_at: when that was, on the monotonic clock.
        used_at: when a search last relied on it.
        waiting_since: since when it, or one that it replaces, waits to be armed.
        commits_at_use: how many commits of epochs this process had begun then.
        log_at_use: bytes of the database's log then.
        replaces: the guard that stands until this one is armed.
        pins: how many long calls need it to stand, whoever writes.
        from_elsewhere: whether a search whose default database is another one relies
            on it: which commits came after that began only epochs tell.
        arming: the task that arms it.
        ending: `used_at` when a commit was asked for, after which it may end.
        ending_since: when that was.
        followed: `used_at` that such a commit followed.
    """

    def __init__(self, cursor: duckdb.DuckDBPyConnection, changes: int) -> None:
        """Take over a cursor of the guarded connection, inside the transaction."""
        self._cursor = cursor
        self.chain: int | None = None
        self.changes = changes
        self.begun_at = self.used_at = self.waiting_since = time.monotonic()
        self.replaces: Guard | None = None
        self.arming: Task | None = None
        self.pins = 0
        self.from_elsewhere = False
        self.commits_at_use = self.log_at_use = 0
        self.ending = self.ending_since = self.followed = 0.0

    @property
    def armed(self) -> bool:
        """Whether a commit came after its begin, so that it guards."""
        return self.chain is not None

    def use(self, commits: int, log_bytes: int) -> None:
        """Note that a search begins to rely on it."""
        self.used_at = time.monotonic()
        self.commits_at_use, self.log_at_use = commits, log_bytes

    def close(self) -> None:
        """End the transaction, and that of the guard it was to replace."""
        self.chain = None
        try:
            self._cursor.close()
        finally:
            if self.replaces is not None:
                self.replaces.close()


def live_segment(segment: Segment, rowids: NDArray[np.int64]) -> LiveSegment:
    """Return the segment with the given row ids and the mask that follows from them."""
    alive = rowids >= 0
    return LiveSegment(segment, rowids, None if bool(alive.all()) else alive)


def match_entries(
    entry_rowids: NDArray[np.int64],
    entry_hashes: NDArray[np.uint64],
    rowids: NDArray[np.int64],
    hashes: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Match index entries to the rows of a table by the hashes of their vectors.

    Each row is matched to at most one entry and each entry to at most one row; equal
    vectors pair up in any order. Entries that still agree with the row at their old
    row id keep it.

    Args:
        entry_rowids: int64 (entries,), row ids at the time of the build.
        entry_hashes: uint64 (entries,).
        rowids: int64 (rows,), ascending.
        hashes: uint64 (rows,).

    Returns:
        Row id of each entry, -1 where it has none, and whether each row was matched.
    """
    found = np.full(len(entry_rowids), -1, dtype=np.int64)
    matched = np.zeros(len(rowids), dtype=np.bool_)
    if len(rowids) == 0:
        return found, matched
    at = np.minimum(np.searchsorted(rowids, entry_rowids), len(rowids) - 1)
    same = np.flatnonzero((rowids[at] == entry_rowids) & (hashes[at] == entry_hashes))
    # A row may have entries in two segments, where the tail that was sealed last held
    # rows of an older segment: one of them keeps it.
    keeper = np.empty(len(rowids), dtype=np.int64)
    keeper[at[same]] = same
    same = same[keeper[at[same]] == same]
    found[same] = entry_rowids[same]
    matched[at[same]] = True
    entries = np.flatnonzero(found < 0)
    rows = np.flatnonzero(~matched)
    if len(entries) and len(rows):
        entries = entries[np.argsort(entry_hashes[entries], kind="stable")]
        rows = rows[np.argsort(hashes[rows], kind="stable")]
        wanted, there = entry_hashes[entries], hashes[rows]
        rank = np.arange(len(wanted)) - np.searchsorted(wanted, wanted, "left")
        place = np.searchsorted(there, wanted, "left") + rank
        inside = np.minimum(place, len(there) - 1)
        hit = (place < len(there)) & (there[inside] == wanted)
        found[entries[hit]] = rowids[rows[inside[hit]]]
        matched[rows[inside[hit]]] = True
    return found, matched


def prove(
    segments: Sequence[Segment],
    rowids: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    last_rowid: int,
) -> tuple[tuple[LiveSegment, ...], int]:
    """Match all segments of an index to the rows of its table.

    Args:
        segments: the segments, whose map files are read and verified.
        rowids: int64 (rows,), ascending: rows whose vector can be indexed.
        hashes: uint64 (rows,) of their vectors.
        last_rowid: the highest row id of the table, -1 where it is empty.

    Returns:
        The segments with the row ids of now, and the watermark: just below the first
        row that no entry matches, so that the tail holds every unmatched row.
    """
    maps = [segment.read_map() for segment in segments]
    found, matched = match_entries(
        np.concatenate([m[0] for m in maps]) if maps else np.empty(0, np.int64),
        np.concatenate([m[1] for m in maps]) if maps else np.empty(0, np.uint64),
        rowids,
        hashes,
    )
    unmatched = np.flatnonzero(~matched)
    watermark = int(rowids[unmatched[0]]) - 1 if len(unmatched) else last_rowid
    found[found > watermark] = -1  # those rows are in the tail
    live = []
    start = 0
    for segment, (entry_rowids, _) in zip(segments, maps, strict=True):
        end = start + len(entry_rowids)
        live.append(live_segment(segment, found[start:end]))
        start = end
    return tuple(live), watermark
