"""Chains of guards, and the tiny commits and marks that tell whether one goes on.

A chain is a stretch of time in which no checkpoint moved a row of a database: guards
that overlap form one. Where one guard ends and another begins, a mark in the catalog
tells whether a checkpoint ran meanwhile: if none did, no row has moved, and the chain
goes on. All but the questions run in background threads, which may have to wait while a
FORCE CHECKPOINT waits for open transactions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import duckdb

from duckvec import catalog
from duckvec.errors import ClosedError
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.migrations import migrate
from duckvec.sizes import parse_bytes
from duckvec.states import DatabaseState, Session
from duckvec.tables import databases, read_only
from duckvec.tracking import READ_ONLY_CHAIN, Mark, new_chain

# Old epochs are deleted with every so manieth commit of one: what is only an insert is
# known again by the length that it adds to the log.
EPOCHS_KEPT = 256


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

    def work(armer_task: Task) -> int:
        commit_epoch(armer_task, instance, state)
        return mark(instance, state)

    name = f'marking database "{state.name}"'
    marking = instance.armer.submit(name, work)
    task.check()
    return int(marking.wait())


def commit_epoch(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    change: Callable[[duckdb.DuckDBPyConnection], None] | None = None,
) -> int:
    """Commit a new epoch, together with a change of the catalog if one is given.

    A change brings a catalog of an earlier version up to this one first.

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
            epoch = 1 + _last_epoch(instance, state)
            small = change is None and epoch % EPOCHS_KEPT != 0

            state.begun_commits += 1
            number = state.begun_commits

            def insert() -> None:
                catalog.insert_epoch(cursor, state.name, epoch, state.catalog_version)
                state.count_commit(epoch, number)

            try:
                if small:
                    task.beginning(insert)
                    state.overlook_own_commit(before)
                else:
                    task.beginning(lambda: catalog.begin(cursor, state.name))
                    if (state.name, state.oid) not in databases(cursor):
                        raise ClosedError(
                            f'database "{state.name}" was detached meanwhile'
                        )
                    version = state.catalog_version
                    if change is not None:
                        version = migrate(cursor, state.name, version)
                        change(cursor)
                    catalog.insert_epoch(cursor, state.name, epoch, version)
                    catalog.delete_epochs(cursor, state.name, epoch)
                    task.confirm()
                    cursor.execute("COMMIT")
                    state.catalog_version = version
                    state.count_commit(epoch, number)
            except BaseException:
                # Whether it was committed is not known: no mark holds across that.
                state.epoch = state.mark = None
                raise
        return epoch
    finally:
        cursor.close()


def _last_epoch(instance: Instance, state: DatabaseState) -> int:
    if state.epoch is None:
        # A transaction that writes, or may, could wait here, and nobody would know.
        with read_only(instance.background_cursor()) as look:
            # After a failure neither is known, nor whether a migration was committed.
            version = catalog.find_version(look, state.name)
            state.catalog_version = version or catalog.CATALOG_VERSION
            return catalog.last_epoch(look, state.name)
    return state.epoch


def mark(instance: Instance, state: DatabaseState) -> int:
    """Note how much of the catalog no checkpoint has written yet; return the chain.

    Called in the armer's thread right after `commit_epoch`: a later mark with as many
    fresh rows more as there were commits tells that no checkpoint ran in between. A
    guard that is older than the commit keeps its chain.

    Where no guard stands after the look, the last mark's chain goes on if no checkpoint
    ran, and else a new one begins.
    """
    sign = state.file_sign()
    cursor = instance.background_cursor()
    with state.committing, read_only(cursor):
        fresh = catalog.count_fresh_epochs(cursor, state.name)
        found = cursor.execute("SELECT current_setting('checkpoint_threshold')")
        state.log_limit = parse_bytes(found.fetchall()[0][0])
        commits = state.commits
    last = state.mark
    chain = standing_chain(instance, state)
    if chain is None and last is not None and last.leads_to(commits, fresh):
        chain = last.chain
    if chain is None:
        chain = new_chain()
    state.mark = Mark(chain, commits, fresh, sign)
    return chain
