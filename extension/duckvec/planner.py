"""The SQL text of one search.

`plan_search` runs while DuckDB binds a statement; the text it returns is parsed and
bound in the caller's transaction, where `__query` holds the query vector. The text
never holds the vector. Two routes: `exact` computes every distance; `index` joins the
hits of a generation to the live table and adds the tail.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from duckvec import background, catalog
from duckvec.errors import (
    ArtifactError,
    ParameterError,
    QueryError,
    UnknownCollectionError,
    UnknownMetricError,
)
from duckvec.filters import check_filter
from duckvec.index_types import get_index_type
from duckvec.instance import DatabaseState, IndexState, Instance, Session
from duckvec.metrics import METRICS, Metric, parse_metric
from duckvec.parameters import check_search_params, parse_params
from duckvec.sql_text import (
    parse_collection,
    quote_identifier,
    quote_literal,
    quote_path,
)
from duckvec.tables import (
    Caller,
    Table,
    VectorColumn,
    find_column,
    find_table,
    read_only,
    unknown_table,
)
from duckvec.tracking import Generation

MAX_K = 16384
# More rows than this share of an index gone since the last look: an exact scan serves
# until the background has looked again.
REFRESH_SHARE = 0.05
REFRESH_ROWS = 64


@dataclass(frozen=True)
class Request:
    """What a search asks for, as it came from SQL."""

    collection: str | None
    k: int | None
    params: str | None
    filter: str | None
    column_name: str | None
    metric: str | None
    transaction: int


@dataclass(frozen=True)
class _Search:
    """A checked search of a known table."""

    table: Table
    column: VectorColumn
    metric: Metric
    k: int
    filter: str | None
    dimension: int | None


def plan_search(
    instance: Instance, session: Session, request: Request, caller: Caller
) -> str:
    """Return the SQL text that answers a search.

    Args:
        instance: the DuckDB instance.
        session: the caller's connection.
        request: what is asked for.
        caller: what names are resolved by.

    Raises:
        VectorIndexError: the request is wrong; the sentence says how.
    """
    k = _check_k(request.k)
    looked_up = instance.recall(request.collection, caller)
    if looked_up is None or request.filter is not None:
        sign = instance.sign_of(caller)
        with read_only(session.cursor()) as cursor:
            table = find_table(cursor, request.collection, caller)
            if table is None:
                return _plan_unseen(cursor, request, k)
            state = instance.database(cursor, table.database, table.database_oid)
            condition = check_filter(cursor, request.filter)
        instance.remember(request.collection, caller, sign, table, state)
    else:
        table, state = looked_up
        condition = None
    column = find_column(table, request.column_name)
    index = instance.index(table, column.name) if table.kind == "table" else None
    search = _Search(
        table,
        column,
        _check_metric(request.metric, index),
        k,
        condition,
        column.length or (index.row.dimension if index else None),
    )
    params = _check_params(index, request.params, k)
    if index is None or condition is not None:
        return exact_text(search)
    generation = _usable_generation(instance, session, state, index, search, params)
    in_own_database = caller.database == table.database
    if generation is None or (
        in_own_database and request.transaction <= generation.seal.transaction
    ):
        return exact_text(search)  # the caller's snapshot may be older than the build
    settings = {**index.row.search_params, **params}
    foreign = None if in_own_database else state
    return index_text(session.number, search, generation, settings, foreign)


def _check_k(k: int | None) -> int:
    if k is None or not 1 <= k <= MAX_K:
        shown = "NULL" if k is None else k
        raise QueryError(f"k = {shown} is outside [1, {MAX_K}]")
    return k


def _check_metric(wanted: str | None, index: IndexState | None) -> Metric:
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


def _check_params(
    index: IndexState | None, text: str | None, k: int
) -> dict[str, int]:
    given = parse_params(text)
    kind = get_index_type(index.row.index_type if index else "FLAT")
    return check_search_params(kind, given, k, index.row.params if index else {})


def _usable_generation(
    instance: Instance,
    session: Session,
    state: DatabaseState,
    index: IndexState,
    search: _Search,
    params: Mapping[str, int],
) -> Generation | None:
    """Return the generation that this search may use, or None for the exact scan.

    Asks for what is missing, a guard or a look at the table, in the background.
    """
    table = search.table
    if not index.segments or table.hides_rowid or search.dimension is None:
        return None
    kind = get_index_type(index.row.index_type)
    if kind.compressed and kind.exhaustive(params, index.row.params):
        return None
    guard = instance.open_guard(session, state)
    chain = instance.chain_of(session, state)
    generation = index.generation
    if chain is None or generation is None or generation.chain != chain:
        if guard is not None or state.read_only:
            background.prepare(instance, state)
        return None
    if generation.table_oid != table.oid:
        return None
    try:
        for live in generation.segments:
            live.segment.index()
    except ArtifactError as error:
        index.last_error = str(error)
        return None
    if _too_many_gone(instance, session, state, index, generation, table):
        return None
    return generation


def _too_many_gone(
    instance: Instance,
    session: Session,
    state: DatabaseState,
    index: IndexState,
    generation: Generation,
    table: Table,
) -> bool:
    """Tell whether so many indexed rows are gone that a search would drag them along."""
    sign = state.change_sign()
    if sign is None or sign != index.surplus_sign:
        with read_only(session.cursor()) as cursor:
            found = cursor.execute(
                f"SELECT count(*) FROM {table.path} "
                f"WHERE rowid <= {generation.watermark:d}"
            ).fetchall()
        index.surplus = generation.covered_rows - int(found[0][0])
        index.surplus_sign = sign
    if index.surplus <= max(REFRESH_ROWS, REFRESH_SHARE * generation.covered_rows):
        return False
    background.refresh(instance, state, index, table)
    return True


# The texts


def exact_text(search: _Search) -> str:
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
ORDER BY {hidden}"""


def index_text(
    session: int,
    search: _Search,
    generation: Generation,
    search_params: Mapping[str, int],
    foreign: DatabaseState | None,
) -> str:
    """Return the text that joins an index's hits and the tail to the live table.

    Args:
        session: number of the caller's connection.
        search: what is searched.
        generation: what to search in; its number is checked again at execution.
        search_params: settings of the index type.
        foreign: the table's database where it is not the caller's default one; the
            caller's snapshot then shows its age by the epoch it sees.
    """
    table, column = search.table, search.column
    hidden = _unused_name("distance", table)
    ticket = json.dumps(
        {
            "session": session,
            "generation": generation.number,
            "k": search.k,
            "watermark": generation.watermark,
            "dimension": search.dimension,
            "params": dict(search_params),
        }
    )
    watermark = f"{generation.watermark:d}"
    seen_epoch = (
        catalog.epoch_expression(foreign.name)
        if foreign is not None
        else f"{generation.seal.epoch:d}"
    )
    wrong_query = quote_literal(
        f"the query for {quote_identifier(column.name)} of {table.label} must be "
        f"{search.dimension} finite numbers; it has "
    )
    text = f"""
SELECT __t.*, {_distance(search, "__t", "__h.vector")} AS {hidden}
FROM (
    SELECT
        __query.vector,
        unnest(
            coalesce(
                __duckvec_hits(
                    {quote_literal(ticket)},
                    __query.vector::FLOAT[],
                    (SELECT count(*) FROM {table.path} WHERE rowid <= {watermark}),
                    {seen_epoch}
                ),
                error({wrong_query} || len(__query.vector::FLOAT[]))
            )
        ) AS id
    FROM __query
    UNION ALL
    SELECT __query.vector, __t.rowid
    FROM __query, {table.path} AS __t
    WHERE __t.rowid > {watermark}
        AND isfinite({_distance(search, "__t", "__query.vector")})
) AS __h
JOIN {table.path} AS __t ON __t.rowid = __h.id
ORDER BY {hidden}
LIMIT {search.k:d}"""
    if hidden != "distance":
        text = f"SELECT * RENAME ({hidden} AS distance)\nFROM (\n{text}\n)"
    return text


def _plan_unseen(
    cursor: duckdb.DuckDBPyConnection, request: Request, k: int
) -> str:
    """Return the text for a table that the planner cannot see, by the caller's bind.

    Such a table is temporary, or was made in the caller's open transaction. Its
    column has to be named, because nothing can be looked up.
    """
    parts = parse_collection(request.collection)
    if request.column_name is None:
        raise unknown_table(cursor, parts)
    _check_params(None, request.params, k)
    metric = _check_metric(request.metric, None)
    condition = check_filter(cursor, request.filter)
    name = quote_identifier(request.column_name)
    where = f"{name} IS NOT NULL"
    if condition is not None:
        where += f" AND (\n{condition}\n)"
    return f"""
SELECT * RENAME (__distance AS distance)
FROM (
    SELECT
        __t.*,
        CASE
            WHEN len(__t.{name}) = len(__q.vector::DOUBLE[])
            THEN {metric.duckdb_list_function}(__t.{name}, __q.vector)
        END AS __distance
    FROM __query AS __q, (SELECT * FROM {quote_path(parts)} WHERE {where}) AS __t
    ORDER BY __distance
    LIMIT {k:d}
)
WHERE isfinite(__distance)
ORDER BY __distance"""


def _checked_query(search: _Search) -> str:
    """Return the expression that checks the query vector, and casts it."""
    cast = f"__query.vector::{search.column.element}[]"
    name = quote_identifier(search.column.name)
    if search.dimension is None:
        return cast
    wrong_length = (
        f"'the query has ' || len({cast}) || ' dimensions; ' || "
        f"{quote_literal(f'{name} of {search.table.label} has {search.dimension}')}"
    )
    not_finite = quote_literal(
        "the query holds NULL, NaN or an infinite value; every component must be a "
        "finite number"
    )
    return f"""CASE
        WHEN __query.vector IS NULL THEN NULL
        WHEN len({cast}) <> {search.dimension:d} THEN error({wrong_length})
        WHEN NOT coalesce(isfinite(list_sum({cast})), false)
            OR list_count({cast}) <> {search.dimension:d}
        THEN error({not_finite})
        ELSE {cast}
    END"""


def _distance(search: _Search, row: str, query: str) -> str:
    """Return the distance expression, in the column's own precision."""
    column = search.column
    vector = f"{row}.{quote_identifier(column.name)}"
    if search.dimension is None:
        return f"""CASE
            WHEN len({vector}) = len({query}) AND list_count({vector}) = len({vector})
            THEN {search.metric.duckdb_list_function}({vector}, {query})
        END"""
    array = f"{column.element}[{search.dimension:d}]"
    if column.length is not None:
        return f"{search.metric.duckdb_array_function}({vector}, {query}::{array})"
    return f"""CASE
            WHEN len({vector}) = {search.dimension:d}
                AND list_count({vector}) = {search.dimension:d}
            THEN {search.metric.duckdb_array_function}({vector}::{array}, {query}::{array})
        END"""


def _order(search: _Search, distance: str) -> str:
    """Return the sort keys: what is not finite comes last, whatever the metric."""
    if search.metric.is_similarity:
        return f"{distance} = '-Infinity', {distance}"
    return distance


def _unused_name(name: str, table: Table) -> str:
    taken = {column.lower() for column, _ in table.columns}
    while name in taken:
        name += "_"
    return name
