"""What became of the table of an index: renamed, altered, made again, or dropped.

Indexes follow their table by its number, which ALTER keeps as long as the database is
open. Where a name does not tell, vectors do: after DROP and CREATE an index stays where
a column of the old name holds the vectors that it was built from. Of a table that is
gone when the database is opened nobody can say whether it was renamed or dropped: the
index goes, unless another table holds its vectors. Only what is committed counts, so
that a DROP that is rolled back loses nothing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import duckdb
import numpy as np

from duckvec import catalog
from duckvec.catalog import index_key
from duckvec.chains import commit_epoch
from duckvec.errors import ArtifactError
from duckvec.hashing import hash_vectors
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.metrics import METRICS
from duckvec.reader import hash_row, read_vectors
from duckvec.states import DatabaseState, IndexState
from duckvec.steps import changing
from duckvec.tables import (
    Table,
    TableRow,
    VectorColumn,
    databases,
    list_tables,
    read_only,
    read_table,
    vector_columns,
)
from duckvec.tracking import Generation
from duckvec.writer import remove_files

logger = logging.getLogger("duckvec")

# A column holds the vectors of an index where they are at least this share of its rows,
# or its rows have this share of them.
SAME_SHARE = 0.5
# So many rows of a table are enough to say that it does.
ENOUGH_ROWS = 10_000
# So many rows that are perhaps gone are tried to find one with a vector.
LOOKS = 3


@dataclass(frozen=True)
class _Place:
    """A column that an index belongs to from now on."""

    table: Table
    column: str

    @property
    def key(self) -> tuple[str, str, str]:
        return index_key(self.table.schema, self.table.name, self.column)


def are_settled(
    cursor: duckdb.DuckDBPyConnection,
    state: DatabaseState,
    indexes: Iterable[IndexState],
) -> bool:
    """Tell whether the tables of indexes are where they were seen last, as they were.

    Args:
        cursor: inside a read-only transaction.
        state: the database.
        indexes: those of its indexes that matter.

    Returns:
        False also where its catalog came, or went, since it was looked for.
    """
    if state.read_only or state.kind != "duckdb" or state.error is not None:
        return True
    if catalog.exists(cursor, state.name) != state.has_catalog:
        return False
    wanted = list(indexes)
    if not wanted:
        return True
    rows = {row[4]: row for row in list_tables(cursor, state.oid)}
    return all(_is_settled(index, rows) for index in wanted)


def is_rewritten(
    cursor: duckdb.DuckDBPyConnection,
    index: IndexState,
    table: Table,
    generation: Generation,
) -> bool:
    """Tell whether rows of an index got other vectors in place, as by ALTER.

    `ALTER TYPE … USING` to the same type, or a column that was dropped and added again,
    leaves no trace in the table's definition. One row of the stored segments is looked
    at, and one that is held in memory, others each time.

    Args:
        cursor: inside a read-only transaction.
        index: the index.
        table: the table.
        generation: one of the index's, made from this table.
    """
    columns = [
        column
        for column in vector_columns(table)
        if column.name.lower() == index.row.column_name.lower()
    ]
    if not columns:
        return False
    index.looks += 1
    held = (generation.held,) if generation.held else ()
    for parts in (generation.stored.segments, held):
        known = [
            (int(live.rowids[place]), entry)
            for live in parts
            for place, entry in live.segment.samples
            if live.rowids[place] >= 0
        ]
        for look in range(min(LOOKS, len(known))):
            rowid, entry = known[(index.looks + look) % len(known)]
            there = hash_row(cursor, table, columns[0], rowid)
            if there is not None and there != entry:
                return True
            if there is not None:
                break
    return False


def settle(task: Task, instance: Instance, state: DatabaseState) -> None:
    """Let indexes follow their tables and columns, and drop those of dropped ones.

    Runs in the keeper's thread, and writes in a transaction of its own.
    """
    if state.read_only or state.kind != "duckdb" or state.error is not None:
        return
    with read_only(instance.background_cursor()) as cursor:
        attached = databases(cursor)
        if (state.name, state.oid) not in attached:
            instance.forget_detached({oid for _, oid in attached})
            return
        instance.look_for_catalog(cursor, state)
        rows = {row[4]: row for row in list_tables(cursor, state.oid)}
        open_questions = [
            index for index in state.indexes.values() if not _is_settled(index, rows)
        ]
        if not open_questions:
            return
        found = _find_places(task, instance, cursor, state, rows)
    _move(task, instance, state, found)


def _is_settled(index: IndexState, rows: dict[int, TableRow]) -> bool:
    seen = index.seen
    if seen is None:
        return index.looked == _identity_of_namesake(index, rows)
    row = rows.get(seen.oid)
    return row is not None and (row[1], row[2], row[5] or "") == (
        seen.schema,
        seen.name,
        seen.definition,
    )


def _namesake(index: IndexState, rows: dict[int, TableRow]) -> TableRow | None:
    """Return the table that has the name of an index's table now."""
    names = index.row.key[:2]
    return next(
        (r for r in rows.values() if (r[1].lower(), r[2].lower()) == names), None
    )


def _identity_of_namesake(
    index: IndexState, rows: dict[int, TableRow]
) -> tuple[int, str] | tuple[()]:
    row = _namesake(index, rows)
    return (row[4], row[5] or "") if row else ()


def _find_places(
    task: Task,
    instance: Instance,
    cursor: duckdb.DuckDBPyConnection,
    state: DatabaseState,
    rows: dict[int, TableRow],
) -> list[tuple[IndexState, _Place | None]]:
    """Return the place that each index has now, None for those that have none."""
    found: list[tuple[IndexState, _Place | None]] = []
    taken: set[tuple[str, str, str]] = set()

    def settle_on(index: IndexState, place: _Place | None) -> None:
        if place is not None:
            taken.add(place.key)
        found.append((index, place))

    # The number of a table says for sure which one it is: these come first.
    rest = []
    for index in list(state.indexes.values()):
        row = rows.get(index.seen.oid) if index.seen else None
        table = read_table(cursor, row) if row else None
        if table is not None and table.has_column(index.row.column_name):
            settle_on(index, _Place(table, _spelled(table, index.row.column_name)))
        else:
            rest.append((index, table))
    for index, table in rest:
        task.check()
        instance.require_open()
        if table is not None:  # the column is gone, or has another name
            fresh = _unknown_columns(index, table)
            choice = [place for place in fresh if place.key not in taken]
            settle_on(index, _choose(cursor, index, choice, only_by_vectors=False))
            continue
        row = _namesake(index, rows)
        again = read_table(cursor, row) if row else None
        if again is not None and again.has_column(index.row.column_name):
            place = _Place(again, _spelled(again, index.row.column_name))
            free = [] if place.key in taken else [place]
            settle_on(index, _choose(cursor, index, free))
            continue
        # Renamed or dropped by a program without duckvec: only the vectors can tell.
        indexed = taken | set(state.indexes)
        holders = [] if index.seen else _holders(cursor, index, rows, indexed)
        in_table = [place for place in holders if again and place.table == again]
        if len(in_table) == 1 or not holders:
            settle_on(index, in_table[0] if in_table else None)
            continue
        index.looked = _identity_of_namesake(index, rows)
        listed = [f'"{place.column}" of "{place.table.name}"' for place in holders]
        index.last_error = (
            f'column "{index.row.column_name}" of table "{index.row.table_name}" is '
            f"gone, and {' and '.join(listed)} may be the same by another name: "
            "create the index there, or drop_vector_index by the old name"
        )
    return found


def _move(
    task: Task,
    instance: Instance,
    state: DatabaseState,
    found: Sequence[tuple[IndexState, _Place | None]],
) -> None:
    """Commit where the indexes are now, then let searches and files follow."""
    gone = [index for index, place in found if place is None]
    with contextlib.ExitStack() as held:
        for index, _ in found:
            held.enter_context(changing(task, index))
        now = datetime.now(timezone.utc).replace(tzinfo=None)
        stay: list[tuple[IndexState, _Place, catalog.IndexRow]] = []
        for index, place in found:
            if place is None:
                continue
            row = index.row
            names = (place.table.schema, place.table.name, place.column)
            if names != (row.schema_name, row.table_name, row.column_name):
                schema, table, column = names
                row = replace(
                    row,
                    schema_name=schema,
                    table_name=table,
                    column_name=column,
                    updated_at=now,
                )
            stay.append((index, place, row))
        changed = [row for index, _, row in stay if row is not index.row]
        dropped = [index.row for index in gone]
        if changed or dropped:
            commit_epoch(
                task,
                instance,
                state,
                lambda cursor: catalog.change_indexes(
                    cursor, state.name, changed, dropped
                ),
            )
        with instance.lock:
            for index in (*gone, *(index for index, _, _ in stay)):
                if state.indexes.get(index.row.key) is index:
                    del state.indexes[index.row.key]
            for index, place, row in stay:
                index.row, index.seen, index.looked = row, place.table, None
                state.indexes[row.key] = index
    for index in gone:
        logger.info('the index of "%s" went with its table', index.row.table_name)
        remove_files((*index.segments, *index.unusable))


def _choose(
    cursor: duckdb.DuckDBPyConnection,
    index: IndexState,
    places: list[_Place],
    *,
    only_by_vectors: bool = True,
) -> _Place | None:
    """Return the place that holds an index's vectors, None where none does."""
    for place in places:
        if index.segments and _holds(cursor, index, place):
            return place
    # Without entries, a column in the same table is known by being the only new one.
    generation = index.generation
    empty = not index.segments or (generation is not None and not generation.entries)
    if empty and not only_by_vectors and len(places) == 1:
        return places[0]
    return None


def _holds(cursor: duckdb.DuckDBPyConnection, index: IndexState, place: _Place) -> bool:
    """Tell whether a column's vectors are those of an index."""
    dimension = index.row.dimension
    columns = [c for c in vector_columns(place.table) if c.name == place.column]
    if not columns or columns[0].length not in (None, dimension) or not index.segments:
        return False
    try:
        maps = [segment.read_map() for segment in index.segments]
    except ArtifactError:
        return False
    entries = np.unique(np.concatenate([hashes for _, hashes in maps]))
    found = np.zeros(len(entries), dtype=np.bool_)
    metric = METRICS[index.row.metric]
    rows = same = 0
    for batch in read_vectors(cursor, place.table, columns[0], dimension or 0, metric):
        hashes = hash_vectors(batch.vectors)
        at = np.minimum(np.searchsorted(entries, hashes), len(entries) - 1)
        there = entries[at] == hashes
        found[at[there]] = True
        rows, same = rows + len(hashes), same + int(there.sum())
        if rows >= ENOUGH_ROWS and same >= SAME_SHARE * rows:
            return True
    if not rows:
        return False
    return same >= SAME_SHARE * rows or int(found.sum()) >= SAME_SHARE * len(entries)


def _holders(
    cursor: duckdb.DuckDBPyConnection,
    index: IndexState,
    rows: dict[int, TableRow],
    indexed: set[tuple[str, str, str]],
) -> list[_Place]:
    """Return the columns without an index that hold an index's vectors."""
    found = []
    for row in rows.values():
        if row[1] == catalog.SCHEMA:
            continue
        table = read_table(cursor, row)
        for column in _candidates(index, table):
            place = _Place(table, column.name)
            if place.key not in indexed and _holds(cursor, index, place):
                found.append(place)
    return found


def _candidates(index: IndexState, table: Table) -> list[VectorColumn]:
    return [
        column
        for column in vector_columns(table)
        if column.length in (None, index.row.dimension) and not table.hides_rowid
    ]


def _unknown_columns(index: IndexState, table: Table) -> list[_Place]:
    """Return the columns that may be the index's own one under another name."""
    before = {name.lower() for name, _ in index.seen.columns} if index.seen else set()
    return [
        _Place(table, column.name)
        for column in _candidates(index, table)
        if column.name.lower() not in before
    ]


def _spelled(table: Table, name: str) -> str:
    return next(own for own, _ in table.columns if own.lower() == name.lower())
