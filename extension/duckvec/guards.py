"""Keeping row ids still while searches use them, at as small a price as possible.

A guard that stands while others write has a price: DuckDB refuses `CHECKPOINT` after an
update in place that the guard does not see, `FORCE CHECKPOINT` waits for the guard, and
the space of deleted rows is not given back. So a guard begins with a search, gives way
to a younger one with the first search after a change, and is let go soon after the last
search (`guard_watch`). `chains` tells whether rows moved where none stood.

Threads: what is here runs inside calls that the user makes on the session's connection,
except that guards are armed in the armer's thread.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import duckdb

from duckvec import catalog
from duckvec.chains import commit_epoch, mark, standing_chain
from duckvec.errors import BusyError
from duckvec.guard_watch import watch_guards
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.parsed import execute_parsed
from duckvec.states import DatabaseState, Session
from duckvec.tracking import Guard, Standing

logger = logging.getLogger("duckvec")

# A database in memory does not tell whether it changed: its guards are renewed by age.
UNTOLD_SECONDS = 0.25
PIN_TRIES = 3


@dataclass
class Look:
    """A read-only transaction in which a search looked things up; it may be a guard.

    Attributes:
        cursor: a cursor of the session's connection, inside that transaction.
        state: the database that it surely began in; None where none is known.
        changes: how often others had changed that database before it began.
        taken: whether it became a guard.
    """

    cursor: duckdb.DuckDBPyConnection
    state: DatabaseState | None = None
    changes: int = 0
    taken: bool = False

    def close(self) -> None:
        """End the transaction, unless it is a guard's now."""
        if not self.taken:
            self.cursor.close()


def begin_look(session: Session, state: DatabaseState | None) -> Look:
    """Begin a transaction in which a search of the session looks things up.

    It looks through DuckDB's list of tables, which begins it in every database.

    Args:
        session: the connection.
        state: the one attached database, where the transaction may become its guard: it
            would be one of the others, too.
    """
    changes = state.look() if state else 0
    cursor = session.cursor()
    execute_parsed(cursor, "BEGIN TRANSACTION READ ONLY")
    # What it looks up is quicker read than optimised. Even to parse a PRAGMA outside of
    # the transaction may wait for a FORCE CHECKPOINT.
    execute_parsed(cursor, "PRAGMA disable_optimizer")
    return Look(cursor, state, changes)


def hold_guard(
    instance: Instance,
    session: Session,
    state: DatabaseState,
    look: Look | None = None,
    *,
    from_elsewhere: bool = False,
) -> Task | None:
    """See to it that the session has a guard younger than the last change of others.

    Called only inside a call that the user makes on the session's connection. The guard
    that is replaced stands until the new one is armed; `chain_of` tells whether one of
    them guards by now.

    Args:
        instance: the DuckDB instance.
        session: the connection.
        state: the database.
        look: a transaction of the session's that may serve as the guard.
        from_elsewhere: whether the session's default database is another one.

    Returns:
        The task that arms the guard; None where that is over.
    """
    if state.read_only or not state.has_catalog:
        return None
    now, changes = time.monotonic(), state.look()
    state.searched_at = now
    with instance.lock:
        guard = session.guards.get(state.oid)
        if guard is not None:
            guard.from_elsewhere |= from_elsewhere
        if guard is not None and guard.changes == changes:
            young = now - guard.begun_at < UNTOLD_SECONDS
            if state.path is not None or young or not guard.armed:
                guard.use(state.begun_commits, state.log_bytes())
                return None if guard.armed else guard.arming
    begun = _begin(session, state, changes, look)
    if begun is None:
        _end(instance, session, state)
        return None
    begun.use(state.begun_commits, state.log_bytes())
    begun.from_elsewhere = from_elsewhere
    with instance.lock:
        # Not the one from before: the watch may have begun to close it.
        replaced = begun.replaces = session.guards.get(state.oid)
        if replaced is not None and not replaced.armed:
            begun.waiting_since = replaced.waiting_since
        session.guards[state.oid] = begun
    watch_guards(instance)
    name = f'guarding the row ids of database "{state.name}"'
    begun.arming = instance.armer.submit(name, lambda task: _arm(task, instance, state))
    return begun.arming


def standing_of(session: Session, state: DatabaseState) -> Standing:
    """Return how far a database has come by now, for a search of the session."""
    return Standing(state.begun_commits, state.log_bytes(), session.losses[state.oid])


def still_guarded(
    session: Session,
    state: DatabaseState,
    chain: int | None,
    planned: Standing,
    seen_epoch: int | None,
) -> bool:
    """Tell whether no row of a database moves while a search of the session runs.

    Called while it runs. Waits for the guard that the search began: once it is armed,
    the guards that were replaced are in nobody's way.

    Args:
        session: the connection.
        state: the database.
        chain: the chain that the search was planned under; None: any will do.
        planned: how far things had come then.
        seen_epoch: the epoch that its transaction sees, where that is of another
            database than the default one, and may have begun after the planning.
    """
    if state.read_only:
        return True
    guard = session.guards.get(state.oid)
    while guard is not None and not guard.armed and guard.arming is not None:
        if guard.arming.wait_briefly() and session.guards.get(state.oid) is guard:
            break
        guard = session.guards.get(state.oid)  # the watch lets it go if it is late
    if session.losses[state.oid] != planned.losses:
        return False
    if seen_epoch is not None:
        is_followed = (state.epoch or 0) > seen_epoch
    else:
        is_followed = (
            state.last_commit > planned.begun_commits
            or state.log_bytes() > planned.log_bytes
        )
    if is_followed:
        return True
    guard = session.guards.get(state.oid)
    if guard is None or not guard.armed or chain not in (None, guard.chain):
        return False
    guard.use(state.begun_commits, state.log_bytes())
    # The watch may have let go of it before this use was noted.
    return session.guards.get(state.oid) is guard


@contextlib.contextmanager
def pinned(
    instance: Instance, session: Session, state: DatabaseState
) -> Iterator[None]:
    """Hold the session's guard for the length of a long call of the user's on it.

    Raises:
        BusyError: it cannot be armed.
    """
    guard = _pin(instance, session, state)
    try:
        yield
    finally:
        with instance.lock:
            if guard is not None:
                guard.pins -= 1
                guard.used_at = time.monotonic()


def _pin(instance: Instance, session: Session, state: DatabaseState) -> Guard | None:
    """Return an armed guard that is not let go of; None where none is needed."""
    if state.read_only or not state.has_catalog:
        return None
    for _ in range(PIN_TRIES):  # the watch may come first where this thread was slow
        arming = hold_guard(instance, session, state)
        if arming is not None:
            arming.wait(cancels=False)
        with instance.lock:
            guard = session.guards.get(state.oid)
            if guard is not None and guard.armed:
                guard.pins += 1
                return guard
    raise BusyError(
        f'the rows of database "{state.name}" cannot be held in place now; try again'
    )


def _begin(
    session: Session, state: DatabaseState, changes: int, look: Look | None
) -> Guard | None:
    """Begin the transaction of a guard; None where the catalog was dropped, say."""
    taken = look is not None and not look.taken and look.state is state
    cursor = look.cursor if look and taken else session.cursor()
    try:
        if not taken:
            execute_parsed(cursor, "BEGIN TRANSACTION READ ONLY")
        path = catalog.schema_path(state.name)
        execute_parsed(cursor, f"FROM {path}.epoch LIMIT 0")
        cursor.fetchall()
    except duckdb.Error as error:
        cursor.close()
        logger.warning("%s", error)
        return None
    if look and taken:
        look.taken, changes = True, look.changes
    return Guard(cursor, changes)


def _end(instance: Instance, session: Session, state: DatabaseState) -> None:
    """End a guard that cannot be renewed: the watch could not tell who uses it."""
    with instance.lock:
        guard = session.guards.pop(state.oid, None)
        session.losses[state.oid] += 1
    if guard is not None:
        guard.close()


def _arm(task: Task, instance: Instance, state: DatabaseState) -> None:
    """Make the tiny commit that arms the guards which wait for one."""
    with instance.lock:
        waiting = [
            (session, session.guards[state.oid])
            for session in list(instance.sessions.values())
            if state.oid in session.guards and not session.guards[state.oid].armed
        ]
    if not waiting:
        return
    try:
        commit_epoch(task, instance, state)
    except BaseException:
        _reinstate(instance, state, waiting)
        raise
    chain = standing_chain(instance, state)
    if chain is None or state.mark is None or state.mark.chain != chain:
        chain = mark(instance, state)
    for session, guard in waiting:
        with instance.lock:
            if _stands(session.guards.get(state.oid), guard):
                guard.chain = chain
                guard.use(state.begun_commits, state.log_bytes())
            replaced, guard.replaces = guard.replaces, None
        if replaced is not None:
            replaced.close()


def _reinstate(
    instance: Instance, state: DatabaseState, waiting: list[tuple[Session, Guard]]
) -> None:
    """Put the guards that were to be replaced in the place of those that failed."""
    for session, guard in waiting:
        with instance.lock:
            replaced = guard.replaces
            failed = replaced is not None and session.guards.get(state.oid) is guard
            if replaced is not None and failed:
                session.guards[state.oid], guard.replaces = replaced, None
        if failed:
            guard.close()


def _stands(newest: Guard | None, guard: Guard) -> bool:
    """Tell whether a guard is the newest of a session, or one that it will replace."""
    while newest is not None and newest is not guard:
        newest = newest.replaces
    return newest is guard
