"""The SQL text of one search.

The text is parsed and bound in the caller's transaction, where `__query` holds the
query vector; it never holds the vector itself. Tables go by three-part names, because
a common table expression of the caller would capture a bare one.
"""

from __future__ import annotations

from dataclasses import dataclass

from duckvec.metrics import Metric
from duckvec.sql_text import quote_identifier, quote_literal, quote_path
from duckvec.tables import Table, VectorColumn


@dataclass(frozen=True)
class Target:
    """What is searched: a column of a known table, and how distances are measured."""

    table: Table
    column: VectorColumn
    metric: Metric
    dimension: int | None


@dataclass(frozen=True)
class Search(Target):
    """A checked search: of the k nearest rows, or of all within the radius."""

    k: int | None
    radius: float | None
    filter: str | None


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
SELECT {_renamed(hidden)}
FROM (
    SELECT __t.*, {distance} AS {hidden}
    FROM {rows} AS __t, __checked AS __q
    {_nearest(search.metric, hidden, search.k)}
)
{_within(hidden, search.radius)}"""


def index_text(
    target: Target,
    *,
    ticket: str,
    watermark: str,
    seen_epoch: str,
    wanted: str | None,
    radius: float | None = None,
    condition: str | None = None,
) -> str:
    """Return the text that joins an index's hits and the tail to the live table.

    What differs from search to search are SQL expressions: literals, or the parameters
    of a macro that holds the text.

    Args:
        target: what is searched; its dimension is known.
        ticket: what `__duckvec_hits` needs to know, as JSON text.
        watermark: the highest row id that the index covers.
        seen_epoch: the epoch of the table's database in the caller's snapshot.
        wanted: k; None for all within the radius.
        radius: the largest distance wanted; None where k is.
        condition: a checked filter.
    """
    table = target.table
    hidden = _unused_name("distance", table)
    # The cast refuses a query of another length in DuckDB's words: a check of our own
    # would cost half a millisecond of binding in every search.
    query = f"(SELECT vector::{_array(target)} AS vector FROM __query) AS __q"
    tail = f"{query}, {table.path} AS __t\nWHERE __t.rowid > {watermark}"
    if condition is not None:
        # First in FROM, the filter sees none of the names that we use.
        after = f"rowid > {watermark} AND (\n{condition}\n)"
        tail = (
            f"(\n    SELECT * FROM {table.path}\n    WHERE {after}\n) AS __t, {query}"
        )
    # The tail's rows are not joined by their row ids: the join would hold a copy of
    # each query for each of them.
    rows = f"""
SELECT __t.*, {_distance(target, "__t", "__h.vector")} AS {hidden}
FROM (
    SELECT
        __q.vector,
        unnest(
            __duckvec_hits(
                {ticket},
                __q.vector::FLOAT[],
                ({_covered(target, ticket, watermark, condition)}),
                {seen_epoch},
                current_setting('threads')
            )
        ) AS id
    FROM {query}
) AS __h
JOIN {table.path} AS __t ON __t.rowid = __h.id
UNION ALL
SELECT __t.*, {_distance(target, "__t", "__q.vector")} AS {hidden}
FROM {tail}"""
    if target.metric.is_similarity and wanted is not None:
        rows = f"SELECT *\nFROM ({rows}\n)"  # a union is sorted by columns only
    # What is not finite is sorted last, and taken away here: before the LIMIT, DuckDB
    # would compute each distance twice.
    return f"""
SELECT {_renamed(hidden)}
FROM ({rows}
{_nearest(target.metric, hidden, wanted, of_few=True)}
)
{_within(hidden, radius)}"""


def _covered(target: Target, ticket: str, watermark: str, condition: str | None) -> str:
    """Return the query for what the hits have to know of the rows that are covered.

    How many of them the caller sees; or the number of the selection of those that
    pass the filter.
    """
    covered = f"FROM {target.table.path} WHERE rowid <= {watermark}"
    if condition is None:
        return f"SELECT count(*) {covered}"
    return f"""
                    SELECT __duckvec_select(
                        {ticket}, current_query_id(), list(rowid)
                    )
                    {covered} AND (
{condition}
                    )
                """


def tail_text(search: Search, watermark: int) -> str:
    """Return the query for how many rows of the tail a search scans."""
    text = f"SELECT count(*) FROM {search.table.path} WHERE rowid > {watermark:d}"
    return text if search.filter is None else f"{text} AND (\n{search.filter}\n)"


def unseen_text(
    parts: tuple[str, ...],
    column_name: str,
    metric: Metric,
    k: int | None,
    radius: float | None,
    condition: str | None,
) -> str:
    """Return the text for a table that nothing but the caller's own bind can see.

    Args:
        parts: the table's name as it was given.
        column_name: its vector column.
        metric: how to measure.
        k: rows wanted; None for all within the radius.
        radius: the largest distance wanted; None where k is.
        condition: a checked filter.
    """
    name = quote_identifier(column_name)
    where = f"{name} IS NOT NULL"
    if condition is not None:
        where += f" AND (\n{condition}\n)"
    distance = _list_distance(metric, f"__t.{name}", "__query.vector")
    return f"""
SELECT * RENAME (__distance AS distance)
FROM (
    SELECT
        __t.*,
        {distance} AS __distance
    FROM (SELECT * FROM {quote_path(parts)} WHERE {where}) AS __t, __query
    {_nearest(metric, "__distance", k)}
)
{_within("__distance", radius)}"""


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
        WHEN len({cast}) = {search.dimension:d}
            AND list_count({cast}) = {search.dimension:d}
            AND isfinite(list_sum({cast}))
        THEN {cast}
        WHEN __query.vector IS NOT NULL
        THEN error({sentence} || list_count({cast}))
    END"""


def _array(target: Target) -> str:
    """Return the array type of the column's element and the index's dimension."""
    return f"{target.column.element}[{target.dimension:d}]"


def _distance(target: Target, row: str, query: str) -> str:
    """Return the distance expression, in the column's own precision."""
    column = target.column
    vector = f"{row}.{quote_identifier(column.name)}"
    if target.dimension is None:
        return _list_distance(target.metric, vector, query)
    array = _array(target)
    function = target.metric.duckdb_array_function
    if column.length is not None:
        return f"{function}({vector}, {query}::{array})"
    return f"""CASE
            WHEN len({vector}) = {target.dimension:d}
                AND list_count({vector}) = {target.dimension:d}
            THEN {function}({vector}::{array}, {query}::{array})
        END"""


def _list_distance(metric: Metric, vector: str, query: str) -> str:
    """Return the distance of lists as long as the query and without NULLs, else NULL.

    DuckDB's functions refuse a NULL element in any list of the block that they look
    at, chosen by the CASE or not: the concatenation copies the chosen ones.
    """
    return f"""CASE
            WHEN len({vector}) = len({query}) AND list_count({vector}) = len({vector})
            THEN {metric.duckdb_list_function}(list_concat({vector}, []), {query})
        END"""


def _nearest(
    metric: Metric, distance: str, wanted: str | int | None, *, of_few: bool = False
) -> str:
    """Return the clauses that leave the nearest rows, none where all are wanted.

    Args:
        metric: of the distances.
        distance: the column that holds them.
        wanted: how many rows; None for all.
        of_few: whether there are few for each query to choose from, and perhaps a
            million queries. In a join DuckDB finds the nearest by arg_min, which keeps
            them all in memory and cannot spill; with an offset it sorts by windows, in
            half the memory, but takes ten times as long where many rows are sorted.
    """
    if wanted is None:
        return ""
    limit = f"LIMIT {wanted} OFFSET 0" if of_few else f"LIMIT {wanted}"
    return f"ORDER BY {_order(metric, distance)}\n{limit}"


def _within(distance: str, radius: float | None) -> str:
    """Return the clauses that leave rows with a distance, in a range those in order."""
    if radius is None:
        return f"WHERE isfinite({distance})"
    limit = f"{quote_literal(repr(radius))}::DOUBLE"
    return f"WHERE isfinite({distance}) AND {distance} <= {limit}\nORDER BY {distance}"


def _order(metric: Metric, distance: str) -> str:
    """Return the sort keys: what is not finite comes last, whatever the metric."""
    nearest = f"{distance} ASC NULLS LAST"
    if metric.is_similarity:
        return f"{distance} = '-Infinity' ASC NULLS LAST, {nearest}"
    return nearest


def _renamed(hidden: str) -> str:
    """Return the columns of a result whose distance goes by a hidden name."""
    return "*" if hidden == "distance" else f"* RENAME ({hidden} AS distance)"


def _unused_name(name: str, table: Table) -> str:
    taken = {column.lower() for column, _ in table.columns}
    while name in taken:
        name += "_"
    return name
