"""The SQL text of one search.

The text is parsed and bound in the caller's transaction, where `__query` holds the
query vector; it never holds the vector itself. Tables go by three-part names, because
a common table expression of the caller would capture a bare one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from duckvec import catalog
from duckvec.metrics import Metric
from duckvec.sql_text import quote_identifier, quote_literal, quote_path
from duckvec.tables import Table, VectorColumn
from duckvec.tracking import Generation


@dataclass(frozen=True)
class Search:
    """A checked search of a known table."""

    table: Table
    column: VectorColumn
    metric: Metric
    k: int
    filter: str | None
    dimension: int | None


def exact_text(search: Search) -> str:
    """Return the text that computes the distance of every row."""
    table, column = search.table, search.column
    vector = quote_identifier(column.name)
    hidden = _unused_name("distance", table)
    where = f"{vector} IS NOT NULL"
    if search.filter is not None:
        where += f" AND (\n{search.filter}\n)"
    rows = f"(\n    SELECT * FROM {table.path} WHERE {where}\n)"
    query = _checked_query(search)
    distance = _distance(search, "__t", "__q.vector")
    return f"""
WITH __checked AS (SELECT {query} AS vector FROM __query)
SELECT * RENAME ({hidden} AS distance)
FROM (
    SELECT __t.*, {distance} AS {hidden}
    FROM __checked AS __q, {rows} AS __t
    ORDER BY {_order(search, hidden)}
    LIMIT {search.k:d}
)
WHERE isfinite({hidden})
ORDER BY {hidden} ASC NULLS LAST"""


def index_text(
    session: int,
    search: Search,
    generation: Generation,
    search_params: Mapping[str, int],
    foreign: str | None,
) -> str:
    """Return the text that joins an index's hits and the tail to the live table.

    Args:
        session: number of the caller's connection.
        search: what is searched.
        generation: what to search in; its number is checked again at execution.
        search_params: settings of the index type.
        foreign: name of the table's database where it is not the caller's default
            one; the caller's snapshot then shows its age by the epoch it sees.
    """
    table = search.table
    hidden = _unused_name("distance", table)
    ticket = json.dumps(
        {
            "session": session,
            "generation": generation.number,
            "k": search.k,
            "watermark": generation.watermark,
            "params": dict(search_params),
        }
    )
    watermark = f"{generation.watermark:d}"
    seen_epoch = (
        catalog.epoch_expression(foreign)
        if foreign is not None
        else f"{generation.seal.epoch:d}"
    )
    # The cast refuses a query of another length in DuckDB's words: a check of our own
    # would cost half a millisecond of binding in every search.
    query = f"(SELECT vector::{_array(search)} AS vector FROM __query) AS __q"
    distance = _distance(search, "__t", "__q.vector")
    # The tail's rows are not joined by their row ids: a hash join whose build side is a
    # union loses rows of the caller's own transaction now and then (DuckDB 2.0.0).
    text = f"""
SELECT __t.*, {_distance(search, "__t", "__h.vector")} AS {hidden}
FROM (
    SELECT
        __q.vector,
        unnest(
            __duckvec_hits(
                {quote_literal(ticket)},
                __q.vector::FLOAT[],
                (SELECT count(*) FROM {table.path} WHERE rowid <= {watermark}),
                {seen_epoch}
            )
        ) AS id
    FROM {query}
) AS __h
JOIN {table.path} AS __t ON __t.rowid = __h.id
WHERE isfinite({_distance(search, "__t", "__h.vector")})
UNION ALL
SELECT __t.*, {distance} AS {hidden}
FROM {query}, {table.path} AS __t
WHERE __t.rowid > {watermark} AND isfinite({distance})
ORDER BY {hidden} ASC NULLS LAST
LIMIT {search.k:d}"""
    if hidden != "distance":
        text = f"SELECT * RENAME ({hidden} AS distance)\nFROM (\n{text}\n)"
    return text


def unseen_text(
    parts: tuple[str, ...],
    column_name: str,
    metric: Metric,
    k: int,
    condition: str | None,
) -> str:
    """Return the text for a table that nothing but the caller's own bind can see.

    Args:
        parts: the table's name as it was given.
        column_name: its vector column.
        metric: how to measure.
        k: rows wanted.
        condition: a checked filter.
    """
    name = quote_identifier(column_name)
    where = f"{name} IS NOT NULL"
    if condition is not None:
        where += f" AND (\n{condition}\n)"
    return f"""
SELECT * RENAME (__distance AS distance)
FROM (
    SELECT
        __t.*,
        CASE
            WHEN len(__t.{name}) = len(__query.vector::DOUBLE[])
                AND list_count(__t.{name}) = len(__t.{name})
            THEN {metric.duckdb_list_function}(__t.{name}, __query.vector)
        END AS __distance
    FROM __query, (SELECT * FROM {quote_path(parts)} WHERE {where}) AS __t
    ORDER BY __distance ASC NULLS LAST
    LIMIT {k:d}
)
WHERE isfinite(__distance)
ORDER BY __distance ASC NULLS LAST"""


def _checked_query(search: Search) -> str:
    """Return the expression that checks the query vector, and casts it."""
    cast = f"__query.vector::{search.column.element}[]"
    if search.dimension is None:
        # No length is recorded: any that a row has will do.
        name = quote_identifier(search.column.name)
        rows = f"FROM {search.table.path} AS __t WHERE __t.{name} IS NOT NULL"
        label = quote_literal(
            f" dimensions; no vector in {name} of {search.table.label} is as long"
        )
        return f"""CASE
        WHEN EXISTS ({rows} AND len(__t.{name}) = len({cast})) OR NOT EXISTS ({rows})
        THEN {cast}
        ELSE error('the query has ' || len({cast}) || {label})
    END"""
    sentence = quote_literal(
        f"the query for {quote_identifier(search.column.name)} of "
        f"{search.table.label} must be {search.dimension} finite numbers; it has "
    )
    return f"""CASE
        WHEN __query.vector IS NULL THEN NULL
        WHEN len({cast}) = {search.dimension:d}
            AND list_count({cast}) = {search.dimension:d}
            AND isfinite(list_sum({cast}))
        THEN {cast}
        ELSE error({sentence} || len(list_filter({cast}, lambda x: isfinite(x))))
    END"""


def _array(search: Search) -> str:
    """Return the array type of the column's element and the index's dimension."""
    return f"{search.column.element}[{search.dimension:d}]"


def _distance(search: Search, row: str, query: str) -> str:
    """Return the distance expression, in the column's own precision."""
    column = search.column
    vector = f"{row}.{quote_identifier(column.name)}"
    if search.dimension is None:
        return f"""CASE
            WHEN len({vector}) = len({query}) AND list_count({vector}) = len({vector})
            THEN {search.metric.duckdb_list_function}({vector}, {query})
        END"""
    array = _array(search)
    function = search.metric.duckdb_array_function
    if column.length is not None:
        return f"{function}({vector}, {query}::{array})"
    return f"""CASE
            WHEN len({vector}) = {search.dimension:d}
                AND list_count({vector}) = {search.dimension:d}
            THEN {function}({vector}::{array}, {query}::{array})
        END"""


def _order(search: Search, distance: str) -> str:
    """Return the sort keys: what is not finite comes last, whatever the metric."""
    nearest = f"{distance} ASC NULLS LAST"
    if search.metric.is_similarity:
        return f"{distance} = '-Infinity' ASC NULLS LAST, {nearest}"
    return nearest


def _unused_name(name: str, table: Table) -> str:
    taken = {column.lower() for column, _ in table.columns}
    while name in taken:
        name += "_"
    return name
