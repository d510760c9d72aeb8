"""Planning one search: checking the request, and choosing the route.

`plan_search` runs while DuckDB binds a statement. Two routes: `exact` computes every
distance; `index` joins the hits of a generation to the live table and adds the tail.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace

import duckdb

from duckvec import background, catalog, finding
from duckvec.chains import chain_of
from duckvec.errors import (
    ArtifactError,
    QueryError,
    shorten,
)
from duckvec.filters import check_filter
from duckvec.guards import Look, begin_look, hold_guard, standing_of
from duckvec.index_types import get_index_type
from duckvec.instance import Instance
from duckvec.ladders import check_target
from duckvec.metrics import METRICS, Metric, parse_metric
from duckvec.parameters import SearchSettings, check_search_params, parse_params
from duckvec.plan_text import Search, exact_text, index_text, unseen_text
from duckvec.sql_text import (
    parse_collection,
    quote_identifier,
    quote_literal,
    quote_path,
)
from duckvec.states import DatabaseState, IndexState, Session
from duckvec.stored_plans import stored_text
from duckvec.tables import (
    Caller,
    Table,
    find_column,
    find_table,
    read_only,
    unknown_table,
)
from duckvec.tracking import UNSEALED, Generation

MAX_K = 16384
# DuckDB reads files by names with dots and slashes where no table has them.
_PLAIN_NAME = re.compile(r"[\w $-]+")
# More rows than this share of an index gone since the last look: an exact scan serves
# until the background has looked again.
REFRESH_SHARE = 0.05
REFRESH_ROWS = 64
# They are counted again after a change, but no sooner than this.
SURPLUS_SECONDS = 0.25


@dataclass(frozen=True)
class Request:
    """What a search asks for, as it came from SQL."""

    collection: str | None
    k: str | None
    params: str | None
    filter: str | None
    column_name: str | None
    metric: str | None
    transaction: int


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
    looked_up = instance.lookups.recall(request.collection, caller)
    if looked_up is not None and request.filter is None:
        table, state = looked_up
        return _plan(instance, session, request, caller, k, table, state, None, None)
    known = instance.state_of(caller)
    sign = known.look_closely() if known else None
    look = begin_look(session, known if instance.has_one_database else None)
    try:
        found = find_table(look.cursor, request.collection, caller)
        if found is None:
            return _plan_unseen(look.cursor, request, k)
        state = instance.database(look.cursor, found.database, found.database_oid)
        condition = check_filter(look.cursor, request.filter)
        instance.lookups.remember(request.collection, caller, sign, found, state)
        return _plan(
            instance, session, request, caller, k, found, state, condition, look
        )
    finally:
        look.close()


def _plan(
    instance: Instance,
    session: Session,
    request: Request,
    caller: Caller,
    k: int,
    table: Table,
    state: DatabaseState,
    condition: str | None,
    look: Look | None,
) -> str:
    """Return the text of a search of a table that was found, by the right route.

    Args:
        instance: the DuckDB instance.
        session: the caller's connection.
        request: what is asked for.
        caller: what names are resolved by.
        k: rows wanted, checked.
        table: what the collection means.
        state: its database.
        condition: the filter, checked.
        look: the transaction in which they were found, None where they were recalled.
    """
    planned = standing_of(session, state)
    column = find_column(table, request.column_name)
    index = finding.find_index(instance, state, table, column.name)
    row = index.row if index else None
    search = Search(
        table,
        column,
        _check_metric(request.metric, index),
        column.length or (index.row.dimension if index else None),
        k,
        condition,
    )
    settings = _check_params(index, request.params, k)
    if index is None or condition is not None:
        return exact_text(search)
    generation = _usable_generation(
        instance, session, state, index, search, settings.params, look
    )
    in_own_database = caller.database == table.database
    oldest = (
        generation.seal.transaction
        if in_own_database and generation is not None
        else state.catalog_seals.get(caller.database, UNSEALED)
    )
    if generation is None or request.transaction <= oldest:
        # The caller's snapshot may be older than the build; or the table may be another
        # than the one that the index was built for, with vectors of another length.
        if not index.fits(table):
            search = replace(search, dimension=column.length)
        return exact_text(search)
    built = generation.segments[0].segment.row
    if index.row is not row or (built.index_type, built.metric) != (
        row.index_type,
        row.metric,
    ):
        return exact_text(search)  # the index was replaced meanwhile
    ticket = {
        "session": session.number,
        "generation": generation.number,  # checked again at execution
        "k": k,
        "watermark": generation.watermark,
        "params": settings.params,
        "recall": settings.recall,
        "database": state.oid,
        "planned": astuple(planned),
        "in_own_database": in_own_database,
    }
    values = {
        "ticket": quote_literal(json.dumps(ticket)),
        "watermark": f"{generation.watermark:d}",
        "seen_epoch": f"{generation.seal.epoch:d}",
        "wanted": f"{k:d}",
    }
    if not in_own_database:
        # The caller's transaction begins there when the text is bound: the guard must
        # still stand. Numbers of transactions cannot be compared: the epoch that the
        # snapshot sees tells its age.
        hold_guard(instance, session, state, from_elsewhere=True)
        if not _good_for(generation, chain_of(session, state), table):
            return exact_text(search)
        values["seen_epoch"] = catalog.epoch_expression(state.name)
        return index_text(search, **values)
    return stored_text(instance, search, request.transaction, **values) or index_text(
        search, **values
    )


def _check_k(text: str | None) -> int:
    try:
        k = 0 if text is None else int(text)
    except ValueError:
        raise QueryError(
            f"k = {shorten(text or '')} is no integer; give one in [1, {MAX_K}]"
        ) from None
    if not 1 <= k <= MAX_K:
        raise QueryError(f"k = {text or 'NULL'} is outside [1, {MAX_K}]")
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


def _check_params(index: IndexState | None, text: str | None, k: int) -> SearchSettings:
    given = parse_params(text)
    if index is None:
        return check_search_params(get_index_type("FLAT"), given, k, {})
    row = index.row
    kind = get_index_type(row.index_type)
    return check_target(
        kind,
        check_search_params(kind, given, k, row.params),
        row.params,
        [segment.row.ladder for segment in index.segments],
        quote_path((row.table_name, row.column_name)),
    )


def _usable_generation(
    instance: Instance,
    session: Session,
    state: DatabaseState,
    index: IndexState,
    search: Search,
    params: Mapping[str, int],
    look: Look | None,
) -> Generation | None:
    """Return the generation that this search may use, or None for the exact scan.

    Asks for what is missing, a guard or a look at the table, in the background.
    """
    table = search.table
    if not index.segments or table.hides_rowid:
        return None
    if search.dimension is None or search.dimension != index.row.dimension:
        return None
    kind = get_index_type(index.row.index_type)
    if kind.compressed and kind.exhaustive(params, index.row.params):
        return None
    arming = hold_guard(instance, session, state, look)
    if look is not None:
        look.close()  # what follows may have to wait
    finding.look_into(instance, state, index, table)
    chain = chain_of(session, state)
    if chain is None and arming is not None:
        arming.wait_briefly()
        chain = chain_of(session, state)
    if not _good_for(index.generation, chain, table):
        if chain is None or index.failed == (chain, table.identity):
            return None
        background.prepare(instance, state).wait_briefly()
        chain = chain_of(session, state)
    generation = index.generation
    if generation is None or not _good_for(generation, chain, table):
        return None
    if not generation.entries:
        return None
    try:
        for live in generation.segments:
            live.segment.index()
    except ArtifactError as error:
        if live.segment in index.segments:
            index.last_error = str(error)
        return None
    if _too_many_gone(instance, session, state, index, generation, table):
        return None
    return generation


def _good_for(generation: Generation | None, chain: int | None, table: Table) -> bool:
    """Tell whether a generation's row ids hold for a table under a chain of guards."""
    return (
        generation is not None
        and chain is not None
        and generation.chain == chain
        and generation.table_identity == table.identity
    )


def _too_many_gone(
    instance: Instance,
    session: Session,
    state: DatabaseState,
    index: IndexState,
    generation: Generation,
    table: Table,
) -> bool:
    """Tell whether so many indexed rows are gone that searches drag them along."""
    sign, now = state.change_sign(), time.monotonic()
    changed = sign is None or sign != index.surplus_sign
    if changed and now - index.surplus_at > SURPLUS_SECONDS:
        with read_only(session.cursor()) as cursor:
            found = cursor.execute(
                f"SELECT count(*) FROM {table.path} "
                f"WHERE rowid <= {generation.watermark:d}"
            ).fetchall()
        index.surplus = generation.covered_rows - int(found[0][0])
        index.surplus_sign, index.surplus_at = sign, now
    if index.surplus <= max(REFRESH_ROWS, REFRESH_SHARE * generation.covered_rows):
        return False
    background.refresh(instance, state, index, table).wait_briefly()
    return True


def _plan_unseen(cursor: duckdb.DuckDBPyConnection, request: Request, k: int) -> str:
    """Return the text for a table that the planner cannot see.

    Such a table is temporary, or was made in the caller's open transaction. Its
    column has to be named, because nothing can be looked up.
    """
    parts = parse_collection(request.collection)
    if request.column_name is None or not _PLAIN_NAME.fullmatch(parts[-1]):
        raise unknown_table(
            cursor,
            parts,
            "a temporary table, or one of an open transaction, needs column_name",
        )
    _check_params(None, request.params, k)
    return unseen_text(
        parts,
        request.column_name,
        _check_metric(request.metric, None),
        k,
        check_filter(cursor, request.filter),
    )
