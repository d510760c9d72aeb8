"""What there is: indexes, segments, and types, as rows."""

from __future__ import annotations

from typing import Any

from duckvec import inspection
from duckvec.sessions import answer
from duckvec.udfs.registry import udf

_INDEX = """STRUCT(
    database_name VARCHAR, schema_name VARCHAR, collection VARCHAR, column_name VARCHAR,
    index_type VARCHAR, metric VARCHAR, params VARCHAR, search_params VARCHAR,
    dimension INTEGER, row_count BIGINT, indexed_rows BIGINT, unindexed_rows BIGINT,
    deleted_rows BIGINT, skipped_rows BIGINT, segment_count INTEGER, size_bytes BIGINT,
    memory_bytes BIGINT, state VARCHAR, progress DOUBLE, last_error VARCHAR,
    created_at TIMESTAMP, updated_at TIMESTAMP
)"""
_SEGMENT = """STRUCT(
    database_name VARCHAR, schema_name VARCHAR, collection VARCHAR, column_name VARCHAR,
    segment INTEGER, index_type VARCHAR, row_count BIGINT, params VARCHAR, file VARCHAR,
    size_bytes BIGINT, checksum VARCHAR, library VARCHAR, library_version VARCHAR,
    build_seconds DOUBLE, state VARCHAR
)"""
_TYPE = """STRUCT(
    index_type VARCHAR, parameter VARCHAR, phase VARCHAR, minimum VARCHAR,
    maximum VARCHAR, allowed INTEGER[], mandatory BOOLEAN, default_value VARCHAR,
    library VARCHAR, metrics VARCHAR[], description VARCHAR
)"""


@udf("__duckvec_indexes", ("INTEGER",), f'STRUCT(error VARCHAR, "row" {_INDEX}[])')
def indexes(session: int) -> dict[str, Any]:
    """Return a row for each indexed column."""
    return answer(session, inspection.list_indexes)


@udf("__duckvec_segments", ("INTEGER",), f'STRUCT(error VARCHAR, "row" {_SEGMENT}[])')
def segments(session: int) -> dict[str, Any]:
    """Return a row for each segment."""
    return answer(session, inspection.list_segments)


@udf("__duckvec_types", (), f"{_TYPE}[]")
def types() -> list[dict[str, Any]]:
    """Return a row for each index type and parameter."""
    return inspection.list_types()
