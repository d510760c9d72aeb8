"""Finding the index that a search means, under whatever name its table has by now."""

from __future__ import annotations

from duckvec import moves
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.states import DatabaseState, IndexState
from duckvec.tables import Table, read_only

# How long a search waits to learn whether a table that was made again has its index.
SETTLE_SECONDS = 5.0
TRIES = 3


def settle(instance: Instance, state: DatabaseState) -> Task:
    """Let indexes follow renamed tables, and drop those of dropped ones.

    What is committed by now counts: a task that has begun already would not do.
    """
    return instance.keeper.submit_once(
        f'following the tables of database "{state.name}"',
        lambda task: moves.settle(task, instance, state),
        join=False,
    )


def find_index(
    instance: Instance, state: DatabaseState, table: Table, column_name: str
) -> IndexState | None:
    """Return the index of a column, which may have had another name a moment ago.

    Called inside a search; waits where a table was made again, or was not there when
    the catalog was read, because which metric a search has depends on it.
    """
    if table.kind != "table" or not state.indexes:
        return None
    index = instance.index(table, column_name)
    if state.read_only:
        return index
    for one in list(state.indexes.values()):
        seen = one.seen
        same_column = one.row.column_name.lower() == column_name.lower()
        if seen is not None and seen.oid == table.oid and same_column:
            if not _is_at(one, table):
                # The catalog has to follow before the file is closed: the number that
                # tells for sure which table it is does not outlive that.
                settle(instance, state).wait_briefly(SETTLE_SECONDS)
            return one  # whatever its table is called by now
    for _ in range(TRIES):
        known = [one for one in (index,) if one is not None]
        if index is None:
            known = [one for one in list(state.indexes.values()) if _may_be(one, table)]
        if all(_is_at(one, table) for one in known):
            return index
        if not settle(instance, state).wait_briefly(SETTLE_SECONDS):
            break
        index = instance.index(table, column_name)
    return None  # as far as is known, another table took the name


def look_into(
    instance: Instance, state: DatabaseState, index: IndexState, table: Table
) -> None:
    """Find out in the background, after a change, whether rows have other vectors now.

    The search goes on meanwhile; `is_looked_into` waits for the answer.
    """
    with instance.lock:
        generation, extended = index.generation, index.extended
    sign = state.change_sign()
    if state.read_only or generation is None:
        return
    numbers = generation.number, extended.number if extended else None
    if sign is not None and index.witnessed == (numbers, sign):
        return

    def work(task: Task) -> None:
        with read_only(instance.background_cursor()) as cursor:
            known = extended or generation
            rewritten = moves.is_rewritten(cursor, index, table, known)
        settled = sign is None or state.settled(sign)
        with instance.lock:
            if settled:  # else a commit may be in the log that was not visible yet
                index.witnessed = (numbers, sign)
            if rewritten and index.generation is generation:
                index.forget()  # a proof mends it

    index.looking = instance.armer.submit(f"looking at a row of {table.path}", work)


def is_looked_into(index: IndexState) -> bool:
    """Wait for what `look_into` began; tell whether it was found out.

    Called while a search by the index runs, before its generation is used.
    """
    task = index.looking
    return task is None or (task.wait_briefly() and not task.failed)


def _is_at(index: IndexState, table: Table) -> bool:
    """Tell whether an index was seen last at a table of this number and name."""
    seen = index.seen
    if seen is None:
        return index.looked is not None and index.looked == table.identity
    return (seen.oid, seen.schema, seen.name) == (
        table.oid,
        table.schema,
        table.name,
    ) and table.has_column(index.row.column_name)


def _may_be(index: IndexState, table: Table) -> bool:
    """Tell whether an index may have come to a table under other names."""
    if index.seen is None:
        return index.looked is None
    return index.seen.oid == table.oid
