"""Searches compared with exact SQL, row by row, in the caller's own transaction.

The exact side reads the distance of every row in a plain scan and sorts outside of
DuckDB: `ORDER BY … LIMIT` is where its late materialization may go wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from duckvec.sql_text import quote_identifier, quote_literal

FUNCTIONS = {
    "L2": "array_distance",
    "IP": "array_negative_inner_product",
    "COSINE": "array_cosine_distance",
}
# Two rows whose distances differ by less may change places at the end of a result:
# libraries rank in 32 bits, and by other formulas than DuckDB's.
TOLERANCE = 1e-5

Found = tuple[int, int, float]
"""A row of a result: id, price, distance."""


class Mismatch(AssertionError):
    """Raised when a search and exact SQL disagree."""


@dataclass(frozen=True)
class Subject:
    """A table as the searching transaction sees it, and how to search it.

    Attributes:
        path: the table's name as SQL has it.
        column: the vector column.
        price: the other column that is compared.
        element: FLOAT or DOUBLE.
        dimension: length of the vectors.
        is_list: whether the column's type has no length.
        metric: L2, IP or COSINE.
        params: search parameters.
        exhaustive: whether the result must be the exact one; otherwise it has to be
            k visible rows with their distances, in order.
        options: further named arguments of vector_search.
        rounded: whether distances may be in another precision than the column's.
    """

    path: str
    column: str
    price: str
    element: str
    dimension: int
    is_list: bool
    metric: str
    params: dict[str, int] | None
    exhaustive: bool
    options: dict[str, str] = field(default_factory=dict)
    rounded: bool = False

    def call(self, query: str, k: int, where: str | None) -> str:
        """Return the call of vector_search."""
        rest = self._named(where)
        return f"vector_search({quote_literal(self.path)}, {query}, {k:d}{rest})"

    def range_call(self, query: str, radius: str, where: str | None) -> str:
        """Return the call of vector_range_search."""
        rest = self._named(where)
        path = quote_literal(self.path)
        return f"vector_range_search({path}, {query}, {radius}{rest})"

    def _named(self, where: str | None) -> str:
        named = dict(self.options)
        if self.params is not None:
            named["params"] = json.dumps(self.params)
        if where is not None:
            named["filter"] = where
        return "".join(f", {n} := {quote_literal(v)}" for n, v in named.items())


@dataclass(frozen=True)
class Truth:
    """Every row that has a finite distance, by id."""

    ids: NDArray[np.int64]
    prices: NDArray[np.int64]
    distances: NDArray[np.float64]


def read_truth(
    con: duckdb.DuckDBPyConnection,
    subject: Subject,
    query: list[float],
    where: str | None = None,
) -> Truth:
    """Return what exact SQL has for a query."""
    array = f"{subject.element}[{subject.dimension:d}]"
    column = quote_identifier(subject.column)
    distance = f"{FUNCTIONS[subject.metric]}({column}::{array}, $query::{array})"
    if subject.is_list:
        distance = (
            f"CASE WHEN len({column}) = {subject.dimension:d} "
            f"AND list_count({column}) = {subject.dimension:d} THEN {distance} END"
        )
    rows = con.execute(
        f"SELECT id, {quote_identifier(subject.price)} AS price, "
        f"{distance} AS distance FROM {subject.path} "
        f"WHERE {column} IS NOT NULL AND ({where or 'true'})",
        {"query": query},
    ).fetchnumpy()
    distances = np.ma.filled(rows["distance"].astype(np.float64), np.nan)
    finite = np.isfinite(distances)
    ids = np.asarray(rows["id"][finite], dtype=np.int64)
    order = np.argsort(ids)
    if len(ids) and bool((np.diff(ids[order]) == 0).any()):
        raise Mismatch(f"exact SQL over {subject.path} has an id twice")
    prices = np.asarray(rows["price"][finite], dtype=np.int64)
    return Truth(ids[order], prices[order], distances[finite][order])


def compare(found: list[Found], truth: Truth, k: int, subject: Subject) -> float:
    """Compare one result with the truth; return its recall.

    Raises:
        Mismatch: it holds a row that is not there, another value or distance than the
            stored ones, too few or too many rows, or, where the search was
            exhaustive, other distances than the k smallest.
    """
    wanted = min(k, len(truth.ids))
    if len(found) != wanted:
        raise Mismatch(f"{len(found)} rows came back, and {wanted} qualify for k = {k}")
    if not wanted:
        return 1.0
    ids = np.array([row[0] for row in found], dtype=np.int64)
    distances = np.array([row[2] for row in found], dtype=np.float64)
    different, times = np.unique(ids, return_counts=True)
    if len(different) != len(ids):
        raise Mismatch(f"a row came back twice: ids {different[times > 1].tolist()}")
    at = np.minimum(np.searchsorted(truth.ids, ids), len(truth.ids) - 1)
    strange = np.flatnonzero(truth.ids[at] != ids)
    if len(strange):
        raise Mismatch(
            f"{len(strange)} rows are not there, such as {found[strange[0]]}"
        )
    prices = np.array([row[1] for row in found], dtype=np.int64)
    rounding = TOLERANCE if subject.rounded else 0.0
    same = np.isclose(truth.distances[at], distances, rtol=rounding, atol=rounding)
    wrong = np.flatnonzero(~same | (truth.prices[at] != prices))
    if len(wrong):
        there = at[wrong[0]]
        raise Mismatch(
            f"{len(wrong)} rows are other than stored, such as {found[wrong[0]]}; "
            f"price and distance are {truth.prices[there]}, {truth.distances[there]}"
        )
    if bool((np.diff(distances) < 0).any()):
        raise Mismatch("the distances do not ascend")
    nearest = np.sort(np.partition(truth.distances, wanted - 1)[:wanted])
    slack = TOLERANCE * (1 + np.abs(nearest))
    far = np.flatnonzero(np.abs(distances - nearest) > slack)
    if subject.exhaustive and len(far):
        place = far[0]
        raise Mismatch(
            f"of {wanted} distances {len(far)} are not the exact ones: number {place} "
            f"is {distances[place]} in place of {nearest[place]}"
        )
    return float(np.mean(distances <= nearest[-1] + slack[-1]))


def check_plain(
    con: duckdb.DuckDBPyConnection,
    subject: Subject,
    query: list[float],
    k: int,
    where: str | None = None,
) -> float:
    """Compare a search with one query vector; return its recall."""
    array = f"$query::{subject.element}[]"
    found = con.execute(
        f"SELECT id, {quote_identifier(subject.price)}, distance "
        f"FROM {subject.call(array, k, where)}",
        {"query": query},
    ).fetchall()
    return compare(found, read_truth(con, subject, query, where), k, subject)


def check_range(
    con: duckdb.DuckDBPyConnection,
    subject: Subject,
    query: list[float],
    rank: int,
    where: str | None = None,
) -> float:
    """Compare a range search with exact SQL; return the share of the rows found.

    Args:
        con: the session.
        subject: what is searched.
        query: the vector.
        rank: about how many rows are within the radius.
        where: a filter.
    """
    truth = read_truth(con, subject, query, where)
    radius = _radius(np.sort(truth.distances), rank)
    within = truth.distances <= radius
    inside = Truth(truth.ids[within], truth.prices[within], truth.distances[within])
    call = subject.range_call(f"$query::{subject.element}[]", "$radius", where)
    found = con.execute(
        f"SELECT id, {quote_identifier(subject.price)}, distance FROM {call}",
        {"query": query, "radius": radius},
    ).fetchall()
    if subject.exhaustive or not len(inside.ids):
        compare(found, inside, len(inside.ids), subject)
        if len(found) != len(inside.ids):
            raise Mismatch(f"{len(found)} rows are within {radius}, in place of none")
        return 1.0
    compare(found, inside, len(found), replace(subject, exhaustive=False))
    return len(found) / len(inside.ids)


def _radius(distances: NDArray[np.float64], rank: int) -> float:
    """Return a radius that no distance is near, with about so many distances inside."""
    if not len(distances):
        return 1.0
    edges = np.concatenate([[distances[0] - 1], distances, [distances[-1] + 1]])
    gaps = np.diff(edges) > 4 * TOLERANCE * (1 + np.abs(edges[1:]))
    choices = np.flatnonzero(gaps)
    at = choices[np.argmin(np.abs(choices - rank))]
    return float((edges[at] + edges[at + 1]) / 2)


def check_joined(
    con: duckdb.DuckDBPyConnection,
    subject: Subject,
    queries: str,
    k: int,
    where: str | None = None,
) -> float:
    """Compare a join with a table of queries (number, vector); return the recall."""
    price = quote_identifier(subject.price)
    rows: list[Any] = con.execute(
        f"SELECT q.number, h.id, h.{price}, h.distance "
        f"FROM {queries} AS q, {subject.call('q.vector', k, where)} AS h"
    ).fetchall()
    found: dict[int, list[Found]] = {}
    for number, *row in rows:
        found.setdefault(number, []).append((row[0], row[1], row[2]))
    recalls = []
    for number, query in con.execute(
        f"SELECT number, vector FROM {queries}"
    ).fetchall():
        hits = sorted(found.pop(number, []), key=lambda row: row[2])
        if query is None:
            if hits:
                raise Mismatch(f"a NULL query found {len(hits)} rows")
            continue
        truth = read_truth(con, subject, list(query), where)
        recalls.append(compare(hits, truth, k, subject))
    if found:
        raise Mismatch(f"the join has queries that there are not: {sorted(found)}")
    return float(np.mean(recalls))


def goes_by_index(
    con: duckdb.DuckDBPyConnection,
    subject: Subject,
    query: list[float],
    k: int,
    where: str | None = None,
) -> bool:
    """Tell whether a search joins the hits of an index, and does not scan."""
    call = subject.call(f"$query::{subject.element}[]", k, where)
    plan = con.execute(f"EXPLAIN FROM {call}", {"query": query}).fetchall()
    return "unnest" in plan[0][1].lower()
