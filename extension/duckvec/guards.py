"""Keeping row ids still while searches use them, at as small a price as possible.

A guard that stands while others write has a price: DuckDB refuses `CHECKPOINT` after an
update in place that the guard does not see, `FORCE CHECKPOINT` waits for the guard, and
the space of deleted rows is not given back. So a guard begins with a search, gives way
to a younger one with the first search after a change, and is let go soon after the last
search. When another one begins, a mark in the catalog tells whether a checkpoint ran
meanwhile: if none did, no row has moved, and the chain goes on.

Threads: `hold_guard` runs inside calls that the user makes on the session's connection.
Tiny commits are made in the armer's thread, which may have to wait while a FORCE
CHECKPOINT waits for open transactions; the watch's thread, which ends guards, never
waits for anything.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator

import duckdb

from duckvec import catalog
from duckvec.errors import VectorIndexError
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.sizes import parse_bytes
from duckvec.sql_text import quote_identifier
from duckvec.states import DatabaseState, Session
from duckvec.tables import databases, read_only
from duckvec.tracking import READ_ONLY_CHAIN, Guard, Mark, new_chain

logger = logging.getLogger("duckvec")

# How often the watch looks at the guards that stand.
LOOK_SECONDS = 0.05
# A guard goes this long after the last search where somebody wrote since,
CHANGED_SECONDS = 0.1
# and this long after it where nobody did: the next search has to make a commit.
IDLE_SECONDS = 1.0
# An attached database, which may be detached and then has to close.
ATTACHED_SECONDS = 0.25
# A database in memory does not tell whether it changed: its guards are renewed by age.
UNTOLD_SECONDS = 0.25
# A guard that cannot be armed, or a commit that cannot be made, this long: a FORCE
# CHECKPOINT may be waiting for it. Longer than any search of ours waits.
WAITING_SECONDS = 2.0
# Old epochs are deleted with every so manieth commit of one: what is only an insert is
# known again by the length that it adds to the log.
EPOCHS_KEPT = 256
PIN_TRIES = 3
# How often a log that grew long under guards is looked at.
LOG_SECONDS = 1.0


def hold_guard(
    instance: Instance, session: Session, state: DatabaseState
) -> Task | None:
    """See to it that the session has a guard younger than the last change of others.

    Called only inside a call that the user makes on the session's connection. The guard
    that is replaced stands until the new one is armed; `chain_of` tells whether one of
    them guards by now.

    Returns:
        The task that arms the guard; None where that is over.
    """
    if state.read_only or not state.has_catalog:
        return None
    now, changes = time.monotonic(), state.look()
    with instance.lock:
        guard = session.guards.get(state.oid)
        if guard is not None and guard.changes == changes:
            young = now - guard.begun_at < UNTOLD_SECONDS
            if state.path is not None or young or not guard.armed:
                guard.use(state.commits, state.log_bytes())
                return None if guard.armed else guard.arming
    cursor = session.cursor()
    try:
        begun = Guard(cursor, f"{catalog.schema_path(state.name)}.epoch", changes)
    except duckdb.Error as error:  # the catalog was dropped, say
        cursor.close()
        logger.warning("%s", error)
        return None
    begun.use(state.commits, state.log_bytes())
    begun.replaces = guard
    with instance.lock:
        session.guards[state.oid] = begun
    instance.warden.watch(functools.partial(_look_at_guards, instance))
    name = f'guarding the row ids of database "{state.name}"'
    begun.arming = instance.armer.submit(name, lambda task: _arm(task, instance, state))
    return begun.arming


def await_arming(session: Session) -> None:
    """Wait a moment for the guards that searches of the session began.

    Then the tiny commit came after the caller's transaction began, which so is one that
    no checkpoint overlooks, and the guards that were replaced are in nobody's way.
    """
    for guard in list(session.guards.values()):
        if not guard.armed and guard.arming is not None:
            guard.arming.wait_briefly()


@contextlib.contextmanager
def pinned(
    instance: Instance, session: Session, state: DatabaseState
) -> Iterator[None]:
    """Hold the session's guard for the length of a long call of the user's on it."""
    guard = _pin(instance, session, state)
    try:
        yield
    finally:
        with instance.lock:
            if guard is not None:
                guard.pins -= 1
                guard.used_at = time.monotonic()


def _pin(instance: Instance, session: Session, state: DatabaseState) -> Guard | None:
    """Return an armed guard that is not let go of; None where none is needed or got."""
    for _ in range(PIN_TRIES):  # the watch may come first where this thread was slow
        arming = hold_guard(instance, session, state)
        if arming is not None:
            arming.wait()
        with instance.lock:
            guard = session.guards.get(state.oid)
            if guard is not None and guard.armed:
                guard.pins += 1
                return guard
    return None


def chain_of(session: Session, state: DatabaseState) -> int | None:
    """Return the chain of guards that protects the session's row ids, if any."""
    if state.read_only:
        return READ_ONLY_CHAIN
    guard = session.guards.get(state.oid)
    while guard is not None and guard.chain is None:
        guard = guard.replaces
    return None if guard is None else guard.chain


def standing_chain(instance: Instance, state: DatabaseState) -> int | None:
    """Return the chain of the armed guards whose connections are open, if any.

    There is one at most: a guard joins the chain of those that stand when it is
    armed.
    """
    if state.read_only:
        return READ_ONLY_CHAIN
    for session in list(instance.sessions.values()):
        chain = chain_of(session, state)
        if chain is not None and session.open:
            return chain
    return None


def current_chain(task: Task, instance: Instance, state: DatabaseState) -> int:
    """Return the chain under which row ids hold now, whether or not a guard stands.

    Called in the keeper's and the sealer's threads. Where no guard stands, a commit and
    a mark tell whether a checkpoint ran since the last one. What is read afterwards is
    right for whoever holds a guard of this chain later: a checkpoint in between shows
    in the next mark, which then begins another chain.
    """
    chain = standing_chain(instance, state)
    if chain is not None:
        return chain

    def mark(armer_task: Task) -> int:
        commit_epoch(armer_task, instance, state)
        return _mark(instance, state, standing_chain)

    name = f'marking database "{state.name}"'
    marking = instance.armer.submit(name, mark)
    task.check()
    return int(marking.wait())


def commit_epoch(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    change: Callable[[duckdb.DuckDBPyConnection], None] | None = None,
) -> int:
    """Commit a new epoch, together with a change of the catalog if one is given.

    Called in background threads only.

    Args:
        task: the task that this is part of.
        instance: the DuckDB instance.
        state: a database with a catalog, not read-only.
        change: what else the transaction does, on the cursor it is given.

    Returns:
        The epoch.
    """
    cursor = instance.background_cursor()
    try:
        with contextlib.ExitStack() as stack:
            task.beginning(lambda: stack.enter_context(state.committing))
            before = state.look_closely()
            known, state.epoch = state.epoch, None  # unless this succeeds
            last = catalog.last_epoch(cursor, state.name) if known is None else known
            epoch = last + 1
            if change is None and epoch % EPOCHS_KEPT:
                insert = functools.partial(catalog.insert_epoch, cursor, state.name)
                task.beginning(lambda: insert(epoch))
                state.overlook_own_commit(before)
            else:
                task.beginning(lambda: catalog.begin(cursor, state.name))
                if change is not None:
                    change(cursor)
                catalog.insert_epoch(cursor, state.name, epoch)
                catalog.delete_epochs(cursor, state.name, epoch)
                cursor.execute("COMMIT")
            state.epoch = epoch
            state.commits += 1
        return epoch
    finally:
        cursor.close()


def _arm(task: Task, instance: Instance, state: DatabaseState) -> None:
    with instance.lock:
        waiting = [
            (session, session.guards[state.oid])
            for session in instance.sessions.values()
            if state.oid in session.guards and not session.guards[state.oid].armed
        ]
    if not waiting:
        return
    commit_epoch(task, instance, state)
    chain = standing_chain(instance, state)
    if chain is None or state.mark is None or state.mark.chain != chain:
        chain = _mark(instance, state, standing_chain)
    for session, guard in waiting:
        with instance.lock:
            if session.guards.get(state.oid) is guard:
                guard.chain = chain
                guard.used_at = time.monotonic()
            replaced, guard.replaces = guard.replaces, None
        if replaced is not None:
            replaced.close()


def _mark(
    instance: Instance,
    state: DatabaseState,
    chain_that_stands: Callable[[Instance, DatabaseState], int | None],
) -> int:
    """Note how much of the catalog no checkpoint has written yet; return the chain.

    Called in the armer's thread right after `commit_epoch`: a later mark with as many
    fresh rows more as there were commits tells that no checkpoint ran in between. A
    guard that is older than the commit keeps its chain.

    Args:
        instance: the DuckDB instance.
        state: the database.
        chain_that_stands: returns the chain of a guard that still stands after the
            look; None where there is none, which goes on with the last mark's chain
            or begins a new one.
    """
    sign = state.file_sign()
    cursor = instance.background_cursor()
    with state.committing, read_only(cursor):
        fresh = catalog.count_fresh_epochs(cursor, state.name)
        found = cursor.execute("SELECT current_setting('checkpoint_threshold')")
        state.log_limit = parse_bytes(found.fetchall()[0][0])
        commits = state.commits
    last = state.mark
    chain = chain_that_stands(instance, state)
    if chain is None and last is not None and last.leads_to(commits, fresh):
        chain = last.chain
    if chain is None:
        chain = new_chain()
    state.mark = Mark(chain, commits, fresh, sign)
    return chain


# Letting go


def _look_at_guards(instance: Instance) -> float | None:
    """Let go of guards that nobody needs; return seconds to the next look, if any."""
    with instance.lock:
        held = [
            (session, oid)
            for session in instance.sessions.values()
            for oid in session.guards
        ]
    left = False
    for session, oid in held:
        state, guard = instance.databases.get(oid), session.guards.get(oid)
        now = time.monotonic()
        if guard is None:
            continue
        late = not guard.armed and now - guard.begun_at > WAITING_SECONDS
        if state is None or late or session.seems_closed(state.log_bytes(), now):
            _release(instance, session, oid, guard.used_at)
        elif not (guard.armed and _is_over(instance, session, state, guard)):
            left = True
            if guard.armed:
                _keep_mark_and_log(instance, state, guard)
    return LOOK_SECONDS if left else None


def _is_over(
    instance: Instance, session: Session, state: DatabaseState, guard: Guard
) -> bool:
    """End a guard that is not needed any more; return whether it is ended."""
    used_at, now = guard.used_at, time.monotonic()
    idle = now - used_at
    if guard.pins:
        return False
    if state.look() != guard.changes and _was_committed_since(state, guard):
        marked = state.mark is None or state.mark.file_sign == state.file_sign()
        if idle < (CHANGED_SECONDS if marked else IDLE_SECONDS):
            return False
        return _release(instance, session, state.oid, used_at)
    enough = ATTACHED_SECONDS if state.attached else IDLE_SECONDS
    if idle < enough or instance.keeper.pending():
        return False
    if guard.ending != used_at:
        guard.ending, guard.ending_since = used_at, now
        name = f'ending a guard of database "{state.name}"'
        instance.armer.submit(
            name, lambda task: _follow(task, instance, session, state, guard, used_at)
        )
        return False
    # What keeps that commit waiting may be a FORCE CHECKPOINT that waits for the guard.
    if guard.followed != used_at and now - guard.ending_since < WAITING_SECONDS:
        return False
    return _release(instance, session, state.oid, used_at)


def _was_committed_since(state: DatabaseState, guard: Guard) -> bool:
    """Tell whether a commit surely came after the last search under a guard began.

    Then all searches under it are transactions that no checkpoint overlooks. A change
    of the file alone may be a checkpoint, or what a bulk load writes ahead.
    """
    return state.commits > guard.commits_at_use or state.log_bytes() > guard.log_at_use


def _follow(
    task: Task,
    instance: Instance,
    session: Session,
    state: DatabaseState,
    guard: Guard,
    used_at: float,
) -> None:
    """Commit after all searches that rely on a guard began, so that it may end."""
    try:
        if state.attached and _was_detached(instance, state):
            _release(instance, session, state.oid, used_at)
            return
        commit_epoch(task, instance, state)
    except (duckdb.Error, VectorIndexError) as error:  # detached, or closed meanwhile
        logger.debug("no commit before the end of a guard: %s", error)
        return
    guard.followed = used_at


def _was_detached(instance: Instance, state: DatabaseState) -> bool:
    """Tell whether a database is attached no more, and then forget it."""
    with read_only(instance.background_cursor()) as cursor:
        attached = {oid for _, oid in databases(cursor)}
    if state.oid in attached:
        return False
    instance.forget_detached(attached)
    return True


def _keep_mark_and_log(instance: Instance, state: DatabaseState, guard: Guard) -> None:
    """After a checkpoint under a guard, mark anew; checkpoint a log grown too long."""
    mark = state.mark
    if mark is not None and mark.file_sign != state.file_sign():
        instance.armer.submit_once(
            f'marking database "{state.name}"',
            lambda task: _mark_anew(task, instance, state),
        )
    now = time.monotonic()
    if guard.changes == state.changes and now - state.log_looked_at > LOG_SECONDS:
        state.log_looked_at = now
        if state.log_bytes() > state.log_limit:
            instance.armer.submit_once(
                f'checkpointing database "{state.name}"',
                lambda task: _checkpoint_a_long_log(task, instance, state),
            )


def _mark_anew(task: Task, instance: Instance, state: DatabaseState) -> None:
    if standing_chain(instance, state) is None:
        return
    commit_epoch(task, instance, state)
    _mark(instance, state, standing_chain)


def _checkpoint_a_long_log(
    task: Task, instance: Instance, state: DatabaseState
) -> None:
    """Do what commits do by themselves where no guard stands; it moves nothing."""
    cursor = instance.background_cursor()
    try:
        task.beginning(
            lambda: cursor.execute(f"CHECKPOINT {quote_identifier(state.name)}")
        )
    except duckdb.TransactionException as error:
        logger.debug("a checkpoint waits for its time: %s", error)
    finally:
        cursor.close()


def _release(instance: Instance, session: Session, oid: int, used_at: float) -> bool:
    """End the session's guard unless it was used after `used_at`."""
    with instance.lock:
        guard = session.guards.get(oid)
        if guard is None or guard.pins or guard.used_at != used_at:
            return guard is None
        del session.guards[oid]
    try:
        guard.close()
    except duckdb.Error as error:
        logger.debug("a guard was closed with its connection: %s", error)
    return True
