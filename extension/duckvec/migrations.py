"""How catalogs of earlier versions become one of this version.

A catalog is migrated with the first change that is written to it, in the transaction of
that change: a crash leaves the old catalog whole. Until then, and in a database that is
open read-only, the old form is read: `catalog` takes what a column that is not there
yet stands for, and passes over columns that it does not know.

A new version is the next number in `catalog.CATALOG_VERSION`, the new form in
catalog.sql, a step here that leads to it, and a database for the tests
(tools/write_fixture.py). A step may meet its own work: there are catalogs of version 1
that have what version 2 added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import duckdb

from duckvec.catalog import CATALOG_VERSION, schema_path


@dataclass(frozen=True)
class Migration:
    """A step to `version` from the one before.

    `change` gets a cursor inside a transaction, and the quoted name of the schema.
    """

    version: int
    change: Callable[[duckdb.DuckDBPyConnection, str], None]


def migrate(cursor: duckdb.DuckDBPyConnection, database: str, version: int) -> int:
    """Bring a catalog up to this version, inside the caller's transaction.

    Args:
        cursor: inside a transaction that began before anything was changed.
        database: the database.
        version: that of its catalog.

    Returns:
        The version that it has once the caller commits.
    """
    for step in MIGRATIONS:
        if step.version > version:
            step.change(cursor, schema_path(database))
    return max(version, CATALOG_VERSION)


def _add_ladder(cursor: duckdb.DuckDBPyConnection, schema: str) -> None:
    """Keep what recalls were measured; None for segments that were there before."""
    cursor.execute(
        f"ALTER TABLE {schema}.segments ADD COLUMN IF NOT EXISTS ladder VARCHAR"
    )


MIGRATIONS = [
    Migration(2, _add_ladder),
]
