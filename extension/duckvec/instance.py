"""What all loads of one DuckDB instance share: sessions, databases, indexes, guards.

Locks: `Instance.lock` protects the dictionaries and the fields of the states below;
it is held for moments and never while SQL runs, because the query that wants it may
hold locks of DuckDB's. Finalizers of connections never wait for it.
"""

from __future__ import annotations

import _thread
import collections
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Hashable
from pathlib import Path

import duckdb

from duckvec import catalog, paths
from duckvec.catalog_check import check_catalog
from duckvec.errors import ClosedError, NotIndexableError, VectorIndexError
from duckvec.filters import CheckedFilters
from duckvec.keeper import Keeper
from duckvec.leftovers import remove_orphans
from duckvec.locks import holds
from duckvec.lookups import Lookups
from duckvec.memory import MemoryBudget
from duckvec.segments import Segment
from duckvec.selectivity import Selectivities
from duckvec.sql_text import quote_path
from duckvec.states import (
    DatabaseState,
    IndexState,
    Session,
    StoredPlan,
)
from duckvec.tables import Caller, Table, find_table_at, read_only
from duckvec.tables import databases as attached_databases
from duckvec.tracking import Generation, Guard

logger = logging.getLogger("duckvec")

# By the number of a session: those that are loaded, and those whose object is gone.
loaded: dict[int, Instance] = {}
forgotten: dict[int, Instance] = {}

# Without a loaded connection, the last one last; so many keep the artifacts of their
# databases in memory, which may be loaded again.
_unloaded: collections.deque[Instance] = collections.deque()
MOST_UNLOADED = 4

# How long the end of the process waits for background work to stop, and the collector
# of garbage for another thread that forgets a connection.
CLOSE_SECONDS = 10.0
DROP_SECONDS = 0.05

_DATABASE = """
SELECT
    path,
    readonly,
    type,
    encrypted,
    database_oid > (
        SELECT min(database_oid) FROM duckdb_databases() WHERE NOT internal
    )
FROM duckdb_databases()
WHERE database_oid = $oid
"""


class Instance:
    """One DuckDB instance with duckvec loaded; any thread may call any method."""

    def __init__(
        self,
        number: int,
        directory: str | None,
        threads: int,
        build_threads: int = 0,
    ) -> None:
        """Begin without sessions; `build_threads` 0: no background builds."""
        self.number = number
        self.lock = threading.RLock()
        # Numbers of sessions whose connection is gone, and those not yet forgotten.
        self._dropped: collections.deque[int] = collections.deque()
        self._dropping: set[int] = set()
        self._forgetting = False  # whether a thread is at it
        self._first_look = threading.Lock()  # held while a catalog is read
        self.keeper = Keeper("duckvec-keeper", self._release_if_unused)
        self.armer = Keeper("duckvec-armer", self._release_if_unused)
        self.warden = Keeper("duckvec-warden")
        self.sealer = Keeper("duckvec-sealer", self._release_if_unused)
        self.watcher = Keeper("duckvec-watch")
        self.directory = directory
        self.threads = threads
        self.build_threads = build_threads
        self.memory = MemoryBudget()
        self.sessions: dict[int, Session] = {}
        self.databases: dict[int, DatabaseState] = {}
        self.stored_plans: dict[Hashable, StoredPlan] = {}
        self._temporary_folders: dict[int, Path] = {}  # by number of the database
        self.lookups = Lookups()
        self.checked_filters = CheckedFilters()
        self.selectivities = Selectivities()

    def add_session(self, connection: duckdb.DuckDBPyConnection) -> Session:
        """Remember a connection; return the session it already has, or a new one."""
        with self.lock:
            known = self.find_session_of(connection)
            if known is not None:
                return known
            session = Session(connection)
            self.sessions[session.number] = session
            loaded[session.number] = self
            finalizer = weakref.finalize(connection, self._drop_session, session.number)
            finalizer.atexit = False  # `close` does it, in order
            return session

    def find_session_of(self, connection: duckdb.DuckDBPyConnection) -> Session | None:
        """Return the session of a connection, or None where it was not loaded."""
        for session in list(self.sessions.values()):
            if session.connection() is connection:
                return session
        return None

    def remove_session(self, session: Session) -> None:
        """Forget a connection and end its guards; after the last, let short work end.

        Called by the user's own call, on the connection's thread.
        """
        self._forget_session(session.number)
        if not self.sessions:
            for task in self.armer.pending():
                task.wait_briefly()

    def background_cursor(self) -> duckdb.DuckDBPyConnection:
        """Return a cursor that outlives the connections: for a burst of work.

        DuckDB closes a connection's cursors, and theirs, with it, and refuses to
        while one runs a statement; a cursor whose parent was dropped stands alone.
        Close it soon: it keeps the file open.

        Raises:
            ClosedError: no loaded connection is open any more.
        """
        with self.lock:
            sessions = list(self.sessions.values())
        for session in sessions:
            try:
                return session.cursor().cursor()
            except ClosedError:
                continue
        raise ClosedError("every loaded connection is closed; connect and load again")

    def require_open(self) -> None:
        """Stop work in the background once every loaded connection is closed.

        Raises:
            ClosedError: they are.
        """
        if not self.is_open:
            raise ClosedError("every loaded connection is closed")

    @property
    def is_open(self) -> bool:
        """Whether any loaded connection is open."""
        with self.lock:
            sessions = list(self.sessions.values())
        return any(session.open for session in sessions)

    def seems_open(self) -> bool:
        """Tell whether any connection is open, asking each of them now and then."""
        with self.lock:
            sessions = list(self.sessions.values())
        now = time.monotonic()
        return any(not session.seems_closed(1, now) for session in sessions)

    # Databases and their indexes

    def database(
        self, cursor: duckdb.DuckDBPyConnection, name: str, oid: int
    ) -> DatabaseState:
        """Return the state of a database, reading its catalog the first time.

        Args:
            cursor: inside a read-only transaction.
            name: the name it is attached by.
            oid: its number in this instance.
        """
        state = self.databases.get(oid)
        if state is not None and state.name == name:
            return state
        # Two first looks may see different snapshots: the later look of the older one
        # would delete the files of an index that was made in between.
        with self._first_look:
            return self._first_database(cursor, name, oid)

    def _first_database(
        self, cursor: duckdb.DuckDBPyConnection, name: str, oid: int
    ) -> DatabaseState:
        state = self.databases.get(oid)
        if state is not None and state.name == name:
            return state
        found = cursor.execute(_DATABASE, {"oid": oid}).fetchall()
        state = DatabaseState(name, oid, *found[0])
        kind = state.kind
        if kind == "duckdb" and name not in ("system", "temp"):
            self._read_catalog(cursor, state)
        with self.lock:
            known = self.databases.setdefault(oid, state)
            if known.name != name:
                self.databases[oid] = known = state
            for other in list(self.databases.values()):
                if other.name == name and other.oid != oid:
                    del self.databases[other.oid]  # detached: its name is taken
        return known

    def look_at_all(self, cursor: duckdb.DuckDBPyConnection) -> list[DatabaseState]:
        """Return the states of all attached databases, and forget detached ones.

        Args:
            cursor: inside a read-only transaction.
        """
        attached = attached_databases(cursor)
        self.forget_detached({oid for _, oid in attached})
        return [self.database(cursor, name, oid) for name, oid in attached]

    def look_for_catalog(
        self, cursor: duckdb.DuckDBPyConnection, state: DatabaseState
    ) -> None:
        """Notice a catalog that came with an import or a copy, or was dropped.

        Called in the keeper's thread only, where catalogs are made and files written.

        Args:
            cursor: inside a read-only transaction that began just now.
            state: a database that is open for writing.
        """
        there = catalog.exists(cursor, state.name)
        if there and not state.has_catalog:
            self._read_catalog(cursor, state)
        elif state.has_catalog and not there:
            with self.lock:
                state.has_catalog, state.mark, state.epoch = False, None, None
                state.catalog_version = catalog.CATALOG_VERSION
                state.forget()
                state.indexes.clear()
            remove_orphans(self.folder(state), set())

    def forget_detached(self, attached: set[int]) -> None:
        """Forget the databases whose numbers are not among those attached."""
        with self.lock:
            for oid in set(self.databases) - attached:
                self.databases.pop(oid).forget()

    def folder(self, state: DatabaseState) -> Path:
        """Return the folder for a database's artifacts; it need not exist yet."""
        with self.lock:
            if state.folder is None:
                kept = self._temporary_folders.get(state.oid)
                made = kept or paths.artifact_folder(state.path, self.directory)
                if state.path is None:
                    self._temporary_folders[state.oid] = made
                state.folder = made
            return state.folder

    def require_safe_folder(self, state: DatabaseState) -> None:
        """Check that vectors of a database may be written to its folder.

        Raises:
            NotIndexableError: it is encrypted, and nobody named a place for them.
        """
        if state.encrypted and self.directory is None:
            raise NotIndexableError(
                f'database "{state.name}" is encrypted and artifacts are not; name a '
                "safe place with the first load(con, directory=…)"
            )

    def index(self, table: Table, column: str) -> IndexState | None:
        """Return the index of a column of a table whose database is known."""
        state = self.databases.get(table.database_oid)
        if state is None:
            return None
        return state.indexes.get(catalog.index_key(table.schema, table.name, column))

    def generation(self, number: int) -> tuple[Generation, IndexState] | None:
        """Return the generation of that number, if new plans of its index name it."""
        for state in list(self.databases.values()):
            for index in list(state.indexes.values()):
                for generation in (index.generation, index.extended):
                    if generation is not None and generation.number == number:
                        return generation, index
        return None

    def state_of(self, caller: Caller) -> DatabaseState | None:
        """Return the state of the caller's default database, None where it has none."""
        for state in list(self.databases.values()):
            if state.name == caller.database:
                return state
        return None

    @property
    def has_one_database(self) -> bool:
        """Whether only one database is known to be attached."""
        return len(self.databases) == 1

    def _read_catalog(
        self, cursor: duckdb.DuckDBPyConnection, state: DatabaseState
    ) -> None:
        try:
            version = catalog.find_version(cursor, state.name)
            state.has_catalog = version is not None
            state.catalog_version = version or catalog.CATALOG_VERSION
            if version is None:
                return
            folder = self.folder(state)
            for checked in check_catalog(*catalog.read_rows(cursor, state.name)):
                row = checked.row
                segments = tuple(
                    Segment(each, folder, self.memory) for each in checked.segments
                )
                index = state.indexes[row.key] = IndexState(row, segments)
                if checked.fault is not None:
                    logger.warning('index on "%s": %s', row.table_name, checked.fault)
                    index.set_fault(checked.fault)
                place = state.name, row.schema_name, row.table_name
                table = find_table_at(cursor, *place)
                if table is not None and table.has_column(row.column_name):
                    index.seen = table
            if not state.read_only:
                # No build of this process writes here before the catalog was read.
                remove_orphans(folder, _named_files(state))
        except (VectorIndexError, OSError, ValueError, duckdb.Error) as error:
            state.error = str(error)
            logger.warning("%s", error)

    # Snapshots

    def seal_transaction(self, database: str) -> int:
        """Return the number of a transaction of a database that begins now."""
        with read_only(self.background_cursor()) as cursor:
            cursor.execute(f"USE {quote_path((database, 'main'))}")
            return int(cursor.execute("SELECT txid_current()").fetchall()[0][0])

    # The end

    def close(self) -> None:
        """Stop the background work and let go of everything, at the process's end."""
        threads = (self.watcher, self.warden, self.sealer, self.keeper, self.armer)
        for thread in threads:
            thread.cancel()
        until = time.monotonic() + CLOSE_SECONDS
        for thread in threads:
            thread.stop(max(0.0, until - time.monotonic()))
        for number in list(self.sessions):
            self._forget_session(number)
        with self.lock:
            self._release()
        self.delete_temporary_folders()

    def _drop_session(self, number: int) -> None:
        """Forget a connection whose object is gone; called by the garbage collector.

        In the middle of anything that any thread does, this one inside the lock
        perhaps: it waits for no lock, and where it is taken leaves it to a thread.
        """
        if not self._enter_at_once():
            self._forget_later(number)
            return
        try:
            guards = self._take_session(number)
        finally:
            self.lock.release()
        _close_guards(guards)
        if not self._enter_at_once():
            self._forget_later(number)
            return
        try:
            if self._is_unused():
                self._release()
        finally:
            self.lock.release()

    def _enter_at_once(self) -> bool:
        """Take the lock unless any thread has it, this one included."""
        return not holds(self.lock) and self.lock.acquire(blocking=False)

    def _forget_later(self, number: int) -> None:
        """Have a thread forget a connection; wait for it as far as that is safe."""
        self._dropping.add(number)
        self._dropped.append(number)
        if not self._forgetting:
            self._forgetting = True
            with contextlib.suppress(RuntimeError):  # Python ends
                # Thread.start() takes locks, which this thread may hold.
                _thread.start_new_thread(self._forget_dropped, ())
        until = time.monotonic() + DROP_SECONDS
        while number in self._dropping and time.monotonic() < until:
            if holds(self.lock):
                break
            time.sleep(0.0005)

    def _forget_dropped(self) -> None:
        """Forget connections that are gone; in a thread of its own."""
        while self._dropped:
            while self._dropped:
                with contextlib.suppress(IndexError):  # another thread took it
                    number = self._dropped.popleft()
                    self._forget_session(number)
                    self._dropping.discard(number)
            self._forgetting = False

    def abandon(self) -> object:
        """Return all that must be kept, and forget it: this process was forked.

        Only the parent closes connections and deletes files. Takes no lock: a thread
        that is not here may hold it.
        """
        kept = (self.sessions, self.databases, self._temporary_folders)
        self.lock, self._first_look = threading.RLock(), threading.Lock()
        self.sessions, self.databases, self._temporary_folders = {}, {}, {}
        return kept

    def _forget_session(self, number: int) -> None:
        with self.lock:
            guards = self._take_session(number)
        _close_guards(guards)
        self._release_if_unused()

    def _take_session(self, number: int) -> list[Guard]:
        """Remove a session, under the lock; return its guards, to be closed."""
        loaded.pop(number, None)
        session = self.sessions.pop(number, None)
        if session is None:
            return []
        if session.connection() is None:
            forgotten[number] = self
        guards = list(session.guards.values())
        session.guards.clear()
        return guards

    def _release_if_unused(self) -> None:
        """Let go of everything once no connection is left and no work goes on."""
        with self.lock:
            if self._is_unused():
                self._release()

    def _is_unused(self) -> bool:
        threads = (self.keeper, self.armer, self.sealer)
        return not self.sessions and not any(each.pending() for each in threads)

    def _release(self) -> None:
        """Close the opened segments."""
        for state in self.databases.values():
            state.forget()
            for index in state.indexes.values():
                for segment in index.segments:
                    segment.close()
        self.databases.clear()
        self.lookups.clear()
        self.stored_plans.clear()
        if self._temporary_folders:
            _keep_for_later(self)

    def delete_temporary_folders(self) -> None:
        """Delete the artifacts of in-memory databases."""
        folders, self._temporary_folders = self._temporary_folders, {}
        for folder in folders.values():
            remove_orphans(folder, set())
            paths.remove_folder_if_empty(folder)


def _keep_for_later(instance: Instance) -> None:
    """Keep the artifacts of databases in memory: they may live on without us.

    Other connections may hold them, which are loaded later: nobody tells.
    """
    with contextlib.suppress(ValueError):
        _unloaded.remove(instance)
    _unloaded.append(instance)
    while len(_unloaded) > MOST_UNLOADED:
        oldest = _unloaded.popleft()
        if not oldest.sessions:
            oldest.delete_temporary_folders()


def _close_guards(guards: list[Guard]) -> None:
    for guard in guards:
        try:
            guard.close()
        except duckdb.Error:
            logger.debug("a guard was closed with its connection")


def _named_files(state: DatabaseState) -> set[str]:
    return {
        name
        for index in state.indexes.values()
        for segment in (*index.segments, *index.unusable)
        for name in (segment.row.file, segment.row.map_file)
    }
