"""What is known of one loaded connection, one attached database and one index.

The fields change under the lock of the instance that holds them.
"""

from __future__ import annotations

import itertools
import os
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from duckvec.catalog import IndexRow
from duckvec.errors import ClosedError
from duckvec.segments import Segment
from duckvec.tables import Table
from duckvec.tracking import Generation, Guard

_session_numbers = itertools.count(1)

ChangeSign = tuple[tuple[int, int], ...]
"""Size in bytes and time in nanoseconds of a database file and of its log."""


class Session:
    """One loaded connection, known by a number that its macros carry.

    Only a weak reference to the connection is held, so that letting go of it closes
    it; its guards are cursors of it, and end with it.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.number = next(_session_numbers)
        self.connection = weakref.ref(connection)
        self.guards: dict[int, Guard] = {}

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
        previous: the one before, for plans that are about to run.
        last_error: what the background failed at last.
        failed: chain and table identity for which a proof failed, so that searches do
            not ask for it again and again.
        surplus_sign: the database's change sign when `surplus` was counted.
        surplus: indexed rows that are gone.
    """

    row: IndexRow
    segments: tuple[Segment, ...] = ()
    generation: Generation | None = None
    previous: Generation | None = None
    last_error: str | None = None
    failed: tuple[int, tuple[int, str] | None] | None = None
    surplus_sign: object = None
    surplus: int = 0

    def is_for(self, table: Table) -> bool:
        """Tell whether the current generation was made from this very table."""
        generation = self.generation
        return generation is not None and generation.table_identity == table.identity

    def use(self, generation: Generation | None) -> None:
        """Make `generation` the one that new plans get; running ones keep theirs."""
        self.previous, self.generation = self.generation, generation
        self.surplus_sign, self.surplus = None, 0


@dataclass
class DatabaseState:
    """One attached database: what it is, and its indexes where it has any."""

    name: str
    oid: int
    path: str | None
    read_only: bool
    kind: str
    encrypted: bool
    has_catalog: bool = False
    error: str | None = None
    folder: Path | None = None
    indexes: dict[tuple[str, str, str], IndexState] = field(default_factory=dict)

    def change_sign(self) -> ChangeSign | None:
        """Return what changes with every commit that reaches the disk.

        Looks at the sizes and times of the database file and its log, and opens
        neither: closing a descriptor would drop DuckDB's lock. An in-memory database
        has no such sign: None.
        """
        if self.path is None:
            return None
        signs = []
        for name in (self.path, self.path + ".wal"):
            try:
                found = os.stat(name)
                signs.append((found.st_size, found.st_mtime_ns))
            except OSError:
                signs.append((0, 0))
        return tuple(signs)
