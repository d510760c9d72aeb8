"""What is done behind the searches: proving, refreshing, sealing, merging.

Each function queues a task and returns at once; a task that is queued already is not
queued again. Short work runs in the keeper's thread. What builds segments runs in the
sealer's, so that no proof waits for a build. Failures show in `IndexState.last_error`.

A watch looks at the sizes of the database files now and then, as long as there is an
index and an open connection, and has tails counted where they changed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Iterator

import duckdb

from duckvec import held_tails, moves, policy
from duckvec.chains import current_chain
from duckvec.errors import BusyError
from duckvec.finding import settle
from duckvec.guards import pinned
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.leftovers import leftovers
from duckvec.proving import refresh_index
from duckvec.rewriting import OutdatedError
from duckvec.states import DatabaseState, IndexState, Session
from duckvec.tables import Table, read_only
from duckvec.upkeep import (
    locate,
    prove_where_needed,
    recording,
    recovered,
    tend_index,
)

logger = logging.getLogger("duckvec")

# How often the watch looks at the files, and how often tails are counted at most.
LOOK_SECONDS = 0.25
COUNT_SECONDS = 0.5
# What was there before the watch began is counted after this time.
FIRST_COUNT_SECONDS = 2.0
# While counting finds nothing to do it becomes rarer, down to this.
MOST_COUNT_SECONDS = 8.0
# A database in memory does not tell whether it changed: it is counted this often.
MOST_MEMORY_SECONDS = 2.0
# How long a statement may run before, or pause between, its searches.
PLANNED_SECONDS = 600.0
# Rows may take less space on disk than in memory: by this factor at most, most often.
COMPRESSION = 4


def watch(instance: Instance) -> None:
    """Look after the indexes of an instance as long as there is one."""
    states = [state for state in _states(instance) if _wanting(state)]
    if instance.build_threads and states:
        for state in states:
            if not state.counted_at:
                _note_sign(state)
        instance.watcher.watch(functools.partial(_look, instance))


def prepare(instance: Instance, state: DatabaseState) -> Task:
    """Prove the indexes of a database, in the background."""
    watch(instance)
    name = f'opening the indexes of database "{state.name}"'
    return instance.keeper.submit_once(
        name, lambda task: _settle_and_prepare(task, instance, state)
    )


@contextlib.contextmanager
def guarded(instance: Instance, session: Session) -> Iterator[None]:
    """Hold the guards of all indexed databases for a connection.

    Runs inside the user's call on that connection.
    """
    with read_only(session.cursor()) as cursor:
        states = instance.look_at_all(cursor)
    with contextlib.ExitStack() as stack:
        for state in states:
            if state.indexes:
                stack.enter_context(pinned(instance, session, state))
        yield


def refresh(
    instance: Instance, state: DatabaseState, index: IndexState, table: Table
) -> Task:
    """Look which indexed rows are gone, in the background."""
    name = f"looking for deleted rows of {table.path}"

    def work(task: Task) -> None:
        with recording(index):
            refresh_index(task, instance, state, index, table)

    return instance.keeper.submit_once(name, work)


def hold_tail(
    instance: Instance, state: DatabaseState, index: IndexState, table: Table
) -> None:
    """Hold the rows of a tail in memory, in the background."""
    instance.keeper.submit_once(
        f"holding the new rows of {table.path}",
        lambda task: held_tails.hold_tail(task, instance, state, index, table),
    )


def tend_all(instance: Instance) -> Task:
    """Index all rows that no segment covers yet, and merge, in the background."""

    def work(task: Task) -> None:
        leftovers.retry()
        for state in _states(instance):
            settle(instance, state).wait(cancels=False)
            if instance.databases.get(state.oid) is not state:
                continue  # it was detached
            _prepare(task, instance, state)
            for index in _wanting(state):
                with recording(index):
                    try:
                        tend_index(
                            task,
                            instance,
                            state,
                            index,
                            thorough=True,
                            threads=instance.threads,
                        )
                    except OutdatedError as error:  # others wait for this
                        raise BusyError(str(error)) from error
                    index.retry_at = 0.0
                    recovered(index)

    return instance.sealer.submit("indexing all new rows", work)


def _states(instance: Instance) -> list[DatabaseState]:
    return [state for state in list(instance.databases.values()) if state.has_catalog]


def _wanting(state: DatabaseState) -> list[IndexState]:
    """Return the indexes that new rows are written to."""
    if state.read_only:
        return []
    return [index for index in list(state.indexes.values()) if not index.idle]


def _settle_and_prepare(task: Task, instance: Instance, state: DatabaseState) -> None:
    with recording(*_wanting(state)):
        moves.settle(task, instance, state)
    if instance.databases.get(state.oid) is state:
        _prepare(task, instance, state)


def _prepare(task: Task, instance: Instance, state: DatabaseState) -> None:
    indexes = [i for i in list(state.indexes.values()) if not i.idle]
    if not indexes:
        return
    try:
        chain = current_chain(task, instance, state)
    except (duckdb.Error, OSError, RuntimeError, MemoryError) as error:
        for index in indexes:
            if not index.failures:  # a proof that goes well takes it away
                index.last_error = str(error)
        raise
    for index in indexes:
        task.check()
        with recording(index):
            table = prove_where_needed(task, instance, state, index, chain)
            if table is not None and not index.failures:
                index.last_error = None  # that there was no chain


# The watch


def _look(instance: Instance) -> float | None:
    """Have tails counted where that may be worth it; return seconds to the next."""
    states = [state for state in _states(instance) if _wanting(state)]
    kept = PLANNED_SECONDS if states else 0.0
    for session in list(instance.sessions.values()):
        session.let_go(time.monotonic() - kept)
    if not states or not instance.seems_open():
        return None
    leftovers.retry()
    if not instance.sealer.pending():
        for state in states:
            if _wants_counting(state):
                _submit(instance, state)
    return LOOK_SECONDS


def _wants_counting(state: DatabaseState) -> bool:
    """Tell whether a database may hold enough new rows, without opening anything."""
    now = time.monotonic()
    since = now - state.counted_at
    if since < COUNT_SECONDS:
        return False
    retries = [i.retry_at for i in _wanting(state) if i.retry_at]
    if any(retry_at < now for retry_at in retries):
        return True
    pause = min(COUNT_SECONDS * 2.0**state.quiet_looks, MOST_COUNT_SECONDS)
    sign, before = state.change_sign(), state.counted_sign
    if sign is None or before is None:
        return since >= min(pause, MOST_MEMORY_SECONDS)
    if not state.counted and since >= FIRST_COUNT_SECONDS:
        return True  # there may be a tail from before
    if sign == before:
        return False
    grown = sum(abs(new[0] - old[0]) for new, old in zip(sign, before, strict=True))
    least = min(index.row.dimension or 1 for index in _wanting(state))
    enough = policy.MINIMUM_SEGMENT_ROWS * 4 * least // COMPRESSION
    return grown >= enough or since >= pause


def _submit(instance: Instance, state: DatabaseState) -> None:
    _note_sign(state)
    state.counted = True

    def work(task: Task) -> None:
        done = False
        with recording(*_wanting(state)):
            settle(instance, state).wait(cancels=False)
        if instance.databases.get(state.oid) is not state:
            return  # it was detached
        for index in _wanting(state):
            if index.retry_at > time.monotonic():
                continue
            index.retry_at = 0.0
            with recording(index):
                done |= tend_index(
                    task,
                    instance,
                    state,
                    index,
                    thorough=False,
                    threads=instance.build_threads,
                )
                recovered(index)
                _hold_where_due(task, instance, state, index)
        state.quiet_looks = 0 if done else state.quiet_looks + 1
        state.counted_at = time.monotonic()

    instance.sealer.submit(f'looking after the indexes of "{state.name}"', work)


def _hold_where_due(
    task: Task, instance: Instance, state: DatabaseState, index: IndexState
) -> None:
    """Hold new rows in memory, before a search comes that would be too old for them."""
    table = locate(instance, state, index)
    if table is not None and index.is_for(table):
        held_tails.hold_tail(task, instance, state, index, table, anyway=False)


def _note_sign(state: DatabaseState) -> None:
    state.counted_at = time.monotonic()
    state.counted_sign = state.change_sign()
