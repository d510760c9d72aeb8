"""The two functions on the way of a query: planning it, and finding its hits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from duckvec.errors import ArtifactError, QueryError, VectorIndexError, sentence
from duckvec.explaining import explained_text, explanation
from duckvec.finding import is_looked_into
from duckvec.guards import still_guarded
from duckvec.instance import Instance
from duckvec.metrics import METRICS
from duckvec.planner import search_text
from duckvec.requests import Request
from duckvec.search import (
    Candidates,
    Wanted,
    entries_visited,
    everything,
    search_generation,
    search_selection,
)
from duckvec.selections import Selection
from duckvec.sessions import find_session
from duckvec.sql_text import quote_literal
from duckvec.states import IndexState, Session
from duckvec.tables import Caller
from duckvec.tickets import Ticket
from duckvec.tracking import Generation
from duckvec.udfs.registry import udf

logger = logging.getLogger("duckvec")

_EXPLANATION = """STRUCT(
    route VARCHAR, reason VARCHAR, index_type VARCHAR, params VARCHAR, segments BIGINT,
    entries_visited BIGINT, tail_rows BIGINT, candidates BIGINT, result_rows BIGINT,
    plan_ms DOUBLE, index_ms DOUBLE, join_ms DOUBLE, total_ms DOUBLE
)"""


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
    return _text(
        search_text,
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
    return _text(
        search_text,
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


@udf(
    "__duckvec_plan_explained",
    (
        *("INTEGER", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR", "BIGINT"),
        *("VARCHAR", "VARCHAR", "VARCHAR"),
    ),
    "VARCHAR",
    side_effects=False,
)
def plan_explained(
    session: int,
    collection: str | None,
    k: str | None,
    params: str | None,
    filter: str | None,
    column_name: str | None,
    transaction: int,
    database: str,
    schema: str,
    search_path: str,
) -> str:
    """Return the SQL text of a search whose rows are counted, for `explained`."""
    return _text(
        explained_text,
        Request(collection, k, params, filter, column_name, None, transaction),
        Caller(session, database, schema, search_path),
    )


@udf("__duckvec_explained", ("INTEGER", "BIGINT", "BIGINT", "BIGINT"), _EXPLANATION)
def explained(
    session: int, trace: int, result_rows: int, tail_rows: int | None
) -> dict[str, Any]:
    """Return the row of a search that ran in this statement."""
    _, own = find_session(session)
    return explanation(own, trace, result_rows, tail_rows)


def _text(
    plan: Callable[[Instance, Session, Request, Caller], str],
    request: Request,
    caller: Caller,
) -> str:
    """Return the text of a plan, or one that raises the sentence of an error."""
    try:
        instance, session = find_session(caller.session)
        return plan(instance, session, request, caller)
    except VectorIndexError as error:
        # Raised here it would arrive with the words of the function call around it.
        return f"FROM query(error({quote_literal(sentence(error))}))"


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
    found = _named(order, instance, session)
    passing = rowids.chunk(0).slice(0, 1).flatten().to_numpy(zero_copy_only=False)
    selection = Selection(passing, found[0] if found else None, order.watermark)
    number = session.selections.keep(statement[0].as_py(), selection)
    return pa.array(np.full(len(ticket), number))


@udf(
    "__duckvec_hits",
    ("VARCHAR", "FLOAT[]", "BIGINT", "BIGINT", "BIGINT"),
    "BIGINT[]",
    arrow=True,
)
def hits(
    ticket: pa.ChunkedArray,
    vector: pa.ChunkedArray,
    covered: pa.ChunkedArray,
    seen_epoch: pa.ChunkedArray,
    threads: pa.ChunkedArray,
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
        threads: how many the library may use for a batch.

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
    looked_for = _LookedFor(
        queries, covered[0].as_py(), seen_epoch[0].as_py(), threads[0].as_py()
    )
    rowids, offsets = _find(order, looked_for)
    if vectors.null_count:
        counts = np.zeros(len(vectors), dtype=np.int32)
        counts[vectors.is_valid().to_numpy(zero_copy_only=False)] = np.diff(offsets)
        offsets = np.zeros(len(vectors) + 1, dtype=np.int32)
        np.cumsum(counts, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rowids))


@dataclass(frozen=True)
class _LookedFor:
    """The arguments of one call of `hits`, besides the ticket."""

    queries: NDArray[np.float32]
    covered: int
    seen_epoch: int
    threads: int


def _find(order: Ticket, looked_for: _LookedFor) -> Candidates:
    """Return the candidates of a search, and note in its trace what was done."""
    instance, session = find_session(order.session)
    selection = None
    if order.filtered:
        selection = session.selections.find(looked_for.covered)
    trace = session.traces.find(order.trace)
    if trace is None:
        return _candidates(order, instance, session, selection, looked_for)
    started = time.perf_counter()
    rowids, offsets = _candidates(order, instance, session, selection, looked_for)
    ended = time.perf_counter()
    most = len(selection.rowids) * len(looked_for.queries) if selection else None
    took_all = most is not None and len(rowids) >= most
    visited: int | None = 0
    found = _named(order, instance, session)
    if found is not None and not took_all:
        wanted = _wanted(order, found[0], looked_for)
        visited = entries_visited(found[0], wanted, selection)
    trace.note(
        ended - started,
        len(rowids),
        visited,
        time.perf_counter() - ended,
        took_all=took_all,
    )
    return rowids, offsets


def _candidates(
    order: Ticket,
    instance: Instance,
    session: Session,
    selection: Selection | None,
    looked_for: _LookedFor,
) -> Candidates:
    found = _named(order, instance, session)
    if found is not None:
        known = is_looked_into(found[1])  # which may take the generation away
        found = _named(order, instance, session) if known else None
    if found is not None and looked_for.seen_epoch < found[0].seal.epoch:
        found = None
    state = instance.databases.get(order.database)
    if state is None or not still_guarded(
        session,
        state,
        found[0].chain if found else None,
        order.planned,
        None if order.in_own_database else looked_for.seen_epoch,
    ):
        raise QueryError(
            "a checkpoint that waited for open transactions may have moved rows while "
            "this search was about to run; run it again"
        )
    if found is not None:
        generation, _ = found
        wanted = _wanted(order, generation, looked_for)
        try:
            if selection is not None:
                return search_selection(generation, wanted, selection)
            return search_generation(generation, wanted, looked_for.covered)
        except ArtifactError as error:  # which `Segment.error` tells of, too
            logger.warning("%s", error)
    if selection is not None:
        rowids = selection.rowids
    else:
        rowids = np.arange(order.watermark + 1, dtype=np.int64)
    return everything(rowids, len(looked_for.queries))


def _named(
    order: Ticket, instance: Instance, session: Session
) -> tuple[Generation, IndexState] | None:
    """Return the generation that a plan names, and its index; None where it is gone.

    After a long pause of the statement it may be.
    """
    number = order.generation
    return session.find_generation(number) or instance.generation(number)


def _wanted(order: Ticket, generation: Generation, looked_for: _LookedFor) -> Wanted:
    return Wanted(
        METRICS[generation.segments[0].segment.row.metric],
        looked_for.queries,
        order.k or 1,
        order.params,
        looked_for.threads,
        order.recall,
        order.radius,
    )
