"""What an index would take, before it is built: bytes of files and memory, seconds.

Nothing is written.
"""

from __future__ import annotations

from typing import Any

from duckvec.footprints import Footprint, Rows, footprint
from duckvec.instance import Instance
from duckvec.manage import CreateRequest, check_request
from duckvec.reader import count_rows, find_dimension, require_equal_lengths
from duckvec.states import Session
from duckvec.tables import Caller, read_only


def estimate(
    instance: Instance, session: Session, request: CreateRequest, caller: Caller
) -> dict[str, Any]:
    """Return the result row of vector_index_estimate.

    Raises:
        VectorIndexError: no such index can be built; the sentence says why.
    """
    order, _ = check_request(instance, session, request, caller)
    with read_only(session.cursor()) as cursor:
        dimension = find_dimension(cursor, order.table, order.column)
        if dimension is not None:
            require_equal_lengths(cursor, order.table, order.column, dimension)
        _, count, _ = count_rows(cursor, order.table, order.column)
        if dimension is None or count == 0:
            return _row(0, dimension, Footprint(0, 0, 0, 0.0))
        found = footprint(Rows(cursor, order, dimension, count))
        return _row(count, dimension, found)


def _row(count: int, dimension: int | None, found: Footprint) -> dict[str, Any]:
    return {
        "row_count": count,
        "dimension": dimension,
        "size_bytes": found.size_bytes,
        "build_memory_bytes": found.memory_bytes,
        "build_seconds": found.seconds,
    }
