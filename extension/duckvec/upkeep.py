"""Looking after one index: proving it, sealing its tail, merging and compacting.

The functions run in background threads. `policy` says when something is due; nothing
here is needed for right answers.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import duckdb

from duckvec import policy
from duckvec.backoff import MOST_RETRY_SECONDS, retry_pause
from duckvec.catalog import IndexRow
from duckvec.chains import current_chain, standing_chain
from duckvec.errors import (
    ArtifactError,
    BuildCancelledError,
    BusyError,
    ClosedError,
    NotIndexableError,
    UnreadableArtifactError,
)
from duckvec.instance import Instance
from duckvec.keeper import FAILURES, Task
from duckvec.proving import prove_index, refresh_index
from duckvec.rewriting import OutdatedError, rewrite_index
from duckvec.sql_text import quote_identifier
from duckvec.states import DatabaseState, IndexState
from duckvec.steps import changing, column_of
from duckvec.tables import Table, find_table_at, has_column, read_only
from duckvec.tracking import Generation

logger = logging.getLogger("duckvec")

# How often rows may move, or others change the index, before work on it is put off.
MOST_MISSES = 5
# Failures of a proof that may have gone a little later.
PASSING = (UnreadableArtifactError, OSError, MemoryError, duckdb.IOException)


@dataclass(frozen=True)
class Counts:
    """Rows of a table now: all, those above the watermark, and those with a vector."""

    rows: int
    tail_rows: int
    tail_vectors: int


def locate(instance: Instance, state: DatabaseState, index: IndexState) -> Table | None:
    """Return the table of an index as it is now; None where it is gone.

    A table that took its name, and was not found to be its own by `moves`, is another.
    """
    row = index.row
    with read_only(instance.background_cursor()) as cursor:
        table = find_table_at(cursor, state.name, row.schema_name, row.table_name)
    if table is None or table.database_oid != state.oid or table.kind != "table":
        return None
    if index.seen is not None and index.seen.oid != table.oid:
        return None
    return table


def why_stale(index: IndexState, table: Table | None) -> str:
    """Return the sentence for an index whose table or column is not there."""
    row = index.row
    types = [
        data_type
        for name, data_type in (table.columns if table else ())
        if name.lower() == row.column_name.lower()
    ]
    if types:
        return (
            f'column "{row.column_name}" of table "{row.table_name}" is {types[0]} '
            "now; make it a vector column again, or remove its index with "
            "drop_vector_index"
        )
    return (
        f'column "{row.column_name}" of table "{row.table_name}" is gone; '
        "drop_vector_index removes its index"
    )


def prove_where_needed(
    task: Task, instance: Instance, state: DatabaseState, index: IndexState, chain: int
) -> Table | None:
    """Match an index to its table unless that is done for the chain.

    Returns:
        The table; None where the index cannot be matched to it.
    """
    with changing(task, index):
        table = locate(instance, state, index)
        generation = index.generation
        identity = table.identity if table else None
        failed_before = index.failed is not None
        proven = generation is not None and generation.chain == chain
        if table and index.is_for(table) and proven:
            return table
        if index.cannot_be_proven(chain, identity):
            return None
        index.failed = (chain, identity)  # unless this succeeds
        index.prove_again_at = math.inf
        if table is None or not has_column(table, index.row.column_name):
            index.last_error = index.last_error or why_stale(index, table)
            return None
        try:
            prove_index(task, instance, state, index, table, chain)
            index.failed = None
            if failed_before:  # which was recorded; a build is tried again anyway
                index.last_error, index.failures = None, 0
        except (BusyError, ClosedError):
            index.failed = None  # it was stopped; the next search asks again
            raise
        except PASSING:
            index.prove_again_at = time.monotonic() + retry_pause(index.failures)
            raise
        return table


def tend_index(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    index: IndexState,
    *,
    thorough: bool,
    threads: int,
) -> bool:
    """Seal and merge what is due; return whether anything was.

    Args:
        task: the task that this runs in.
        instance: the DuckDB instance.
        state: a database that can be written.
        index: the index.
        thorough: whether every tail that may become a segment does, for somebody who
            waits for it.
        threads: for the library.
    """
    done, misses = False, 0
    while True:
        task.check()
        instance.require_open()
        try:
            if not _improve(task, instance, state, index, thorough, threads):
                return done
            done = True
        except OutdatedError:
            misses += 1
            if misses == MOST_MISSES:
                raise


def compact_index(
    task: Task, instance: Instance, state: DatabaseState, index: IndexState
) -> IndexRow:
    """Write an index anew as full segments without deleted rows, the tail included.

    Raises:
        NotIndexableError: its table or column is gone or cannot be matched to it.
    """
    misses = 0
    while True:
        if index.fault is not None:
            raise NotIndexableError(index.fault)
        if index.row.dropped:
            raise NotIndexableError(
                f'the index on "{index.row.table_name}" was dropped meanwhile; create '
                "one with create_vector_index"
            )
        chain = current_chain(task, instance, state)
        index.failed = None
        table = prove_where_needed(task, instance, state, index, chain)
        if table is None:
            raise NotIndexableError(index.last_error or "the index cannot be matched")
        refresh_index(task, instance, state, index, table)
        base = index.generation
        if base is None:
            continue
        counts = _count(instance, table, index, base)
        sizes = _sizes(base)
        _, capacity = _shape(table, index)
        chosen = policy.choose_compaction(sizes, capacity, counts.tail_vectors)
        if not chosen and not counts.tail_vectors:
            return index.row
        try:
            return rewrite_index(
                task,
                instance,
                state,
                index,
                table,
                base,
                merged=[base.segments[number].segment for number in chosen],
                tail_rows=None,
                threads=instance.threads,
                gently=False,
            )
        except OutdatedError:
            misses += 1
            if misses == MOST_MISSES:
                raise


def _improve(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    index: IndexState,
    thorough: bool,
    threads: int,
) -> bool:
    """Do the one thing that is most due; return whether there was one."""
    if index.idle:
        return False
    table = locate(instance, state, index)
    if not thorough and (table is None or not _is_due(instance, state, index, table)):
        return False
    chain = current_chain(task, instance, state)
    table = prove_where_needed(task, instance, state, index, chain)
    base = index.generation
    if table is None:
        # Nothing helps but the next search's try, or a new index.
        index.retry_at = time.monotonic() + MOST_RETRY_SECONDS
        return False
    if base is None or base.chain != chain:
        raise OutdatedError(f"the index on {table.label} was changed meanwhile")
    counts = _count(instance, table, index, base)
    gone = base.covered_rows - (counts.rows - counts.tail_rows)
    if gone > policy.LOOK_SHARE * base.covered_rows:
        refresh_index(task, instance, state, index, table)
        base = index.generation
        if base is None:
            return False
    dimension, capacity = _shape(table, index)
    least = policy.MINIMUM_SEGMENT_ROWS
    if not thorough:
        least = policy.rows_to_seal(dimension, capacity, base.entries, proven=True)
    tail_rows: int | None = 0
    chosen: list[int] = []
    if counts.tail_vectors >= min(least, capacity):
        # Large tails are published segment by segment.
        tail_rows = capacity if counts.tail_rows > capacity else None
    else:
        chosen = policy.choose_merge(_sizes(base), capacity)
        alone = len(chosen) == 1 and not thorough
        if not chosen or (alone and _is_postponed(state, index)):
            return False
    rewrite_index(
        task,
        instance,
        state,
        index,
        table,
        base,
        merged=[base.segments[number].segment for number in chosen],
        tail_rows=tail_rows,
        threads=threads,
        gently=not thorough,
    )
    return True


def _is_due(
    instance: Instance, state: DatabaseState, index: IndexState, table: Table
) -> bool:
    """Tell by counts alone, and without writing, whether an index wants work."""
    if not has_column(table, index.row.column_name):
        return False
    generation = index.generation if index.is_for(table) else None
    counts = _count(instance, table, index, generation)
    dimension, capacity = _shape(table, index)
    tail = counts.tail_vectors
    if generation is None:
        entries = sum(segment.row.row_count for segment in index.segments)
        tail = max(0, counts.rows - entries)
        gone = max(0, entries - counts.rows)
    else:
        entries = generation.entries
        gone = generation.covered_rows - (counts.rows - counts.tail_rows)
        chosen = policy.choose_merge(_sizes(generation), capacity)
        if len(chosen) > 1 or (chosen and not _is_postponed(state, index)):
            return True
    many_gone = gone > policy.GONE_SHARE * max(1, entries)
    if many_gone and not _is_postponed(state, index):
        return True
    proven = generation is not None and row_ids_hold(instance, state, generation)
    return tail >= policy.rows_to_seal(dimension, capacity, entries, proven)


def _is_postponed(state: DatabaseState, index: IndexState) -> bool:
    """Tell whether a segment with many deleted rows stays while searches go on."""
    now = time.monotonic()
    if now - state.searched_at > policy.QUIET_SECONDS:
        index.postponed_since = None
        return False
    if index.postponed_since is None:
        index.postponed_since = now
    return now - index.postponed_since < policy.MOST_POSTPONED_SECONDS


def row_ids_hold(
    instance: Instance, state: DatabaseState, generation: Generation
) -> bool:
    """Tell whether a generation's row ids still hold, as far as one look tells."""
    if standing_chain(instance, state) == generation.chain:
        return True
    mark = state.mark
    return (
        mark is not None
        and mark.chain == generation.chain
        and mark.file_sign == state.file_sign()
    )


def _count(
    instance: Instance, table: Table, index: IndexState, generation: Generation | None
) -> Counts:
    column = quote_identifier(index.row.column_name)
    watermark = generation.watermark if generation else -1
    with read_only(instance.background_cursor()) as cursor:
        rows, tail_rows, tail_vectors = cursor.execute(
            f"SELECT (SELECT count(*) FROM {table.path}), count(*), count({column}) "
            f"FROM {table.path} WHERE rowid > {watermark:d}"
        ).fetchall()[0]
    return Counts(int(rows), int(tail_rows), int(tail_vectors))


def _sizes(generation: Generation) -> list[policy.Size]:
    return [
        policy.Size(
            len(part.rowids),
            len(part.rowids) if part.alive is None else int(part.alive.sum()),
        )
        for part in generation.segments
    ]


def _shape(table: Table, index: IndexState) -> tuple[int, int]:
    """Return the length of an index's vectors, and how many fill a segment."""
    dimension = index.row.dimension or column_of(table, index.row).length or 1
    return dimension, policy.segment_capacity(index.row.index_file_size, dimension)


@contextlib.contextmanager
def recording(*indexes: IndexState) -> Iterator[None]:
    """Keep a failure of background work with its indexes, and put off the next try.

    Work that goes well later ends by `recovered`.
    """
    try:
        yield
    except (ClosedError, BuildCancelledError):
        raise
    except BusyError:
        for index in indexes:
            index.retry_at = time.monotonic() + retry_pause(0)
        raise
    except OutdatedError as error:
        logger.info("%s", error)
        for index in indexes:
            index.retry_at = time.monotonic() + retry_pause(0)
    except FAILURES as error:
        lasting = isinstance(error, ArtifactError) and not isinstance(error, PASSING)
        if not indexes:  # of a database that can only be read
            logger.warning("%s", error)
        for index in indexes:
            index.last_error = str(error)
            # Against what lasts only building the index again helps.
            pause = MOST_RETRY_SECONDS if lasting else retry_pause(index.failures)
            index.failures += 1
            index.retry_at = time.monotonic() + pause
            logger.warning('index on "%s": %s', index.row.table_name, error)


def recovered(index: IndexState) -> None:
    """Forget a failure of work on an index that went well, or is not due, by now."""
    if index.failures and index.failed is None and not index.retry_at:
        index.succeeded()
