"""What the settings of an index find and cost, measured one by one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from duckvec.drawing import check_sample
from duckvec.errors import ParameterError, QueryError
from duckvec.index_types import get_index_type
from duckvec.instance import Instance
from duckvec.measuring import Run, Runner
from duckvec.parameters import measured_names
from duckvec.planner import plan_search
from duckvec.recall import find_subject, share_found
from duckvec.requests import Request, check_k
from duckvec.states import IndexState, Session
from duckvec.tables import Caller

# A sweep takes no more settings than this, evenly out of the type's grid, and the
# default one.
MOST_SETTINGS = 16

Settings = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, repr=False)
class Tuning:
    """What each setting of a sweep found, and how long a query took with it.

    Attributes:
        collection: the table's name.
        column_name: its vector column.
        index_type: that of the index; FLAT where there is none.
        metric: L2, IP or COSINE.
        k: rows of each query.
        sample: how many queries each setting was measured with.
        filter: that of the searches.
        exact_ms: median milliseconds of a query by an exact scan.
        table: a row per setting, as they were given, from the cheapest to the most
            thorough: params (JSON), recall, index_ms (the median of a query), route
            (of most queries, as vector_explain has it), is_default.
    """

    collection: str
    column_name: str
    index_type: str
    metric: str
    k: int
    sample: int
    filter: str | None
    exact_ms: float
    table: pa.Table

    def recommend(self, recall: float = 0.95) -> dict[str, Any]:
        """Return the parameters that took least time of those that reached a recall.

        Raises:
            ParameterError: none did, or it is no recall.
        """
        check_recall(recall)
        rows = self.table.to_pylist()
        enough = [row for row in rows if row["recall"] >= recall]
        if not enough:
            best = max(rows, key=lambda row: row["recall"])
            raise ParameterError(
                f"recall = {recall} was reached by no setting of {self.index_type} on "
                f'"{self.collection}": {best["recall"]:.4f}, with {best["params"]}, '
                "is the best known; ask for less, or build a better index"
            )
        least = min(enough, key=lambda row: row["index_ms"])
        params: dict[str, Any] = json.loads(least["params"])
        return params

    def __repr__(self) -> str:
        """Return the table as text, with what it is of."""
        lines = [
            f"{self.index_type} on {self.collection}.{self.column_name}, {self.metric}:"
            f" {self.sample} queries, k = {self.k}, exact {self.exact_ms:.2f} ms",
            f"{f'recall@{self.k}':>12}  {'ms':>8}  params",
        ]
        for row in self.table.to_pylist():
            mark = "  (default)" if row["is_default"] else ""
            lines.append(
                f"{row['recall']:12.4f}  {row['index_ms']:8.2f}  {row['params']}{mark}"
            )
        return "\n".join(lines)


def tune(
    instance: Instance,
    session: Session,
    request: Request,
    caller: Caller,
    *,
    sample: int,
    queries: NDArray[np.floating] | None,
    settings: Settings | None,
    show: Callable[[float], None],
) -> Tuning:
    """Run the same searches with many settings, and exactly, and return what was found.

    Each query is searched for in one snapshot, exactly once, and with the settings in
    an order of its own, because the search before leaves its vectors in the caches.

    Args:
        instance: the DuckDB instance.
        session: the caller's connection.
        request: the search; its params are not looked at.
        caller: what names are resolved by.
        sample: how many stored vectors are searched for, where no queries are given.
        queries: (nq, d), or None.
        settings: search parameters to try; None for a sweep of the type's own.
        show: is told the share that is done.

    Raises:
        VectorIndexError: the request is wrong, or there is nothing to measure.
        duckdb.Error: a search fails, by its filter for instance.
    """
    k = check_k(request.k)
    sample = check_sample(str(sample))
    request = replace(request, params=None)
    subject = find_subject(
        instance, session, request, caller, 1 if queries is not None else sample
    )
    index = subject.index
    vectors = subject.vectors
    if queries is not None:
        vectors = _check_queries(queries, vectors.shape[1])
    default = _default(index, k)
    tried = sweep(index, k) if settings is None else list(settings)
    if not tried:
        raise ParameterError("settings = [] is empty; give one, or leave it out")
    requests = [replace(request, params=json.dumps(dict(each))) for each in tried]
    for each in requests:
        plan_search(instance, session, each, caller)  # may be refused
    runs: list[list[Run]] = [[] for _ in tried]
    exact: list[Run] = []
    random = np.random.default_rng(0)
    with Runner(instance, session, caller, subject.table, subject.column) as runner:
        with runner.snapshot():
            runner.run(requests[0], vectors[0])  # opens files, and finds a guard
        for done, vector in enumerate(vectors):
            show(done / len(vectors))
            with runner.snapshot():
                for number in random.permutation(len(tried) + 1):
                    if number == len(tried):
                        exact.append(runner.run_exactly(request, vector))
                    else:
                        runs[number].append(runner.run(requests[number], vector))
    show(1.0)
    rows = [
        {
            "params": json.dumps(dict(setting)),
            "recall": float(np.mean(list(map(share_found, own, exact)))),
            "index_ms": _median_ms(own),
            "route": Counter(run.route for run in own).most_common(1)[0][0],
            "is_default": dict(setting) == default,
        }
        for setting, own in zip(tried, runs, strict=True)
    ]
    return Tuning(
        collection=subject.table.name,
        column_name=subject.column.name,
        index_type=index.row.index_type if index else "FLAT",
        metric=index.row.metric if index else "L2",
        k=k,
        sample=len(vectors),
        filter=request.filter,
        exact_ms=_median_ms(exact),
        table=pa.Table.from_pylist(rows),
    )


def check_recall(recall: float) -> None:
    """Raise ParameterError where a recall that is wanted is none."""
    if not 0 < recall <= 1:
        raise ParameterError(f"recall = {recall} is outside (0, 1]")


def sweep(index: IndexState | None, k: int) -> list[dict[str, int]]:
    """Return the settings of a column's index that are worth trying, cheapest first.

    They are those of its largest segment, and the default; one without parameters
    where nothing can be set.
    """
    default = _default(index, k)
    if index is None or not default:
        return [{}]
    largest = max(index.segments, key=lambda segment: segment.row.row_count).row
    kind = get_index_type(index.row.index_type)
    grid = kind.search_grid(largest.params, largest.row_count, k)
    if len(grid) > MOST_SETTINGS:
        places = np.linspace(0, len(grid) - 1, MOST_SETTINGS).round().astype(int)
        grid = [grid[place] for place in places]
    if default not in grid:
        grid = [*grid, default]
    return sorted(grid, key=lambda setting: [setting[name] for name in default])


def _default(index: IndexState | None, k: int) -> dict[str, int]:
    """Return the measured settings of an index, as a search for k rows uses them."""
    if index is None or not index.segments:
        return {}
    row = index.row
    kind = get_index_type(row.index_type)
    own = {
        name: row.search_params[name]
        for name in measured_names(kind)
        if name in row.search_params
    }
    return kind.clamp_search_params(own, row.params, k)


def _check_queries(
    queries: NDArray[np.floating], dimension: int
) -> NDArray[np.floating]:
    if queries.ndim != 2 or not len(queries):
        raise QueryError(
            f"queries have the shape {queries.shape}; give at least one, as (queries, "
            f"{dimension})"
        )
    if queries.shape[1] != dimension:
        raise QueryError(
            f"queries have {queries.shape[1]} components, not {dimension}, as the "
            "vectors of the collection do"
        )
    if not np.isfinite(queries).all():
        raise QueryError("queries hold NaN or infinite values; leave those out")
    return queries


def _median_ms(runs: Sequence[Run]) -> float:
    return 1000 * float(np.median([run.seconds for run in runs]))
