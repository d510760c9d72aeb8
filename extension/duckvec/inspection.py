"""What vector_indexes(), vector_index_segments() and vector_index_types() show."""

from __future__ import annotations

import json
from typing import Any

import duckdb

from duckvec import background, finding, moves
from duckvec.index_types import INDEX_TYPES
from duckvec.instance import Instance
from duckvec.metrics import METRICS
from duckvec.reader import usable_condition
from duckvec.segments import Segment
from duckvec.sql_text import quote_identifier
from duckvec.states import DatabaseState, IndexState, Session
from duckvec.tables import (
    Table,
    find_column,
    find_table_at,
    has_column,
    read_only,
)
from duckvec.upkeep import row_ids_hold, why_stale

# Vectors of so many components together are matched, or looked at one by one, in a few
# milliseconds; vector_indexes() does not wait for more.
FEW_COMPONENTS = 4_000_000


def list_indexes(instance: Instance, session: Session) -> list[dict[str, Any]]:
    """Return a row for every indexed column of every attached database."""
    with read_only(session.cursor()) as cursor:
        states = _databases(instance, cursor)
    background.watch(instance)
    with read_only(session.cursor()) as cursor:
        return [
            _index_row(instance, cursor, state, index)
            for state in states
            for index in _with_new_ones(state)
        ]


def list_segments(instance: Instance, session: Session) -> list[dict[str, Any]]:
    """Return a row for every segment of every index."""
    with read_only(session.cursor()) as cursor:
        states = _databases(instance, cursor)
    return [
        {
            "database_name": state.name,
            "schema_name": index.row.schema_name,
            "collection": index.row.table_name,
            "column_name": index.row.column_name,
            "segment": segment.row.segment,
            "index_type": segment.row.index_type,
            "row_count": segment.row.row_count,
            "params": json.dumps(dict(segment.row.params)),
            "file": segment.row.file,
            "size_bytes": segment.row.size_bytes,
            "checksum": segment.row.checksum,
            "library": segment.row.library,
            "library_version": segment.row.library_version,
            "build_seconds": segment.row.build_seconds,
            "state": _state(index, segment),
        }
        for state in states
        for index in _sorted(state)
        for segment in index.segments
    ]


def list_types() -> list[dict[str, Any]]:
    """Return a row for every index type and parameter, from their declarations."""
    rows = []
    for kind in INDEX_TYPES.values():
        common = {
            "index_type": kind.name,
            "library": kind.library,
            "metrics": list(METRICS),
        }
        for parameter in kind.parameters or (None,):
            rows.append(
                {
                    **common,
                    "parameter": parameter and parameter.name,
                    "phase": parameter and parameter.phase,
                    "minimum": parameter and _text(parameter.minimum),
                    "maximum": parameter and _text(parameter.maximum),
                    "allowed": parameter
                    and parameter.allowed
                    and list(parameter.allowed),
                    "mandatory": parameter and parameter.mandatory,
                    "default_value": parameter and _text(parameter.default),
                    "description": parameter and parameter.description,
                }
            )
    return rows


def _databases(
    instance: Instance, cursor: duckdb.DuckDBPyConnection
) -> list[DatabaseState]:
    states = instance.look_at_all(cursor)
    for state in states:
        indexes = list(state.indexes.values())
        if not moves.are_settled(cursor, state, indexes):
            finding.settle(instance, state).wait_briefly()
    return states


def _sorted(state: DatabaseState) -> list[IndexState]:
    return [state.indexes[key] for key in sorted(state.indexes)]


def _with_new_ones(state: DatabaseState) -> list[IndexState]:
    """Return the indexes and those that are being created, by key."""
    new = {key: IndexState(each.row) for key, each in list(state.building.items())}
    found = {**new, **state.indexes}
    return [found[key] for key in sorted(found)]


def _index_row(
    instance: Instance,
    cursor: duckdb.DuckDBPyConnection,
    state: DatabaseState,
    index: IndexState,
) -> dict[str, Any]:
    row = index.row
    table = find_table_at(cursor, state.name, row.schema_name, row.table_name)
    status, error, progress = _status(instance, state, index, table)
    rows, unindexed, skipped = _counts(cursor, index, table)
    indexed = rows - unindexed
    entries = sum(segment.row.row_count for segment in index.segments)
    return {
        "database_name": state.name,
        "schema_name": row.schema_name,
        "collection": row.table_name,
        "column_name": row.column_name,
        "index_type": row.index_type,
        "metric": row.metric,
        "params": json.dumps(dict(row.params)),
        "search_params": json.dumps(dict(row.search_params)),
        "dimension": row.dimension,
        "row_count": rows,
        "indexed_rows": indexed,
        "unindexed_rows": unindexed,
        "deleted_rows": max(0, entries - indexed)
        if table and index.is_for(table)
        else 0,
        "skipped_rows": skipped,
        "segment_count": len(index.segments),
        "size_bytes": sum(segment.row.size_bytes for segment in index.segments),
        "memory_bytes": sum(segment.memory_bytes() for segment in index.segments),
        "state": status,
        "progress": progress,
        "last_error": error,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


def _status(
    instance: Instance, state: DatabaseState, index: IndexState, table: Table | None
) -> tuple[str, str | None, float]:
    """Return state, last error and progress of an index."""
    if table is None or not has_column(table, index.row.column_name):
        if index.fault is not None:
            return "broken", index.fault, 1.0
        return "stale", index.last_error or why_stale(index, table), 1.0
    building = state.building.get(index.row.key)
    work = building.task if building else index.work
    if work is not None:
        return "building", index.last_error, work.progress
    if index.fault is not None:
        return "broken", index.fault, 1.0
    if error := _find_harm(index):
        return "broken", error, 1.0
    generation = index.generation if index.is_for(table) else None
    if index.segments and not (
        generation and row_ids_hold(instance, state, generation)
    ):
        task = background.prepare(instance, state)
        if _is_small(index, index.row.row_count):
            task.wait_briefly()
        if error := _find_harm(index):
            return "broken", error, 1.0
        if not index.is_for(table):
            return "stale", index.last_error, 1.0
    return "ready", index.last_error, 1.0


def _find_harm(index: IndexState) -> str | None:
    """Return what is wrong with the files of an index as it is now, or None."""
    while True:
        segments = index.segments
        found = next((error for one in segments if (error := one.check())), None)
        if found is None or index.segments is segments:
            return found  # else they were replaced, and then deleted


def _state(index: IndexState, segment: Segment) -> str:
    """Return "broken" for a segment whose files are harmed, not for a replaced one."""
    broken = segment.check() and segment in index.segments
    return "broken" if broken else "ready"


def _counts(
    cursor: duckdb.DuckDBPyConnection, index: IndexState, table: Table | None
) -> tuple[int, int, int]:
    """Return the rows with a vector, those above the watermark, and the unusable.

    Whether an index can hold a vector is looked at where that is not known: a proven
    generation without a row that it could not hold knows it up to its watermark. Until
    a large index is proven, those that could not be held are as many as at its build.
    """
    if table is None or not has_column(table, index.row.column_name):
        return 0, 0, 0
    column = find_column(table, index.row.column_name)
    vector = quote_identifier(column.name)
    dimension = index.row.dimension
    usable = "true"
    if dimension is not None:
        usable = usable_condition(column, dimension, METRICS[index.row.metric])
    generation = index.generation if index.is_for(table) else None
    watermark = generation.watermark if generation else -1
    above = "true" if table.hides_rowid else f"rowid > {watermark:d}"
    source = f"FROM {table.path} WHERE {vector} IS NOT NULL"
    if index.segments and generation is None and not table.hides_rowid:
        there = _count(cursor, source)
        if not _is_small(index, there):
            skipped = min(index.row.skipped_rows, there)
            return there - skipped, there - skipped, skipped
    if generation is not None and generation.covered_rows == generation.entries:
        indexed = _count(cursor, f"{source} AND NOT ({above})")
        there = _count(cursor, f"{source} AND {above}")
        unindexed = _count(cursor, f"{source} AND {above} AND ({usable})")
        return indexed + unindexed, unindexed, there - unindexed
    found = cursor.execute(
        f"""
        SELECT
            count(*) FILTER ({usable}),
            count(*) FILTER (({usable}) AND {above}),
            count(*) FILTER (NOT ({usable}))
        {source}
        """
    ).fetchall()[0]
    return int(found[0]), int(found[1]), int(found[2])


def _count(cursor: duckdb.DuckDBPyConnection, source: str) -> int:
    return int(cursor.execute(f"SELECT count(*) {source}").fetchall()[0][0])


def _is_small(index: IndexState, rows: int) -> bool:
    """Tell whether so many vectors of an index are looked at in a moment."""
    return rows * (index.row.dimension or 1) <= FEW_COMPONENTS


def _text(value: object) -> str | None:
    return None if value is None else str(value)
