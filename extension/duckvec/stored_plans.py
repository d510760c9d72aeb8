"""Plans that DuckDB parses once: macros in a hidden database in memory.

DuckDB 2.0 takes half a millisecond to parse the text of a search by index. All but
four values of it stay the same as long as the table's definition does, so the text is
kept as a macro with four parameters, in a database that no list shows, and a search
only calls it. A search whose plan is not stored gets the whole text.
"""

from __future__ import annotations

import functools
import itertools
import logging
from dataclasses import dataclass

import duckdb

from duckvec.errors import VectorIndexError
from duckvec.instance import Instance
from duckvec.keeper import Task
from duckvec.plan_text import Target, index_text
from duckvec.sql_text import quote_path
from duckvec.states import DatabaseState, StoredPlan

logger = logging.getLogger("duckvec")

_DATABASE = "__duckvec"
# A plan that so many others were stored after is dropped: nobody is about to call it.
MOST_PLANS = 1000

_ATTACH = f"ATTACH IF NOT EXISTS ':memory:' AS {_DATABASE} (HIDDEN, READ_WRITE)"
# DuckDB resolves a macro's tables when it is made; when it is called, __query is what
# the caller's macro defines.
_STAND_IN = "CREATE TEMP VIEW __query AS SELECT NULL::FLOAT[] AS vector"

_numbers = itertools.count(1)


@dataclass(frozen=True)
class _Key:
    """What a plan's text depends on."""

    database_oid: int
    table_identity: tuple[int, str]
    column: str
    metric: str
    dimension: int | None


def store(task: Task, instance: Instance, state: DatabaseState, target: Target) -> None:
    """Keep the plan of searches of a target; only the keeper calls this.

    It is an optimisation: where it fails, searches get the whole text.
    """
    key = _key(target)
    if key in instance.stored_plans:
        return
    name = f"plan_{next(_numbers)}"
    try:
        cursor = instance.background_cursor()
        try:
            create = _create(name, target)
            for statement in (_ATTACH, _STAND_IN, create):
                task.beginning(functools.partial(cursor.execute, statement))
        finally:
            cursor.close()
        # Who began before this may not see the macro yet.
        transaction = instance.seal_transaction(state.name)
    except (duckdb.Error, VectorIndexError) as error:
        logger.debug("a plan is not stored: %s", error)
        return
    with instance.lock:
        instance.stored_plans[key] = StoredPlan(_path(name), transaction)
        surplus = list(instance.stored_plans)[:-MOST_PLANS]
        old = [instance.stored_plans.pop(each) for each in surplus]
    for plan in old:
        _drop(instance, plan)


def stored_text(
    instance: Instance,
    target: Target,
    transaction: int,
    *,
    ticket: str,
    watermark: str,
    seen_epoch: str,
    wanted: str,
) -> str | None:
    """Return the text that calls the stored plan; None where there is none to see.

    Args:
        instance: the DuckDB instance.
        target: what is searched, a table of the caller's default database.
        transaction: number of the caller's transaction.
        ticket: see `index_text`, and the others.
        watermark: literal.
        seen_epoch: literal.
        wanted: literal.
    """
    plan = instance.stored_plans.get(_key(target))
    if plan is None or transaction <= plan.transaction:
        return None
    return f"FROM {plan.path}({ticket}, {watermark}, {seen_epoch}, {wanted})"


def _create(name: str, target: Target) -> str:
    text = index_text(
        target,
        ticket="__ticket",
        watermark="__watermark",
        seen_epoch="__seen_epoch",
        wanted="__wanted",
    )
    parameters = "__ticket, __watermark, __seen_epoch, __wanted"
    return f"CREATE MACRO {_path(name)}({parameters}) AS TABLE {text}"


def _drop(instance: Instance, plan: StoredPlan) -> None:
    try:
        cursor = instance.background_cursor()
        try:
            cursor.execute(f"DROP MACRO TABLE IF EXISTS {plan.path}")
        finally:
            cursor.close()
    except duckdb.Error as error:
        logger.debug("a stored plan stays: %s", error)


def _path(name: str) -> str:
    return quote_path((_DATABASE, "main", name))


def _key(target: Target) -> _Key:
    table = target.table
    return _Key(
        table.database_oid,
        table.identity,
        target.column.name,
        target.metric.name,
        target.dimension,
    )
