"""The two functions on the way of a query: planning it, and finding its hits."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from duckvec.errors import ArtifactError, QueryError, VectorIndexError
from duckvec.finding import is_looked_into
from duckvec.guards import still_guarded
from duckvec.metrics import METRICS
from duckvec.planner import Request, plan_search
from duckvec.search import search_generation
from duckvec.sessions import find_session
from duckvec.sql_text import quote_literal
from duckvec.tables import Caller
from duckvec.tracking import Standing
from duckvec.udfs.registry import udf

logger = logging.getLogger("duckvec")


@udf(
    "__duckvec_plan",
    (
        *("INTEGER", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR"),
        *("BIGINT", "VARCHAR", "VARCHAR", "VARCHAR"),
    ),
    "VARCHAR",
    side_effects=False,
)
def plan(
    session: int,
    collection: str | None,
    k: str | None,
    params: str | None,
    filter: str | None,
    column_name: str | None,
    metric: str | None,
    transaction: int,
    database: str,
    schema: str,
    search_path: str,
) -> str:
    """Return the SQL text of a search, or one that raises the sentence of an error."""
    try:
        instance, caller_session = find_session(session)
        return plan_search(
            instance,
            caller_session,
            Request(collection, k, params, filter, column_name, metric, transaction),
            Caller(session, database, schema, search_path),
        )
    except VectorIndexError as error:
        # Raised here it would arrive with the words of the function call around it.
        return f"FROM query(error({quote_literal(str(error))}))"


@udf(
    "__duckvec_hits",
    ("VARCHAR", "FLOAT[]", "BIGINT", "BIGINT"),
    "BIGINT[]",
    arrow=True,
)
def hits(
    ticket: pa.ChunkedArray,
    vector: pa.ChunkedArray,
    visible_rows: pa.ChunkedArray,
    seen_epoch: pa.ChunkedArray,
) -> pa.Array:
    """Return the row ids of the candidates of each query vector.

    All arguments but `vector` are the same in every row. Where the generation is gone
    or the caller's snapshot is older than it, every row id that it could cover comes
    back: slow, and complete. A NULL vector gets an empty list.

    Args:
        ticket: JSON that the planner wrote: session, database, generation, k,
            watermark, search parameters, a recall target, and how far things had come
            then.
        vector: lists of float32 of the index's dimension.
        visible_rows: rows up to the watermark that the caller's snapshot sees.
        seen_epoch: the epoch of the table's database in the caller's snapshot.

    Raises:
        QueryError: a component is not finite, or the search's guard was lost.
    """
    vectors = vector.chunk(0) if vector.num_chunks == 1 else vector.combine_chunks()
    present = vectors.drop_null() if vectors.null_count else vectors
    count = len(present)
    if not count:
        empty = pa.array(np.zeros(len(vectors) + 1, dtype=np.int32))
        return pa.ListArray.from_arrays(empty, pa.array(np.empty(0, np.int64)))
    queries = present.flatten().to_numpy(zero_copy_only=False).reshape(count, -1)
    if not np.isfinite(queries).all():
        raise QueryError(
            "the query holds NULL, NaN or an infinite value; give finite numbers"
        )
    order = json.loads(ticket[0].as_py())
    rowids, offsets = _find(order, queries, visible_rows, seen_epoch)
    if vectors.null_count:
        counts = np.zeros(len(vectors), dtype=np.int32)
        counts[vectors.is_valid().to_numpy(zero_copy_only=False)] = np.diff(offsets)
        offsets = np.zeros(len(vectors) + 1, dtype=np.int32)
        np.cumsum(counts, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rowids))


def _find(
    order: dict[str, Any],
    queries: NDArray[np.float32],
    visible_rows: pa.ChunkedArray,
    seen_epoch: pa.ChunkedArray,
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    instance, session = find_session(order["session"])
    found = instance.generation(order["generation"])
    if found is not None:
        known = is_looked_into(found[1])  # which may take the generation away
        found = instance.generation(order["generation"]) if known else None
    if found is not None and seen_epoch[0].as_py() < found[0].seal.epoch:
        found = None
    state = instance.databases.get(order["database"])
    if state is None or not still_guarded(
        session,
        state,
        found[0].chain if found else None,
        Standing(*order["planned"]),
        None if order["in_own_database"] else seen_epoch[0].as_py(),
    ):
        raise QueryError(
            "a checkpoint that waited for open transactions may have moved rows while "
            "this search was about to run; run it again"
        )
    if found is not None:
        generation, index = found
        try:
            return search_generation(
                generation,
                METRICS[generation.segments[0].segment.row.metric],
                queries,
                order["k"],
                order["params"],
                visible_rows=visible_rows[0].as_py(),
                threads=instance.threads,
                recall=order["recall"],
            )
        except ArtifactError as error:
            if generation is index.generation:
                index.last_error = str(error)
            logger.warning("%s", error)
    return _everything_up_to(order["watermark"], len(queries))


def _everything_up_to(
    watermark: int, queries: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    rows = watermark + 1
    if rows * queries > np.iinfo(np.int32).max:
        raise QueryError(
            f"{rows * queries} candidates are too many for a batch; join fewer queries"
        )
    offsets = np.arange(queries + 1, dtype=np.int32) * np.int32(rows)
    return np.tile(np.arange(rows, dtype=np.int64), queries), offsets
