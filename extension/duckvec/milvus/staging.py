"""Arrow tables that one statement reads, under a name that no collection can have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from duckvec.sql_text import quote_path

_NAME = "duckvec_milvus_rows"


@contextmanager
def registered(con: duckdb.DuckDBPyConnection, rows: pa.Table) -> Iterator[str]:
    """Register a table for a while; give its qualified name in SQL.

    A name without a database would be that of a real table first. This one is a
    temporary view of the connection, one at a time; collections are no temporary ones.
    """
    con.register(_NAME, rows)
    try:
        yield quote_path(("temp", "main", _NAME))
    finally:
        con.unregister(_NAME)
