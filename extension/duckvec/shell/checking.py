"""What there is in a database file, and whether the files of its indexes are whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb

from duckvec.errors import VectorIndexError
from duckvec.segments import Segment
from duckvec.shell.output import Result
from duckvec.shell.running import Session
from duckvec.sql_text import quote_identifier, quote_path

_INDEXES = """
SELECT
    schema_name || '.' || collection AS collection,
    column_name,
    index_type,
    metric,
    params,
    dimension,
    indexed_rows,
    unindexed_rows,
    deleted_rows,
    segment_count AS segments,
    format_bytes(size_bytes) AS size,
    state,
    last_error
FROM vector_indexes()
ORDER BY ALL
"""
_SEGMENTS = """
SELECT
    schema_name || '.' || collection AS collection,
    segment,
    index_type,
    row_count AS rows,
    params,
    format_bytes(size_bytes) AS size,
    library || ' ' || library_version AS library,
    round(build_seconds, 2) AS build_seconds,
    state
FROM vector_index_segments()
ORDER BY ALL
"""


@dataclass(frozen=True)
class Finding:
    """What the check of one index found; wrong is None where all is well."""

    collection: str
    what: str
    wrong: str | None


def indexes(session: Session) -> Result:
    """Return the vector indexes of a database."""
    return _rows(session, _INDEXES)


def segments(session: Session) -> Result:
    """Return the segments of all indexes."""
    return _rows(session, _SEGMENTS)


def verify(session: Session) -> list[Finding]:
    """Read every file of every index, compare checksums, and count the rows.

    Counts are those of rows with a vector: the indexed and unindexed ones, and those
    that an index leaves out.
    """
    findings = []
    for state in list(session.handle._instance.databases.values()):
        if state.error is not None:
            findings.append(Finding(state.name, "catalog", state.error))
        for index in list(state.indexes.values()):
            row = index.row
            name = f"{row.schema_name}.{row.table_name}"
            if index.fault is not None:
                findings.append(Finding(name, "catalog", index.fault))
            for segment in index.segments:
                what = f"segment {segment.row.segment}"
                findings.append(Finding(name, what, _wrong_with(segment)))
            findings.append(
                Finding(name, "rows", _wrong_count(session, state.name, row))
            )
    return findings


def _wrong_with(segment: Segment) -> str | None:
    was_open = segment.is_open
    try:
        wrong = segment.check()
        if wrong is None:
            segment.read_map()
            segment.require_whole()
        return wrong
    except VectorIndexError as error:
        return str(error)
    finally:
        if not was_open:
            segment.close()


def _wrong_count(session: Session, database: str, row: Any) -> str | None:
    path = quote_path((database, row.schema_name, row.table_name))
    try:
        [(rows,)] = session.connection.execute(
            f"SELECT count({quote_identifier(row.column_name)}) FROM {path}"
        ).fetchall()
    except duckdb.CatalogException:
        return "there is no such table; drop its index, or open the database to write"
    except duckdb.BinderException:
        return f"the table has no column {quote_identifier(row.column_name)}"
    counted = session.connection.execute(
        "SELECT indexed_rows, unindexed_rows, skipped_rows FROM vector_indexes() "
        "WHERE database_name = ? AND schema_name = ? AND collection = ? "
        "AND column_name = ?",
        [database, row.schema_name, row.table_name, row.column_name],
    ).fetchall()
    if not counted or not row.index_file_size:  # it was dropped
        return None
    indexed, unindexed, skipped = counted[0]
    if indexed + unindexed + skipped == rows:
        return None
    return (
        f"{indexed} rows are indexed, {unindexed} are not and {skipped} are left out, "
        f"of {rows} with a vector"
    )


def _rows(session: Session, text: str) -> Result:
    (result,) = session.run(text)
    assert result is not None  # a SELECT has rows
    return result
