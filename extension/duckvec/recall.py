"""What share of the exact answers the searches of a table find, and how fast."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duckvec import finding
from duckvec.drawing import check_sample, draw
from duckvec.instance import Instance
from duckvec.keeper import heed
from duckvec.measuring import Run, Runner
from duckvec.planner import Plan, plan_search
from duckvec.requests import Request
from duckvec.sql_text import parse_collection
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


@dataclass(frozen=True)
class RecallRequest:
    """The arguments of vector_recall as they came from SQL."""

    collection: str | None
    k: str | None
    sample: str | None
    params: str | None
    filter: str | None
    column_name: str | None


@dataclass(frozen=True)
class Subject:
    """What searches are measured on.

    Attributes:
        table: what is searched.
        column: its vector column.
        index: the index of that column, if there is one.
        plan: how the search is answered.
        vectors: (s, d), stored ones to search with.
    """

    table: Table
    column: VectorColumn
    index: IndexState | None
    plan: Plan
    vectors: NDArray[np.floating]


def measure_recall(
    instance: Instance, session: Session, request: RecallRequest, caller: Caller
) -> dict[str, Any]:
    """Search for stored vectors, by the index and exactly, and return the result row.

    Raises:
        VectorIndexError: the request is wrong, or there is nothing to measure.
        duckdb.Error: a search fails, by its filter for instance.
    """
    sample = check_sample(request.sample)
    search = Request(
        collection=request.collection,
        k=request.k,
        params=request.params,
        filter=request.filter,
        column_name=request.column_name,
        metric=None,
        transaction=UNSEALED,
    )
    subject = find_subject(instance, session, search, caller, sample)
    vectors = subject.vectors
    with Runner(instance, session, caller, subject.table, subject.column) as runner:
        with runner.snapshot():
            runner.run(search, vectors[0])  # opens files, and finds a guard
        pairs = []
        for vector in vectors:
            heed()
            with runner.snapshot():
                found = runner.run(search, vector)
                pairs.append((found, runner.run_exactly(search, vector)))
    return {
        "recall": float(np.mean([share_found(*pair) for pair in pairs])),
        "index_ms": 1000 * float(np.median([found.seconds for found, _ in pairs])),
        "exact_ms": 1000 * float(np.median([exact.seconds for _, exact in pairs])),
        "sample": len(vectors),
        "k": int(request.k or 0),
        "params": json.dumps(subject.plan.params),
    }


def find_subject(
    instance: Instance, session: Session, search: Request, caller: Caller, sample: int
) -> Subject:
    """Return what a search is measured on, with so many stored vectors.

    Raises:
        VectorIndexError: the search is wrong, or there is nothing to measure.
    """
    with read_only(session.cursor()) as cursor:
        table = find_table(cursor, search.collection, caller)
        if table is None:
            raise unknown_table(
                cursor,
                parse_collection(search.collection),
                "a temporary table, or one of an open transaction, cannot be measured",
            )
        column = find_column(table, search.column_name)
        state = instance.database(cursor, table.database, table.database_oid)
        index = finding.find_index(instance, state, table, column.name)
        plan = plan_search(instance, session, search, caller)  # may be refused
        vectors = draw(cursor, table, column, index, sample).vectors
    return Subject(table, column, index, plan, vectors)


def share_found(found: Run, exact: Run) -> float:
    """Return the share of the exact answer that was found, ties in any order.

    Both computed their distances by the same function of the same values.
    """
    wanted = len(exact.distances)
    if not wanted:
        return 1.0
    right = np.count_nonzero(found.distances <= exact.distances[-1])
    return min(int(right), wanted) / wanted
