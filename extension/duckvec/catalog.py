"""The catalog: rows of `duckvec.indexes` and `duckvec.segments` in one database.

Every function works on a cursor whose transaction the caller began; nothing here
commits. Only background threads call the functions that write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import duckdb

from duckvec.errors import NotIndexableError
from duckvec.ladders import encode_ladder
from duckvec.parsed import execute_parsed
from duckvec.segments import SegmentRow
from duckvec.sql_text import quote_path, read_sql

SCHEMA = "duckvec"
# What is written now; `migrations` leads there from what was written before.
CATALOG_VERSION = 2
# A column that catalogs of version 1 do not have.
ADDED_LATER = "ladder"
# An index_file_size in MB.
MIN_FILE_SIZE, MAX_FILE_SIZE = 1, 4096
# Epochs count commits: one that is beyond this was not written by duckvec.
LARGEST_EPOCH = 1 << 62


@dataclass(frozen=True)
class IndexRow:
    """One row of the table `indexes`: an indexed column, FLAT after a drop included.

    `dimension` is None for a list column that held no vector yet. `search_params` is
    the most thorough of the segments' defaults; `skipped_rows` had no vector that can
    be indexed; `index_file_size` is 0 after a drop.
    """

    index_id: str
    schema_name: str
    table_name: str
    column_name: str
    index_type: str
    metric: str
    params: Mapping[str, int]
    search_params: Mapping[str, int]
    dimension: int | None
    index_file_size: int
    row_count: int
    skipped_rows: int
    build_seconds: float
    created_at: datetime
    updated_at: datetime

    @property
    def dropped(self) -> bool:
        """Whether the index was dropped, so that new rows are not indexed."""
        return self.index_file_size == 0

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the column: schema, table and column, lowered."""
        return index_key(self.schema_name, self.table_name, self.column_name)


def index_key(schema: str, table: str, column: str) -> tuple[str, str, str]:
    """Return the key of a column, by which DuckDB's names compare."""
    return schema.lower(), table.lower(), column.lower()


def schema_path(database: str) -> str:
    """Return the quoted name of the catalog's schema in a database."""
    return quote_path((database, SCHEMA))


def create(cursor: duckdb.DuckDBPyConnection, database: str) -> None:
    """Create the schema and its tables where they are missing."""
    cursor.execute(
        read_sql("catalog").format(
            schema=schema_path(database), catalog_version=CATALOG_VERSION
        )
    )


def exists(cursor: duckdb.DuckDBPyConnection, database: str) -> bool:
    """Tell whether the database has a catalog.

    Raises:
        NotIndexableError: it was written by a newer duckvec.
    """
    return find_version(cursor, database) is not None


def find_version(cursor: duckdb.DuckDBPyConnection, database: str) -> int | None:
    """Return the version of a database's catalog; None where there is no catalog.

    Raises:
        NotIndexableError: it was written by a newer duckvec.
    """
    found = cursor.execute(
        "SELECT count(*) FROM duckdb_tables() WHERE database_name = $database "
        "AND schema_name = $schema AND table_name IN ('indexes', 'segments', 'epoch')",
        {"database": database, "schema": SCHEMA},
    ).fetchall()
    if found[0][0] != 3:
        return None
    rows = cursor.execute(
        f"SELECT max(catalog_version), max(value) FROM {schema_path(database)}.epoch"
    ).fetchall()
    version, epoch = int(rows[0][0] or 1), int(rows[0][1] or 0)
    if version > CATALOG_VERSION:
        raise NotIndexableError(
            f'the indexes of database "{database}" have catalog version {version}; '
            f"this duckvec knows {CATALOG_VERSION}: install a newer one"
        )
    if not 0 <= epoch < LARGEST_EPOCH:
        raise _unusable(database, f"has the epoch {epoch}, which duckvec never wrote")
    return version


def read_rows(
    cursor: duckdb.DuckDBPyConnection, database: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return all rows of `indexes` and of `segments`, by column, as they are.

    Raises:
        NotIndexableError: a column is missing.
    """
    return (
        _read(cursor, database, "indexes", IndexRow),
        _read(cursor, database, "segments", SegmentRow),
    )


def read_index_type(
    cursor: duckdb.DuckDBPyConnection,
    database: str,
    schema: str,
    table: str,
    column: str,
) -> str | None:
    """Return the type of a column's index as it was committed last; None without one.

    It is one small read, and does not look whether the table is still the same one.
    """
    try:
        rows = cursor.execute(
            f"SELECT index_type FROM {schema_path(database)}.indexes "
            "WHERE lower(schema_name) = lower($schema_name) "
            "AND lower(table_name) = lower($table_name) "
            "AND lower(column_name) = lower($column_name) "
            "AND index_file_size > 0",  # it is 0 after a drop
            {"schema_name": schema, "table_name": table, "column_name": column},
        ).fetchall()
    except duckdb.CatalogException:
        return None  # the database has no catalog
    return str(rows[0][0]) if rows else None


def replace_index(
    cursor: duckdb.DuckDBPyConnection,
    database: str,
    row: IndexRow,
    segments: Sequence[SegmentRow],
) -> None:
    """Put `row` and its segments in the place of what the column had before."""
    delete_index(cursor, database, row)
    schema = schema_path(database)
    _insert(cursor, f"{schema}.indexes", _named(row))
    for segment in segments:
        _insert(cursor, f"{schema}.segments", _named(segment))


def delete_index(
    cursor: duckdb.DuckDBPyConnection, database: str, row: IndexRow
) -> None:
    """Delete the row of a column and those of its segments."""
    schema = schema_path(database)
    place = {
        "schema_name": row.schema_name.lower(),
        "table_name": row.table_name.lower(),
        "column_name": row.column_name.lower(),
    }
    same_column = (
        "lower(schema_name) = $schema_name AND lower(table_name) = $table_name "
        "AND lower(column_name) = $column_name"
    )
    cursor.execute(
        f"DELETE FROM {schema}.segments WHERE index_id IN "
        f"(SELECT index_id FROM {schema}.indexes WHERE {same_column})",
        place,
    )
    cursor.execute(f"DELETE FROM {schema}.indexes WHERE {same_column}", place)


def change_indexes(
    cursor: duckdb.DuckDBPyConnection,
    database: str,
    changed: Sequence[IndexRow],
    gone: Sequence[IndexRow],
) -> None:
    """Write rows anew whose place changed, and delete those of indexes that are gone.

    The segments of what changed stay as they are.
    """
    schema = schema_path(database)
    for row in (*changed, *gone):
        mine = {"index_id": row.index_id}
        cursor.execute(f"DELETE FROM {schema}.indexes WHERE index_id = $index_id", mine)
    for row in gone:
        mine = {"index_id": row.index_id}
        cursor.execute(
            f"DELETE FROM {schema}.segments WHERE index_id = $index_id", mine
        )
    for row in changed:
        _insert(cursor, f"{schema}.indexes", _named(row))


def epoch_expression(database: str) -> str:
    """Return the SQL of the epoch that a snapshot sees, as a scalar subquery."""
    return f"(SELECT max(value) FROM {schema_path(database)}.epoch)"


def begin(cursor: duckdb.DuckDBPyConnection, database: str) -> None:
    """Begin a transaction of the database; it may wait for a lock of DuckDB's."""
    cursor.execute("BEGIN TRANSACTION")
    cursor.execute(f"FROM {schema_path(database)}.epoch LIMIT 0").fetchall()


def insert_epoch(
    cursor: duckdb.DuckDBPyConnection, database: str, epoch: int, version: int
) -> None:
    """Write an epoch: once committed, it makes open transactions older than that.

    As a transaction of its own, it may have to wait for a lock of DuckDB's.

    Args:
        cursor: what to execute it on.
        database: the database.
        epoch: higher than all before.
        version: that of the catalog, once this is committed.
    """
    execute_parsed(
        cursor,
        f"INSERT INTO {schema_path(database)}.epoch VALUES ($epoch, $version)",
        {"epoch": epoch, "version": version},
    )


def last_epoch(cursor: duckdb.DuckDBPyConnection, database: str) -> int:
    """Return the epoch that was committed last."""
    found = cursor.execute(f"SELECT {epoch_expression(database)}").fetchall()
    return int(found[0][0] or 0)


def delete_epochs(
    cursor: duckdb.DuckDBPyConnection, database: str, before: int
) -> None:
    """Delete the epochs before one: only the highest counts."""
    cursor.execute(
        f"DELETE FROM {schema_path(database)}.epoch WHERE value < $before",
        {"before": before},
    )


def count_fresh_epochs(cursor: duckdb.DuckDBPyConnection, database: str) -> int:
    """Return how many rows of `epoch`, with deleted ones, no checkpoint wrote yet."""
    found = execute_parsed(
        cursor,
        "SELECT coalesce(sum(count), 0)::BIGINT FROM pragma_storage_info($name) "
        "WHERE column_name = 'value' AND segment_type <> 'VALIDITY' AND NOT persistent",
        {"name": f"{schema_path(database)}.epoch"},
    ).fetchall()
    return int(found[0][0])


def _named(row: IndexRow | SegmentRow) -> dict[str, Any]:
    return {name: _encode(name, getattr(row, name)) for name in _names(type(row))}


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]


def _read(
    cursor: duckdb.DuckDBPyConnection, database: str, table: str, kind: type[Any]
) -> list[dict[str, Any]]:
    """Return the rows by name, without columns that are not ours."""
    cursor.execute(f"FROM {schema_path(database)}.{table} ORDER BY ALL")
    columns = _columns(cursor)
    wanted = _names(kind)
    for name in wanted:
        if name not in columns and name != ADDED_LATER:
            raise _unusable(database, f"has no column {table}.{name}")
    return [
        {name: values.get(name) for name in wanted}
        for row in cursor.fetchall()
        for values in [dict(zip(columns, row, strict=True))]
    ]


def _unusable(database: str, what: str) -> NotIndexableError:
    return NotIndexableError(
        f'the catalog of the indexes of database "{database}" {what}; remove it with '
        f"DROP SCHEMA {schema_path(database)} CASCADE and create the indexes again"
    )


def _columns(cursor: duckdb.DuckDBPyConnection) -> list[str]:
    return [column[0] for column in cursor.description or ()]


def _insert(
    cursor: duckdb.DuckDBPyConnection, table: str, values: Mapping[str, Any]
) -> None:
    columns = ", ".join(values)
    marks = ", ".join(f"${name}" for name in values)
    cursor.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", values)


def _encode(name: str, value: Any) -> Any:
    if name == "ladder":
        return encode_ladder(value)
    return json.dumps(dict(value)) if isinstance(value, Mapping) else value
