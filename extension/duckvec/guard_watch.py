"""The watch: lets go of guards that nobody needs, and keeps marks and the log.

It runs in the warden's thread, which never waits for anything; what may wait is left to
the armer's.
"""

from __future__ import annotations

import functools
import logging
import time

import duckdb

from duckvec.chains import commit_epoch, mark, standing_chain
from duckvec.errors import VectorIndexError
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.sql_text import quote_identifier
from duckvec.states import DatabaseState, Session
from duckvec.tables import databases, read_only
from duckvec.tracking import Guard

logger = logging.getLogger("duckvec")

# How often the watch looks at the guards that stand.
LOOK_SECONDS = 0.05
# A guard goes this long after the last search where somebody wrote since,
CHANGED_SECONDS = 0.1
# and this long after it where nobody did: the next search has to make a commit.
IDLE_SECONDS = 1.0
# An attached database, which may be detached and then has to close.
ATTACHED_SECONDS = 0.25
# A guard that cannot be armed, or a commit that cannot be made, this long: a FORCE
# CHECKPOINT may be waiting for it. Longer than any search of ours waits.
WAITING_SECONDS = 2.0
# How often a log that grew long under guards is looked at.
LOG_SECONDS = 1.0


def watch_guards(instance: Instance) -> None:
    """Look after the guards of an instance as long as any stands."""
    instance.warden.watch(functools.partial(_look_at_guards, instance))


def _look_at_guards(instance: Instance) -> float | None:
    """Let go of guards that nobody needs; return seconds to the next look, if any."""
    with instance.lock:
        held = [
            (session, oid)
            for session in list(instance.sessions.values())
            for oid in list(session.guards)
        ]
    left = False
    for session, oid in held:
        state, guard = instance.databases.get(oid), session.guards.get(oid)
        now = time.monotonic()
        if guard is None:
            continue
        late = not guard.armed and now - guard.waiting_since > WAITING_SECONDS
        if state is None or late or session.seems_closed(state.log_bytes(), now):
            # In a detached database nobody can make a checkpoint.
            detached = state is None
            _release(instance, session, oid, guard.used_at, safely=detached)
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
    changed = state.look() != guard.changes and not guard.from_elsewhere
    if changed and _was_committed_since(state, guard):
        marked = state.mark is None or state.mark.file_sign == state.file_sign()
        if idle < (CHANGED_SECONDS if marked else IDLE_SECONDS):
            return False
        return _release(instance, session, state.oid, used_at)
    if idle < (ATTACHED_SECONDS if state.attached else IDLE_SECONDS):
        return False
    if instance.keeper.pending():
        # What its work waits for may be a FORCE CHECKPOINT, and that for the guard.
        waiting = (instance.keeper, instance.armer)
        held_up = max(each.held_up_seconds() for each in waiting) > WAITING_SECONDS
        return held_up and _release(instance, session, state.oid, used_at, safely=False)
    if guard.ending != used_at:
        guard.ending, guard.ending_since = used_at, now
        name = f'ending a guard of database "{state.name}"'
        instance.armer.submit(
            name, lambda task: _follow(task, instance, session, state, guard, used_at)
        )
        return False
    # What keeps that commit waiting may be a FORCE CHECKPOINT that waits for the guard.
    followed = guard.followed == used_at
    if not followed and now - guard.ending_since < WAITING_SECONDS:
        return False
    return _release(instance, session, state.oid, used_at, safely=followed)


def _was_committed_since(state: DatabaseState, guard: Guard) -> bool:
    """Tell whether a commit surely came after the last search under a guard began.

    Then all searches under it are transactions that no checkpoint overlooks. A change
    of the file alone may be a checkpoint, or what a bulk load writes ahead.
    """
    return (
        state.last_commit > guard.commits_at_use or state.log_bytes() > guard.log_at_use
    )


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
    last = state.mark
    if last is not None and last.file_sign != state.file_sign():
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
    mark(instance, state)


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


def _release(
    instance: Instance,
    session: Session,
    oid: int,
    used_at: float,
    *,
    safely: bool = True,
) -> bool:
    """End the session's guard unless it was used after `used_at`.

    Args:
        instance: the DuckDB instance.
        session: the connection.
        oid: number of the database.
        used_at: when a search last relied on the guard, as far as the caller knows.
        safely: whether a commit came after all searches under it had begun.
    """
    with instance.lock:
        guard = session.guards.get(oid)
        if guard is None or guard.pins or guard.used_at != used_at:
            return guard is None
        del session.guards[oid]
        session.losses[oid] += not safely
    try:
        guard.close()
    except duckdb.Error as error:
        logger.debug("a guard was closed with its connection: %s", error)
    return True
