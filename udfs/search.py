"""The two functions on the way of a query: planning it, and finding its hits."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from duckvec.errors import ArtifactError, QueryError, VectorIndexError
from duckvec.finding import is_looked_into
from duckvec.guards import still_guarded
from duckvec.metrics import METRICS
from duckvec.planner import plan_search
from duckvec.requests import Request
from duckvec.search import (
    Candidates,
    Wanted,
    everything,
    search_generation,
    search_selection,
)
from duckvec.selections import Selection
from duckvec.sessions import find_session
from duckvec.sql_text import quote_literal
from duckvec.tables import Caller
from duckvec.tickets import Ticket
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
    return _plan(
        Request(collection, k, params, filter, column_name, metric, transaction),
        Caller(session, database, schema, search_path),
    )


@udf(
    "__duckvec_plan_range",
    (
        *("INTEGER", "VARCHAR", "DOUBLE", "VARCHAR", "VARCHAR", "VARCHAR", "BIGINT"),
        *("VARCHAR", "VARCHAR", "VARCHAR"),
    ),
    "VARCHAR",
    side_effects=False,
)
def plan_range(
    session: int,
    collection: str | None,
    radius: float | None,
    params: str | None,
    filter: str | None,
    column_name: str | None,
    transaction: int,
    database: str,
    schema: str,
    search_path: str,
) -> str:
    """Return the SQL text of a range search, or of the sentence of an error."""
    return _plan(
        Request(
            collection,
            None,
            params,
            filter,
            column_name,
            None,
            transaction,
            is_range=True,
            radius=radius,
        ),
        Caller(session, database, schema, search_path),
    )


def _plan(request: Request, caller: Caller) -> str:
    try:
        instance, session = find_session(caller.session)
        return plan_search(instance, session, request, caller).text
    except VectorIndexError as error:
        # Raised here it would arrive with the words of the function call around it.
        return f"FROM query(error({quote_literal(str(error))}))"


@udf(
    "__duckvec_select",
    ("VARCHAR", "UBIGINT", "BIGINT[]"),
    "BIGINT",
    # Otherwise DuckDB 2.0 calls it, with the list, once for each query of a join.
    side_effects=False,
    arrow=True,
)
def select(
    ticket: pa.ChunkedArray, statement: pa.ChunkedArray, rowids: pa.ChunkedArray
) -> pa.Array:
    """Keep the rows that pass the filter of a search; return the selection's number.

    Args:
        ticket: see `hits`.
        statement: the number of the statement that runs.
        rowids: one list of the row ids up to the watermark that pass; NULL for none.
    """
    order = Ticket.from_json(ticket[0].as_py())
    instance, session = find_session(order.session)
    found = instance.generation(order.generation)
    passing = rowids.chunk(0).slice(0, 1).flatten().to_numpy(zero_copy_only=False)
    selection = Selection(passing, found[0] if found else None, order.watermark)
    number = session.selections.keep(statement[0].as_py(), selection)
    return pa.array(np.full(len(ticket), number))


@udf(
    "__duckvec_hits",
    ("VARCHAR", "FLOAT[]", "BIGINT", "BIGINT"),
    "BIGINT[]",
    arrow=True,
)
def hits(
    ticket: pa.ChunkedArray,
    vector: pa.ChunkedArray,
    covered: pa.ChunkedArray,
    seen_epoch: pa.ChunkedArray,
) -> pa.Array:
    """Return the row ids of the candidates of each query vector.

    All arguments but `vector` are the same in every row. Where the generation is gone
    or the caller's snapshot is older than it, every row id that it could cover comes
    back: slow, and complete. A NULL vector gets an empty list.

    Args:
        ticket: what the planner handed over.
        vector: lists of float32 of the index's dimension.
        covered: how many rows up to the watermark the caller's snapshot sees; with a
            filter, the number of the selection of those that pass.
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
    order = Ticket.from_json(ticket[0].as_py())
    rowids, offsets = _find(order, queries, covered[0].as_py(), seen_epoch[0].as_py())
    if vectors.null_count:
        counts = np.zeros(len(vectors), dtype=np.int32)
        counts[vectors.is_valid().to_numpy(zero_copy_only=False)] = np.diff(offsets)
        offsets = np.zeros(len(vectors) + 1, dtype=np.int32)
        np.cumsum(counts, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rowids))


def _find(
    order: Ticket, queries: NDArray[np.float32], covered: int, seen_epoch: int
) -> Candidates:
    instance, session = find_session(order.session)
    selection = session.selections.find(covered) if order.filtered else None
    found = instance.generation(order.generation)
    if found is not None:
        known = is_looked_into(found[1])  # which may take the generation away
        found = instance.generation(order.generation) if known else None
    if found is not None and seen_epoch < found[0].seal.epoch:
        found = None
    state = instance.databases.get(order.database)
    if state is None or not still_guarded(
        session,
        state,
        found[0].chain if found else None,
        order.planned,
        None if order.in_own_database else seen_epoch,
    ):
        raise QueryError(
            "a checkpoint that waited for open transactions may have moved rows while "
            "this search was about to run; run it again"
        )
    if found is not None:
        generation, index = found
        metric = METRICS[generation.segments[0].segment.row.metric]
        wanted = Wanted(
            metric,
            queries,
            order.k or 1,
            order.params,
            instance.threads,
            order.recall,
            order.radius,
        )
        try:
            if selection is not None:
                return search_selection(generation, wanted, selection)
            return search_generation(generation, wanted, covered)
        except ArtifactError as error:
            if generation is index.generation:
                index.last_error = str(error)
            logger.warning("%s", error)
    if selection is not None:
        return everything(selection.rowids, len(queries))
    return everything(np.arange(order.watermark + 1, dtype=np.int64), len(queries))
