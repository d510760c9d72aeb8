"""vector_explain: how a search is answered, told by running it.

The statement that explains runs the planned text in the caller's own transaction and
counts its rows. Planner and hits note what they did in a trace, which is read last.
"""

from __future__ import annotations

import json
import time
from typing import Any

from duckvec.instance import Instance
from duckvec.plan_text import tail_text
from duckvec.planner import plan_search
from duckvec.requests import Request
from duckvec.selectivity import FEW_PASS
from duckvec.states import Session
from duckvec.tables import Caller


def explained_text(
    instance: Instance, session: Session, request: Request, caller: Caller
) -> str:
    """Return the text that runs a search and gives a row for `explanation`.

    Its columns: the number of the trace, the rows found, and the rows in the tail.

    Raises:
        VectorIndexError: the request is wrong.
    """
    number, trace = session.traces.begin()
    plan = plan_search(instance, session, request, caller, number)
    tail = "NULL::BIGINT"
    if plan.search is not None and plan.generation is not None:
        watermark = plan.generation.stored.watermark
        tail = f"(\n{tail_text(plan.search, watermark)}\n)"
    segments = plan.generation.stored.segments if plan.generation else ()
    trace.plan = {
        "route": plan.route,
        "reason": plan.reason,
        "index_type": plan.index.row.index_type if plan.index else None,
        "params": json.dumps(plan.params),
        "segments": len(segments),
    }
    trace.filtered = request.filter is not None
    trace.plan_seconds = time.perf_counter() - trace.started_at
    return f"""
SELECT
    {number:d}::BIGINT AS trace,
    count(*) AS result_rows,
    {tail} AS tail_rows
FROM ({plan.text}
)"""


def explanation(
    session: Session, number: int, result_rows: int, tail_rows: int | None
) -> dict[str, Any]:
    """Return the row of a search that has just run; NULLs for one that is forgotten."""
    trace = session.traces.find(number)
    if trace is None:
        return {"result_rows": result_rows}
    total = time.perf_counter() - trace.started_at - trace.noting_seconds
    by_index = trace.plan["route"] == "index"
    row = {
        **trace.plan,
        "entries_visited": trace.entries_visited if by_index else None,
        "tail_rows": tail_rows,
        "candidates": trace.candidates if by_index else None,
        "result_rows": result_rows,
        "plan_ms": 1000 * trace.plan_seconds,
        "index_ms": 1000 * trace.index_seconds,
        "join_ms": 1000 * max(0.0, total - trace.plan_seconds - trace.index_seconds),
        "total_ms": 1000 * total,
    }
    if trace.took_all and by_index and trace.filtered:
        row["route"], row["reason"] = "allowed rows", FEW_PASS
    return row
