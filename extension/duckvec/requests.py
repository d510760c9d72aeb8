"""What a search asks for, and whether its arguments are right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from duckvec.errors import QueryError, shorten
from duckvec.index_types import get_index_type
from duckvec.ladders import check_target
from duckvec.metrics import METRICS, Metric, parse_metric
from duckvec.parameters import SearchSettings, check_search_params, parse_params
from duckvec.sql_text import quote_identifier, quote_path
from duckvec.states import IndexState
from duckvec.tables import VectorColumn

MAX_K = 16384


@dataclass(frozen=True)
class Request:
    """What a search asks for, as it came from SQL.

    `k` is that of a search for the k nearest; `radius` that of a range search.
    """

    collection: str | None
    k: str | None
    params: str | None
    filter: str | None
    column_name: str | None
    metric: str | None
    transaction: int
    is_range: bool = False
    radius: float | None = None


def check_radius(radius: float | None) -> float:
    """Return the radius of a range search.

    Raises:
        QueryError: it is no number.
    """
    if radius is None or math.isnan(radius):
        raise QueryError(
            f"radius = {'NULL' if radius is None else radius} is no number; give the "
            "largest distance wanted"
        )
    return radius


def in_precision(radius: float | None, column: VectorColumn) -> float | None:
    """Return the radius as DuckDB compares it with a column's distances.

    Distances of a FLOAT column are FLOAT: 0.1 is meant as one, not as the DOUBLE, which
    is a little less.
    """
    if radius is None or column.element != "FLOAT":
        return radius
    with np.errstate(over="ignore"):
        return float(np.float32(radius))


def check_k(text: str | None) -> int:
    """Return k.

    Raises:
        QueryError: it is no integer in [1, MAX_K].
    """
    try:
        k = 0 if text is None else int(text)
    except ValueError:
        raise QueryError(
            f"k = {shorten(text or '')} is no integer; give one in [1, {MAX_K}]"
        ) from None
    if not 1 <= k <= MAX_K:
        raise QueryError(f"k = {shorten(text or 'NULL')} is outside [1, {MAX_K}]")
    return k


def check_metric(wanted: str | None, index: IndexState | None) -> Metric:
    """Return the metric of a search: the one wanted, or the column's.

    Raises:
        QueryError: the index is built for another one.
    """
    own = METRICS[index.row.metric] if index else METRICS["L2"]
    if wanted is None:
        return own
    metric = parse_metric(wanted)
    if index is not None and index.segments and metric is not own:
        raise QueryError(
            f"the index on {quote_identifier(index.row.table_name)} is built for "
            f"metric {own.name}, not {metric.name}; leave metric out, or create the "
            "index with the other metric"
        )
    return metric


def check_params(index: IndexState | None, text: str | None, k: int) -> SearchSettings:
    """Return the search parameters that a text gives.

    Raises:
        ParameterError: they do not fit the index's type.
    """
    given = parse_params(text)
    if index is None:
        return check_search_params(get_index_type("FLAT"), given, k, {})
    if index.fault is not None:
        return SearchSettings({})  # what would be right cannot be known
    row = index.row
    kind = get_index_type(row.index_type)
    return check_target(
        kind,
        check_search_params(kind, given, k, row.params),
        row.params,
        [segment.row.ladder for segment in index.segments],
        quote_path((row.table_name, row.column_name)),
    )
