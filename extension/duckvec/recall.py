"""What share of the exact answers the searches of a table find, and how fast."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from duckvec import finding
from duckvec.errors import QueryError, shorten
from duckvec.instance import Instance
from duckvec.measuring import Run, Runner
from duckvec.metrics import METRICS
from duckvec.planner import plan_search
from duckvec.reader import find_dimension, usable_condition
from duckvec.requests import Request
from duckvec.sql_text import parse_collection, quote_identifier
from duckvec.states import IndexState, Session
from duckvec.tables import (
    Caller,
    Table,
    VectorColumn,
    find_column,
    find_table,
    read_only,
    unknown_table,
)
from duckvec.tracking import UNSEALED

MAX_SAMPLE = 10_000


@dataclass(frozen=True)
class RecallRequest:
    """The arguments of vector_recall as they came from SQL."""

    collection: str | None
    k: str | None
    sample: str | None
    params: str | None
    filter: str | None
    column_name: str | None


def measure_recall(
    instance: Instance, session: Session, request: RecallRequest, caller: Caller
) -> dict[str, Any]:
    """Search for stored vectors, by the index and exactly, and return the result row.

    Raises:
        VectorIndexError: the request is wrong, or there is nothing to measure.
        duckdb.Error: a search fails, by its filter for instance.
    """
    sample = _check_sample(request.sample)
    search = Request(
        collection=request.collection,
        k=request.k,
        params=request.params,
        filter=request.filter,
        column_name=request.column_name,
        metric=None,
        transaction=UNSEALED,
    )
    with read_only(session.cursor()) as cursor:
        table = find_table(cursor, request.collection, caller)
        if table is None:
            raise unknown_table(
                cursor,
                parse_collection(request.collection),
                "a temporary table, or one of an open transaction, cannot be measured",
            )
        column = find_column(table, request.column_name)
        state = instance.database(cursor, table.database, table.database_oid)
        index = finding.find_index(instance, state, table, column.name)
        plan = plan_search(instance, session, search, caller)  # may be refused
        vectors = _draw(cursor, table, column, index, sample)
    with Runner(instance, session, caller, table, column) as runner:
        with runner.snapshot():
            runner.run(search, vectors[0])  # opens files, and finds a guard
        pairs = []
        for vector in vectors:
            with runner.snapshot():
                found = runner.run(search, vector)
                pairs.append((found, runner.run_exactly(search, vector)))
    return {
        "recall": float(np.mean([_recall(*pair) for pair in pairs])),
        "index_ms": 1000 * float(np.median([found.seconds for found, _ in pairs])),
        "exact_ms": 1000 * float(np.median([exact.seconds for _, exact in pairs])),
        "sample": len(vectors),
        "k": int(request.k or 0),
        "params": json.dumps(plan.params),
    }


def _check_sample(text: str | None) -> int:
    try:
        sample = 0 if text is None else int(text)
    except ValueError:
        raise QueryError(
            f"sample = {shorten(text or '')} is no integer; give one in "
            f"[1, {MAX_SAMPLE}]"
        ) from None
    if not 1 <= sample <= MAX_SAMPLE:
        shown = shorten(text or "NULL")
        raise QueryError(f"sample = {shown} is outside [1, {MAX_SAMPLE}]")
    return sample


def _draw(
    cursor: duckdb.DuckDBPyConnection,
    table: Table,
    column: VectorColumn,
    index: IndexState | None,
    sample: int,
) -> NDArray[np.floating]:
    """Return so many vectors (s, d), the same ones as long as the table is the same.

    Those with the smallest hashes: views have no row ids, and those of a table move.

    Raises:
        QueryError: there is no vector that a search can be made with.
    """
    metric = METRICS[index.row.metric if index else "L2"]
    dimension = index.row.dimension if index else None
    dimension = dimension or find_dimension(cursor, table, column)
    if dimension is not None:
        name = quote_identifier(column.name)
        found = cursor.execute(
            f"SELECT {name} FROM {table.path} WHERE {name} IS NOT NULL "
            f"AND ({usable_condition(column, dimension, metric)}) "
            f"ORDER BY hash({name}) LIMIT {sample:d}"
        ).fetchall()
        if found:
            kind = np.float32 if column.element == "FLOAT" else np.float64
            return np.array([row[0] for row in found], dtype=kind)
    raise QueryError(
        f'there is no vector in "{column.name}" of {table.label} to measure with'
    )


def _recall(found: Run, exact: Run) -> float:
    """Return the share of the exact answer that was found, ties in any order.

    Both computed their distances by the same function of the same values.
    """
    wanted = len(exact.distances)
    if not wanted:
        return 1.0
    right = np.count_nonzero(found.distances <= exact.distances[-1])
    return min(int(right), wanted) / wanted
