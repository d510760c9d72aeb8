"""Matching an index to its table: after opening, and when many rows are gone.

The functions run in background threads, on cursors of their own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from duckvec.errors import ColumnError
from duckvec.hashing import hash_vectors
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.metrics import METRICS
from duckvec.reader import count_rows, read_rowids, read_vectors
from duckvec.segments import verifying
from duckvec.states import DatabaseState, IndexState
from duckvec.steps import (
    advance_epoch,
    begin_seal,
    column_of,
    snapshot,
    store_plan,
    without_gone,
)
from duckvec.tables import Table
from duckvec.tracking import UNSEALED, Generation, Seal, prove


def prove_index(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    index: IndexState,
    table: Table,
    chain: int,
) -> None:
    """Match the entries of an index to the rows of its table, and publish the result.

    After opening a database nothing else says where its rows are. The caller holds the
    index by `changing`.

    Args:
        task: the task that this runs in.
        instance: the DuckDB instance.
        state: the database of the table.
        index: the index; its segments' files are verified meanwhile, so that no search
            waits for that.
        table: the table as it is now.
        chain: the chain under which row ids hold now.
    """
    row = index.row
    column = column_of(table, row)
    if not index.segments:
        # Created before any row was there: every row is in the tail.
        with instance.lock:
            index.use(
                Generation(chain, Seal(UNSEALED, UNSEALED), table.identity, -1, 0, ())
            )
        return
    if row.dimension is None:
        return
    if column.length not in (None, row.dimension):
        raise ColumnError(
            f"the vectors of {table.label} have {column.length} dimensions now, and "
            f"{row.dimension} in the index; create it again"
        )

    def check() -> None:
        task.check()
        instance.require_open()

    with (
        snapshot(task, instance, state, table) as cursor,
        verifying(index.segments, instance.threads, check) as verified,
    ):
        seal_transaction = begin_seal(instance, state)
        rowids, hashes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        for batch in read_vectors(
            cursor, table, column, row.dimension, METRICS[row.metric]
        ):
            check()
            rowids.append(batch.rowids)
            hashes.append(hash_vectors(batch.vectors))
        _, _, last = count_rows(cursor, table, column)
        ids = np.concatenate(rowids)
        order = np.argsort(ids)
        live, watermark = prove(
            index.segments, ids[order], np.concatenate(hashes)[order], last
        )
        covered = len(read_rowids(cursor, table, watermark))
        verified()
    epoch = advance_epoch(task, instance, state)
    with instance.lock:
        if not index.failures:  # else it tells of a build that will be tried again
            index.last_error = None
        index.use(
            Generation(
                chain=chain,
                seal=Seal(seal_transaction, epoch),
                table_identity=table.identity,
                watermark=watermark,
                covered_rows=covered,
                segments=live,
            )
        )
    store_plan(task, instance, state, row, table)


def refresh_index(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    index: IndexState,
    table: Table,
) -> None:
    """Look which rows of a generation are gone, so that searches skip them."""
    old = index.generation
    if old is None or old.table_identity != table.identity:
        return
    with snapshot(task, instance, state, table) as cursor:
        seal_transaction = instance.seal_transaction(state.name)
        there = read_rowids(cursor, table, old.watermark)
    epoch = advance_epoch(task, instance, state)
    live = tuple(without_gone(part, there) for part in old.segments)
    with instance.lock:
        if index.generation is old:
            index.use(
                replace(
                    old,
                    seal=Seal(seal_transaction, epoch),
                    covered_rows=len(there),
                    segments=live,
                    number=Generation.next_number(),
                )
            )
