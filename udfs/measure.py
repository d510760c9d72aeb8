"""What an index would take, and how good one is, as rows."""

from __future__ import annotations

from typing import Any

from duckvec import estimating
from duckvec.manage import CreateRequest
from duckvec.recall import RecallRequest, measure_recall
from duckvec.sessions import answer
from duckvec.tables import Caller
from duckvec.udfs.registry import long_udf, udf

_ESTIMATE = """STRUCT(
    row_count BIGINT, dimension INTEGER, size_bytes BIGINT, build_memory_bytes BIGINT,
    build_seconds DOUBLE
)"""
_RECALL = """STRUCT(
    recall DOUBLE, index_ms DOUBLE, exact_ms DOUBLE, sample BIGINT, k BIGINT,
    params VARCHAR
)"""
DEFAULT_FILE_SIZE = 1024


@udf(
    "__duckvec_estimate",
    (
        *("INTEGER", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR"),
        *("VARCHAR", "VARCHAR", "VARCHAR"),
    ),
    f'STRUCT(error VARCHAR, "row" {_ESTIMATE})',
)
def estimate(
    session: int,
    collection: str | None,
    index_type: str | None,
    params: str | None,
    column_name: str | None,
    metric: str | None,
    database: str,
    schema: str,
    search_path: str,
) -> dict[str, Any]:
    """Return what a build would take, or the sentence of an error."""
    request = CreateRequest(
        collection, index_type, params, column_name, metric, DEFAULT_FILE_SIZE
    )
    caller = Caller(session, database, schema, search_path)
    return answer(
        session,
        lambda instance, own: estimating.estimate(instance, own, request, caller),
    )


@long_udf(
    "__duckvec_recall",
    (
        *("INTEGER", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR"),
        *("VARCHAR", "VARCHAR", "VARCHAR"),
    ),
    f'STRUCT(error VARCHAR, "row" {_RECALL})',
)
def recall(
    session: int,
    collection: str | None,
    k: str | None,
    sample: str | None,
    params: str | None,
    filter: str | None,
    column_name: str | None,
    database: str,
    schema: str,
    search_path: str,
) -> dict[str, Any]:
    """Return how good an index is, or the sentence of an error."""
    request = RecallRequest(collection, k, sample, params, filter, column_name)
    caller = Caller(session, database, schema, search_path)
    return answer(
        session, lambda instance, own: measure_recall(instance, own, request, caller)
    )
