"""Loading duckvec into a DuckDB instance: functions once, macros per connection."""

from __future__ import annotations

import atexit
import importlib
import itertools
import logging
import os
import threading
import weakref

import duckdb
from duckdb.func import FunctionNullHandling, PythonUDFType

from duckvec.background import watch
from duckvec.errors import ClosedError, ParameterError
from duckvec.forks import abandon, require_unforked
from duckvec.instance import CLOSE_SECONDS, Instance
from duckvec.platforms import call_after_fork
from duckvec.priority import wait_for_all
from duckvec.sessions import IDENTITY, forget_all_but_default
from duckvec.sizes import parse_limit
from duckvec.sql_text import read_sql
from duckvec.states import Session
from duckvec.tables import read_only

logger = logging.getLogger("duckvec")

# Imported by name: the engine does not depend on the functions that call it.
_UDF_MODULES = (
    "duckvec.udfs.search",
    "duckvec.udfs.manage",
    "duckvec.udfs.inspect",
    "duckvec.udfs.measure",
)
_MACRO_FILES = ("search", "manage", "inspect", "measure")

_lock = threading.Lock()
# One that has no session, and that nobody holds, is gone: the next load makes another,
# with the functions that are there.
_instances: weakref.WeakValueDictionary[int, Instance] = weakref.WeakValueDictionary()
# DuckDB keeps a bare pointer to a function once the connection that registered it is
# closed, so whatever was registered stays alive as long as the process.
_registered: list[object] = []


def install(
    connection: duckdb.DuckDBPyConnection,
    directory: str | None,
    background: bool | int,
    memory_limit: int | str | None,
) -> tuple[Instance, Session]:
    """Make the SQL functions known to a connection; idempotent.

    Called by the user's own call of `load`, on the connection's thread.

    Args:
        connection: what is loaded.
        directory: where artifacts go; of the instance's first load.
        background: whether to index in the background, or with how many threads; of
            the instance's first load.
        memory_limit: for open segments and builds, from now on; None leaves it.

    Raises:
        ClosedError: the connection is closed.
        ForkedError: the parent of this process loaded duckvec before it forked.
        ParameterError: `background` or `memory_limit` is none of these.
    """
    require_unforked()
    limit = None if memory_limit is None else parse_limit(memory_limit)
    if not isinstance(background, int) or background < 0:
        raise ParameterError(
            f"background = {background!r} is neither True nor False nor a number of "
            "build threads"
        )
    with _lock:
        try:
            number = _find_number(connection)
        except duckdb.ConnectionException as error:
            raise ClosedError("the connection is closed; connect again") from error
        if number is None:
            number = _register(connection)
        instance = _instances.get(number)
        if instance is None:
            instance = _new_instance(connection, number, directory, background)
    if memory_limit is not None:
        instance.memory.set_limit(limit)
    session = instance.add_session(connection)
    forget_all_but_default()
    # What indexes there are is read now, so that they follow what ALTER does from here.
    with read_only(session.cursor()) as cursor:
        instance.look_at_all(cursor)
    for name in _MACRO_FILES:
        connection.execute(read_sql(name).replace("{session}", str(session.number)))
    watch(instance)
    return instance, session


def uninstall(connection: duckdb.DuckDBPyConnection) -> None:
    """Take the SQL functions away from a connection; no error where there are none.

    Raises:
        ForkedError: the parent of this process loaded duckvec before it forked.
    """
    require_unforked()
    with _lock:
        number = _find_number(connection)
    if number is None:
        return
    known = connection.execute(
        "SELECT DISTINCT function_name, function_type FROM duckdb_functions() "
        "WHERE database_name = 'temp' AND NOT internal "
        "AND (function_name LIKE 'vector%' OR function_name LIKE '%vector_index' "
        "OR function_name LIKE '\\_\\_duckvec%' ESCAPE '\\')"
    ).fetchall()
    ours = {name for text in _MACRO_FILES for name in _macro_names(text)}
    for name, kind in known:
        if name in ours:
            table = "TABLE " if kind == "table_macro" else ""
            connection.execute(f"DROP MACRO {table}IF EXISTS temp.main.{name}")
    instance = _instances.get(number)
    session = instance.find_session_of(connection) if instance else None
    if instance is not None and session is not None:
        instance.remove_session(session)


def _macro_names(file: str) -> set[str]:
    words = read_sql(file).split()
    return {
        after.partition("(")[0]
        for word, after in itertools.pairwise(words)
        if word == "MACRO"
    }


def _find_number(connection: duckdb.DuckDBPyConnection) -> int | None:
    """Return the number of the DuckDB instance; None where nobody loaded it yet."""
    with read_only(connection.cursor()) as cursor:
        try:
            return int(cursor.execute(f"SELECT {IDENTITY}()").fetchall()[0][0])
        except duckdb.CatalogException:
            return None


def _new_instance(
    connection: duckdb.DuckDBPyConnection,
    number: int,
    directory: str | None,
    background: bool | int,
) -> Instance:
    with read_only(connection.cursor()) as cursor:
        found = cursor.execute("SELECT current_setting('threads')").fetchall()[0][0]
    threads = int(found) or os.cpu_count() or 1
    # By default searches keep half of the processors for themselves.
    build_threads = max(1, threads // 2) if background is True else int(background)
    instance = Instance(number, directory, threads, build_threads)
    _instances[number] = instance
    return instance


def _register(connection: duckdb.DuckDBPyConnection) -> int:
    """Make the functions known to a DuckDB instance, and return its number."""
    number = len(_registered)
    for module in _UDF_MODULES:
        importlib.import_module(module)
    registry = importlib.import_module("duckvec.udfs.registry")

    def identity() -> int:
        return number

    with connection.cursor() as cursor:
        for udf in registry.UDFS:
            cursor.create_function(
                udf.name,
                udf.function,
                [duckdb.sqltype(text) for text in udf.arguments],
                duckdb.sqltype(udf.returns),
                type=PythonUDFType.ARROW if udf.arrow else PythonUDFType.NATIVE,
                side_effects=udf.side_effects,
                null_handling=FunctionNullHandling.SPECIAL,
            )
        cursor.create_function(IDENTITY, identity, [], "BIGINT", side_effects=True)
    _registered.append(identity)
    return number


@atexit.register
def _close_all() -> None:
    """Stop all background work and let go of every connection before Python ends."""
    for instance in list(_instances.values()):
        instance.close()
    _instances.clear()
    wait_for_all(CLOSE_SECONDS)


def _abandon_all() -> None:
    """Leave everything to the parent, in a child that was just forked."""
    global _lock
    _lock = threading.Lock()  # a thread that is not here may hold the parent's
    if _registered:
        abandon(list(_instances.values()))
    _instances.clear()


call_after_fork(_abandon_all)
