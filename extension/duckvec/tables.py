"""Finding the table that a collection's name means, and its vector column.

The look-ups run on a cursor of their own inside a read-only transaction, and so see
what is committed; a temporary table, or one made in the caller's open transaction,
is not found here.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from duckvec.errors import ColumnError, UnknownCollectionError, shorten
from duckvec.parsed import execute_parsed
from duckvec.sql_text import parse_collection, quote_identifier, quote_path

_VECTOR_TYPE = re.compile(r"(FLOAT|DOUBLE)\[(\d*)\]")
_PATH_ENTRY = re.compile(r'(?:"((?:[^"]|"")*)"|([^".,]+))')

_FIND_TABLE = """
SELECT database_name, schema_name, table_name, database_oid, table_oid, sql
FROM duckdb_tables()
WHERE lower(table_name) = lower($name)
"""
_FIND_VIEW = """
SELECT database_name, schema_name, view_name, database_oid, view_oid, sql
FROM duckdb_views()
WHERE lower(view_name) = lower($name) AND NOT internal
"""
_COLUMNS = """
SELECT column_name, data_type
FROM duckdb_columns()
WHERE database_oid = $database_oid AND schema_name = $schema AND table_oid = $oid
ORDER BY column_index
"""
_DATABASES = """
SELECT database_name, database_oid
FROM duckdb_databases()
WHERE NOT internal
ORDER BY database_name
"""
_TABLES_OF_DATABASE = """
SELECT database_name, schema_name, table_name, database_oid, table_oid, sql
FROM duckdb_tables()
WHERE database_oid = $database_oid AND NOT internal
ORDER BY ALL
"""
_ALL_NAMES = """
SELECT table_name FROM duckdb_tables() WHERE NOT internal AND schema_name <> 'duckvec'
UNION
SELECT view_name FROM duckdb_views() WHERE NOT internal
"""


@dataclass(frozen=True)
class Caller:
    """Who asks: the connection's number and what its names are resolved by."""

    session: int
    database: str
    schema: str
    search_path: str


@dataclass(frozen=True)
class VectorColumn:
    """A column of vectors: its name, element type, and length where it is fixed."""

    name: str
    element: str
    length: int | None


@dataclass(frozen=True)
class Table:
    """A table or view as the catalog shows it now."""

    database: str
    database_oid: int
    schema: str
    name: str
    oid: int
    kind: str
    columns: tuple[tuple[str, str], ...]
    definition: str

    @property
    def identity(self) -> tuple[int, str]:
        """What changes when another table takes the name, or the table is altered."""
        return self.oid, self.definition

    @property
    def path(self) -> str:
        """The quoted three-part name."""
        return quote_path((self.database, self.schema, self.name))

    @property
    def label(self) -> str:
        """The name for people, in quotes."""
        return quote_identifier(self.name)

    def has_column(self, name: str) -> bool:
        """Whether it has a column of that name, of any type."""
        return any(own.lower() == name.lower() for own, _ in self.columns)

    @property
    def hides_rowid(self) -> bool:
        """Whether a column of its own hides the pseudo-column rowid."""
        return any(name.lower() == "rowid" for name, _ in self.columns)


TableRow = tuple[str, str, str, int, int, str | None]
"""A table as it is listed: database, schema, name, their numbers, and definition."""

_columns_cache: dict[tuple[int, int, str], tuple[tuple[str, str], ...]] = {}


@contextlib.contextmanager
def read_only(cursor: duckdb.DuckDBPyConnection) -> Iterator[duckdb.DuckDBPyConnection]:
    """Hold a read-only transaction on a cursor of our own, and close the cursor.

    Starting one takes none of the locks that a FORCE CHECKPOINT holds, so this is
    safe inside a function that DuckDB calls.
    """
    cursor.execute("BEGIN TRANSACTION READ ONLY")
    try:
        yield cursor
    finally:
        cursor.close()


def databases(cursor: duckdb.DuckDBPyConnection) -> list[tuple[str, int]]:
    """Return name and number of every attached database."""
    return cursor.execute(_DATABASES).fetchall()


def find_table(
    cursor: duckdb.DuckDBPyConnection, collection: str | None, caller: Caller
) -> Table | None:
    """Return the table or view that `collection` means for the caller, or None.

    Args:
        cursor: inside a read-only transaction.
        collection: a name of one to three parts.
        caller: gives the search path for names of one or two parts.
    """
    parts = parse_collection(collection)
    for kind, sql in (("table", _FIND_TABLE), ("view", _FIND_VIEW)):
        found = execute_parsed(cursor, sql, {"name": parts[-1]}).fetchall()
        by_place = {
            (database.lower(), schema.lower()): (database, schema, *rest)
            for database, schema, *rest in found
        }
        for place in places(parts, caller):
            if place in by_place:
                return read_table(cursor, by_place[place], kind)
    return None


def find_table_at(
    cursor: duckdb.DuckDBPyConnection, database: str, schema: str, name: str
) -> Table | None:
    """Return the table or view in a place that is known in full, or None."""
    path = quote_path((database, schema, name))
    return find_table(cursor, path, Caller(0, database, schema, ""))


def list_tables(cursor: duckdb.DuckDBPyConnection, database_oid: int) -> list[TableRow]:
    """Return a row for each table of one database, for `read_table`.

    Args:
        cursor: inside a read-only transaction.
        database_oid: the number of the database.
    """
    found = cursor.execute(_TABLES_OF_DATABASE, {"database_oid": database_oid})
    return found.fetchall()


def read_table(
    cursor: duckdb.DuckDBPyConnection, row: TableRow, kind: str = "table"
) -> Table:
    """Return a table or view with its columns, which are read where they changed."""
    database, schema, name, database_oid, oid, definition = row
    key = (database_oid, oid, definition or "")
    columns = _columns_cache.get(key) if kind == "table" else None
    if columns is None:
        columns = _read_columns(cursor, database_oid, schema, oid)
        if len(_columns_cache) > 1000:
            _columns_cache.clear()
        _columns_cache[key] = columns
    return Table(
        database, database_oid, schema, name, oid, kind, columns, definition or ""
    )


def require_table(
    cursor: duckdb.DuckDBPyConnection, collection: str | None, caller: Caller
) -> Table:
    """Return the table that `collection` means.

    Raises:
        UnknownCollectionError: there is none; the sentence suggests the nearest name.
    """
    table = find_table(cursor, collection, caller)
    if table is None:
        raise unknown_table(
            cursor,
            parse_collection(collection),
            "a DataFrame, a temporary table, or one of an open transaction cannot be "
            "indexed",
        )
    return table


def unknown_table(
    cursor: duckdb.DuckDBPyConnection, parts: tuple[str, ...], hint: str
) -> UnknownCollectionError:
    """Return the error for a name that no committed table has.

    Args:
        cursor: inside a read-only transaction.
        parts: the parts of the name.
        hint: the way out where no table has a similar name.
    """
    names = [row[0] for row in cursor.execute(_ALL_NAMES).fetchall()]
    lowered = {name.lower(): name for name in names}
    near = difflib.get_close_matches(parts[-1].lower(), lowered, n=1)
    if near:
        hint = f"did you mean {quote_identifier(lowered[near[0]])}?"
    name = shorten(".".join(parts))
    return UnknownCollectionError(f'no table "{name}"; {hint}')


def vector_columns(table: Table) -> list[VectorColumn]:
    """Return the columns that can hold vectors."""
    result = []
    for name, data_type in table.columns:
        match = _VECTOR_TYPE.fullmatch(data_type)
        if match:
            length = int(match[2]) if match[2] else None
            result.append(VectorColumn(name, match[1], length))
    return result


def find_column(table: Table, column_name: str | None) -> VectorColumn:
    """Return the vector column that is meant: the named one, or the only one.

    Raises:
        ColumnError: there is no such column, or more than one to choose from.
    """
    candidates = vector_columns(table)
    listed = ", ".join(quote_identifier(column.name) for column in candidates)
    if column_name is None:
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            raise ColumnError(
                f"table {table.label} has no vector column; one is of type FLOAT[n], "
                "FLOAT[], DOUBLE[n] or DOUBLE[]"
            )
        raise ColumnError(
            f"table {table.label} has {len(candidates)} vector columns; choose one "
            f"with column_name := …: {listed}"
        )
    for column in candidates:
        if column.name.lower() == column_name.lower():
            return column
    for name, data_type in table.columns:
        if name.lower() == column_name.lower():
            raise ColumnError(
                f'column "{name}" of {table.label} is {data_type}; a vector column is '
                "of type FLOAT[n], FLOAT[], DOUBLE[n] or DOUBLE[]"
                + (f", such as {listed}" if listed else "")
            )
    raise ColumnError(
        f'table {table.label} has no column "{shorten(column_name)}"; its vector '
        f"columns: {listed or 'none'}"
    )


def is_generated(table: Table, column: VectorColumn) -> bool:
    """Tell whether a column is computed from others, so that its rows stay in place."""
    names = f"(?:{re.escape(quote_identifier(column.name))}|{re.escape(column.name)})"
    pattern = rf"{names}\s+(?:FLOAT|DOUBLE)\[\d*\]\s+GENERATED\s+ALWAYS"
    return re.search(pattern, table.definition, re.IGNORECASE) is not None


def has_column(table: Table, column_name: str) -> bool:
    """Tell whether a table has a column of that name that can hold vectors."""
    names = {column.name.lower() for column in vector_columns(table)}
    return column_name.lower() in names


def _read_columns(
    cursor: duckdb.DuckDBPyConnection, database_oid: int, schema: str, oid: int
) -> tuple[tuple[str, str], ...]:
    values: dict[str, Any] = {
        "database_oid": database_oid,
        "schema": schema,
        "oid": oid,
    }
    return tuple(cursor.execute(_COLUMNS, values).fetchall())


def places(parts: tuple[str, ...], caller: Caller) -> list[tuple[str, str]]:
    """Return the (database, schema) pairs to look in, in DuckDB's order, lowered."""
    qualifiers = tuple(part.lower() for part in parts[:-1])
    current = (caller.database.lower(), caller.schema.lower())
    if len(qualifiers) == 2:
        return [(qualifiers[0], qualifiers[1])]
    if len(qualifiers) == 1:
        return [(current[0], qualifiers[0]), (qualifiers[0], "main")]
    places = [current]
    for entry in caller.search_path.split(","):
        names = [
            (quoted.replace('""', '"') or plain).lower()
            for quoted, plain in _PATH_ENTRY.findall(entry)
        ]
        if len(names) == 2:
            places.append((names[0], names[1]))
        elif len(names) == 1:
            places.append((current[0], names[0]))
    places.append((current[0], "main"))
    return places
