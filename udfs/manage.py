"""Building, dropping and compacting indexes from SQL.

Each exists twice: as one call, and, for statements that read it as a table, as a call
that DuckDB can interrupt (`calls`).
"""

from __future__ import annotations

from typing import Any

from duckvec import manage
from duckvec.manage import CreateRequest
from duckvec.sessions import answer
from duckvec.tables import Caller
from duckvec.udfs.registry import long_udf

_ROW = """STRUCT(
    collection VARCHAR, column_name VARCHAR, index_type VARCHAR, metric VARCHAR,
    params VARCHAR, dimension INTEGER, row_count BIGINT, segment_count INTEGER,
    size_bytes BIGINT, build_seconds DOUBLE
)"""
_RESULT = f'STRUCT(error VARCHAR, "row" {_ROW})'


@long_udf(
    "__duckvec_create",
    (
        *("INTEGER", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR", "BIGINT"),
        *("VARCHAR", "VARCHAR", "VARCHAR"),
    ),
    _RESULT,
)
def create(
    session: int,
    collection: str | None,
    index_type: str | None,
    params: str | None,
    column_name: str | None,
    metric: str | None,
    index_file_size: int | None,
    database: str,
    schema: str,
    search_path: str,
) -> dict[str, Any]:
    """Build an index; return its row, or the sentence of an error."""
    request = CreateRequest(
        collection, index_type, params, column_name, metric, index_file_size
    )
    caller = Caller(session, database, schema, search_path)
    return answer(
        session, lambda instance, own: manage.create(instance, own, request, caller)
    )


@long_udf(
    "__duckvec_drop",
    ("INTEGER", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR"),
    _RESULT,
)
def drop(
    session: int,
    collection: str | None,
    column_name: str | None,
    database: str,
    schema: str,
    search_path: str,
) -> dict[str, Any]:
    """Drop an index; return its row, or the sentence of an error."""
    caller = Caller(session, database, schema, search_path)
    return answer(
        session,
        lambda instance, own: manage.drop(
            instance, own, collection, column_name, caller
        ),
    )


@long_udf(
    "__duckvec_compact",
    ("INTEGER", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR"),
    _RESULT,
)
def compact(
    session: int,
    collection: str | None,
    column_name: str | None,
    database: str,
    schema: str,
    search_path: str,
) -> dict[str, Any]:
    """Compact an index; return its row, or the sentence of an error."""
    caller = Caller(session, database, schema, search_path)
    return answer(
        session,
        lambda instance, own: manage.compact(
            instance, own, collection, column_name, caller
        ),
    )
