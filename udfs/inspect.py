"""What there is: indexes, segments, and types, as rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from duckvec import inspection
from duckvec.errors import VectorIndexError, sentence
from duckvec.instance import Instance
from duckvec.sessions import find_session
from duckvec.states import Session
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
    return _rows(session, inspection.list_indexes)


@udf("__duckvec_segments", ("INTEGER",), f'STRUCT(error VARCHAR, "row" {_SEGMENT}[])')
def segments(session: int) -> dict[str, Any]:
    """Return a row for each segment."""
    return _rows(session, inspection.list_segments)


@udf("__duckvec_types", (), f"{_TYPE}[]")
def types() -> list[dict[str, Any]]:
    """Return a row for each index type and parameter."""
    return inspection.list_types()


def _rows(
    session: int, function: Callable[[Instance, Session], list[dict[str, Any]]]
) -> dict[str, Any]:
    try:
        instance, caller_session = find_session(session)
        return {"error": None, "row": function(instance, caller_session)}
    except VectorIndexError as error:
        return {"error": sentence(error), "row": None}
