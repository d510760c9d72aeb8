"""Planning one search: checking the request, and choosing the route.

`plan_search` runs while DuckDB binds a statement. Two kinds of text: the exact one
computes every distance; the one by index joins the hits of a generation to the live
table and adds the tail.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import duckdb

from duckvec import background, catalog, finding, held_tails
from duckvec.chains import chain_of
from duckvec.errors import (
    ArtifactError,
)
from duckvec.filters import PLAIN_NAME
from duckvec.guards import Look, begin_look, hold_guard, standing_of
from duckvec.index_types import get_index_type
from duckvec.instance import Instance
from duckvec.parameters import SearchSettings
from duckvec.plan_text import Search, exact_text, index_text, unseen_text
from duckvec.requests import (
    Request,
    check_k,
    check_metric,
    check_params,
    check_radius,
    in_precision,
)
from duckvec.selectivity import FEW_PASS
from duckvec.sql_text import (
    parse_collection,
    quote_literal,
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
from duckvec.tickets import Ticket
from duckvec.tracking import UNSEALED, Generation, Standing

# More rows than this share of an index gone since the last look: an exact scan serves
# until the background has looked again.
REFRESH_SHARE = 0.05
REFRESH_ROWS = 64
# They are counted again after a change, but no sooner than this.
SURPLUS_SECONDS = 0.25

# Vectors of so many components together are matched to rows while a search may wait for
# that (0.5 s, on two cores). With more of them, waiting only delays the exact scan.
BRIEF_COMPONENTS = 40_000_000

Route = Literal["exact", "allowed rows", "index"]


@dataclass(frozen=True)
class Plan:
    """How a search is answered.

    Attributes:
        text: the SQL text.
        route: by which way.
        reason: why that one, in words.
        search: what is searched; None for a table that the planner cannot see.
        index: the column's index.
        generation: the one that is searched; None for the exact scan.
        settings: the caller's search parameters, checked.
    """

    text: str
    route: Route
    reason: str
    search: Search | None = None
    index: IndexState | None = None
    generation: Generation | None = None
    settings: SearchSettings = field(default_factory=lambda: SearchSettings({}))

    @property
    def params(self) -> dict[str, int]:
        """The search parameters in effect: the most thorough of all segments."""
        if self.index is None or self.settings.recall is None:
            own = [self.index.row.search_params] if self.index else []
        else:
            recall = self.settings.recall
            own = [segment.row.setting(recall) for segment in self.index.segments]
        names = {name for setting in own for name in setting}
        most = {name: max(s[name] for s in own if name in s) for name in sorted(names)}
        return {**most, **self.settings.params}


def plan_search(
    instance: Instance,
    session: Session,
    request: Request,
    caller: Caller,
    trace: int | None = None,
) -> Plan:
    """Return the plan of a search.

    Args:
        instance: the DuckDB instance.
        session: the caller's connection.
        request: what is asked for.
        caller: what names are resolved by.
        trace: the number of the trace that the hits report to, if any.

    Raises:
        VectorIndexError: the request is wrong; the sentence says how.
    """
    k, radius = None, None
    if request.is_range:
        radius = check_radius(request.radius)
    else:
        k = check_k(request.k)
    planner = _Planner(instance, session, request, caller, k, radius, trace)
    looked_up = instance.lookups.recall(request.collection, caller)
    condition = request.filter
    is_checked = condition is None or condition in instance.checked_filters
    if looked_up is not None and is_checked:
        return planner.plan(*looked_up, None)
    known = instance.state_of(caller)
    sign = known.look_closely() if known else None
    look = begin_look(session, known if instance.has_one_database else None)
    try:
        found = find_table(look.cursor, request.collection, caller)
        if found is None:
            return planner.plan_unseen(look.cursor)
        state = instance.database(look.cursor, found.database, found.database_oid)
        instance.checked_filters.check(look.cursor, request.filter)
        instance.lookups.remember(request.collection, caller, sign, found, state)
        return planner.plan(found, state, look)
    finally:
        look.close()


def search_text(
    instance: Instance, session: Session, request: Request, caller: Caller
) -> str:
    """Return the SQL text that answers a search; see `plan_search`."""
    return plan_search(instance, session, request, caller).text


@dataclass(frozen=True)
class _Planner:
    """One search being planned; the fields are those of `plan_search`, checked."""

    instance: Instance
    session: Session
    request: Request
    caller: Caller
    k: int | None
    radius: float | None
    trace: int | None

    def plan(self, table: Table, state: DatabaseState, look: Look | None) -> Plan:
        """Return the plan of a search of a table that was found, by the right route.

        Args:
            table: what the collection means.
            state: its database.
            look: the transaction in which they were found, None where they were
                recalled.
        """
        request, session = self.request, self.session
        planned = standing_of(session, state)
        column = find_column(table, request.column_name)
        index = finding.find_index(self.instance, state, table, column.name)
        row = index.row if index else None
        search = Search(
            table,
            column,
            check_metric(request.metric, index),
            column.length or (index.row.dimension if index else None),
            self.k,
            in_precision(self.radius, column),
            request.filter,
        )
        settings = check_params(index, request.params, self.k or 1)
        exact = Plan("", "exact", "", search, index, None, settings)
        if index is None or row is None:
            return _scan(exact, search, _why_no_index(table))
        why_scan = None
        if request.filter is not None:
            why_scan = self.instance.selectivities.why_scan(
                session,
                state,
                table,
                request.filter,
                index.row.row_count,
                search.dimension or 1,
            )
        if why_scan is not None:
            route: Route = "allowed rows" if why_scan == FEW_PASS else "exact"
            return _scan(replace(exact, route=route), search, why_scan)
        generation = _usable_generation(
            self.instance, session, state, index, search, settings.params, look
        )
        if isinstance(generation, str):
            return _scan(exact, _beside(search, index), generation)
        if request.transaction <= self._oldest(table, state, generation):
            # The caller's snapshot may be older than the build.
            reason = "the transaction is older than the index"
            return _scan(exact, _beside(search, index), reason)
        built = generation.segments[0].segment.row
        if index.row is not row or (built.index_type, built.metric) != (
            row.index_type,
            row.metric,
        ):
            return _scan(exact, search, "the index was replaced meanwhile")
        if self.caller.database == table.database:
            generation = held_tails.extended(
                self.instance, index, generation, request.transaction
            )
        self.session.rely_on(generation, index)
        return self._by_index(exact, search, state, generation, planned)

    def _oldest(
        self, table: Table, state: DatabaseState, generation: Generation
    ) -> int:
        """Return the newest transaction that is too old for the generation."""
        if self.caller.database == table.database:
            return generation.seal.transaction
        return state.catalog_seals.get(self.caller.database, UNSEALED)

    def _by_index(
        self,
        exact: Plan,
        search: Search,
        state: DatabaseState,
        generation: Generation,
        planned: Standing,
    ) -> Plan:
        table, settings, condition = search.table, exact.settings, search.filter
        in_own_database = self.caller.database == table.database
        ticket = Ticket(
            session=self.session.number,
            database=state.oid,
            generation=generation.number,
            watermark=generation.watermark,
            k=self.k,
            radius=search.radius,
            params=dict(settings.params),
            recall=settings.recall,
            planned=planned,
            in_own_database=in_own_database,
            filtered=condition is not None,
            trace=self.trace,
        )
        values = {
            "ticket": quote_literal(ticket.to_json()),
            "watermark": f"{generation.watermark:d}",
            "seen_epoch": f"{generation.seal.epoch:d}",
        }
        wanted = None if self.k is None else f"{self.k:d}"
        by_index = replace(
            exact, route="index", reason="there is an index", generation=generation
        )
        if not in_own_database:
            # The caller's transaction begins there when the text is bound: the guard
            # must still stand. Numbers of transactions cannot be compared: the epoch
            # that the snapshot sees tells its age.
            hold_guard(self.instance, self.session, state, from_elsewhere=True)
            if not _good_for(generation, chain_of(self.session, state), table):
                return _scan(exact, search, "row ids cannot be held in place now")
            values["seen_epoch"] = catalog.epoch_expression(state.name)
        elif wanted is not None and condition is None:
            stored = stored_text(
                self.instance,
                search,
                self.request.transaction,
                **values,
                wanted=wanted,
            )
            if stored is not None:
                return replace(by_index, text=stored)
        text = index_text(
            search, **values, wanted=wanted, radius=search.radius, condition=condition
        )
        return replace(by_index, text=text)

    def plan_unseen(self, cursor: duckdb.DuckDBPyConnection) -> Plan:
        """Return the plan for a table that the planner cannot see.

        Such a table is temporary, or was made in the caller's open transaction. Its
        column has to be named, because nothing can be looked up.
        """
        request = self.request
        parts = parse_collection(request.collection)
        if request.column_name is None or not PLAIN_NAME.fullmatch(parts[-1]):
            raise unknown_table(
                cursor,
                parts,
                "a DataFrame, a temporary table, or one of an open transaction needs "
                "column_name",
            )
        check_params(None, request.params, self.k or 1)
        text = unseen_text(
            parts,
            request.column_name,
            check_metric(request.metric, None),
            self.k,
            self.radius,
            self.instance.checked_filters.check(cursor, request.filter),
        )
        return Plan(text, "exact", "the table is temporary, or not committed")


def _scan(plan: Plan, search: Search, reason: str) -> Plan:
    """Return the plan with the text of an exact scan."""
    return replace(plan, text=exact_text(search), search=search, reason=reason)


def _beside(search: Search, index: IndexState) -> Search:
    """Return the search as a scan beside an index needs it.

    The table may be another one than the index was built for, with vectors of another
    length.
    """
    if index.fits(search.table):
        return search
    return replace(search, dimension=search.column.length)


def _why_no_index(table: Table) -> str:
    return "there is no index" if table.kind == "table" else "it is a view"


def _usable_generation(
    instance: Instance,
    session: Session,
    state: DatabaseState,
    index: IndexState,
    search: Search,
    params: Mapping[str, int],
    look: Look | None,
) -> Generation | str:
    """Return the generation that this search may use, or why it has to scan.

    Asks for what is missing, a guard or a look at the table, in the background.
    """
    table = search.table
    if index.fault is not None:
        return "its catalog rows are wrong"
    if not index.segments:
        return "nothing is indexed"
    if table.hides_rowid:
        return "a column is called rowid"
    if search.dimension is None or search.dimension != index.row.dimension:
        return "the column has another dimension than the index"
    kind = get_index_type(index.row.index_type)
    if kind.compressed and kind.exhaustive(params, index.row.params):
        return "every row is asked for"
    arming = hold_guard(instance, session, state, look)
    if look is not None:
        look.close()  # what follows may have to wait
    finding.look_into(instance, state, index, table)
    chain = chain_of(session, state)
    if chain is None and arming is not None:
        arming.wait_briefly()
        chain = chain_of(session, state)
    if not _good_for(index.generation, chain, table):
        if chain is None:
            return "row ids cannot be held in place now"
        if index.changer is not None and index.generation is None:
            return "the entries are being matched to rows"
        if index.cannot_be_proven(chain, table.identity):
            return "the entries could not be matched to rows"
        task = background.prepare(instance, state)
        if index.row.row_count * search.dimension <= BRIEF_COMPONENTS:
            task.wait_briefly()
        chain = chain_of(session, state)
    generation = index.generation
    if generation is None or not _good_for(generation, chain, table):
        return "the entries are being matched to rows"
    if not generation.entries:
        return "no entry has a row"
    try:
        for live in generation.segments:
            live.segment.require_whole()
    except ArtifactError:
        return "a file of the index is broken"  # which `Segment.error` tells of
    _count_after_changes(instance, session, state, index, generation, table)
    if index.surplus > max(REFRESH_ROWS, REFRESH_SHARE * generation.covered_rows):
        # Searches would drag them along.
        background.refresh(instance, state, index, table).wait_briefly()
        return "many rows are gone; which ones is being looked up"
    return generation


def _good_for(generation: Generation | None, chain: int | None, table: Table) -> bool:
    """Tell whether a generation's row ids hold for a table under a chain of guards."""
    return (
        generation is not None
        and chain is not None
        and generation.chain == chain
        and generation.table_identity == table.identity
    )


def _count_after_changes(
    instance: Instance,
    session: Session,
    state: DatabaseState,
    index: IndexState,
    generation: Generation,
    table: Table,
) -> None:
    """Count the covered rows and the tail, and have more of the tail held if due."""
    sign, now = state.change_sign(), time.monotonic()
    changed = sign is None or sign != index.surplus_sign
    if not changed or now - index.surplus_at <= SURPLUS_SECONDS:
        return
    with read_only(session.cursor()) as cursor:
        if held_tails.count(instance, cursor, table, index, generation):
            index.surplus_sign, index.surplus_at = sign, now
    if held_tails.is_due(instance, index):
        background.hold_tail(instance, state, index, table)
