"""Which connection a search was made on: the session behind a macro's number."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from typing import Any

import duckdb

from duckvec.errors import ClosedError, sentence
from duckvec.forks import require_unforked
from duckvec.instance import Instance, forgotten, loaded
from duckvec.keeper import FAILURES
from duckvec.states import Session
from duckvec.tables import read_only

# The function that returns the number of the instance that it is called in.
IDENTITY = "__duckvec_instance"

# So many connections that are gone may keep their instances.
MOST_FORGOTTEN = 64


def find_session(number: int) -> tuple[Instance, Session]:
    """Return the session of a number, which is unique in the process, and its instance.

    Raises:
        ClosedError: it is gone.
        ForkedError: it is the parent's.
    """
    require_unforked()
    instance = loaded.get(number)
    session = instance.sessions.get(number) if instance else None
    if session is None:
        instance = forgotten.get(number)
        session = _find_default_connection(instance, number) if instance else None
    if instance is None or session is None:
        raise ClosedError("duckvec was unloaded from this connection; load it again")
    return instance, session


def forget_all_but_default() -> None:
    """Keep no instance for the sake of connections that are gone for good.

    Called by `load`. Of the connections whose object is gone only Python's default one
    may still be used; which of them it is, is asked only where they are many.
    """
    if len(forgotten) > MOST_FORGOTTEN:
        default = _default_connection()
        number = default[1] if default else None
        for session, instance in list(forgotten.items()):
            if instance.number != number:
                forgotten.pop(session, None)


def _find_default_connection(instance: Instance, number: int) -> Session | None:
    """Return the session of `duckdb.default_connection()`, found again; or None.

    Python's object for it is a new one each time, and may be gone while the connection
    goes on. This runs inside a search on a connection whose object is gone: it can be
    no other one.
    """
    default = _default_connection()
    if default is None or default[1] != instance.number:
        return None
    connection = default[0]
    session = Session(connection, number)
    session.kept = connection
    with instance.lock:
        instance.sessions[number] = session
        loaded[number] = instance
        forgotten.pop(number, None)
    return session


def _default_connection() -> tuple[duckdb.DuckDBPyConnection, int] | None:
    """Return Python's default connection and its instance's number, if it has one."""
    try:
        connection = duckdb.default_connection()
        with read_only(connection.cursor()) as cursor:
            found = cursor.execute(f"SELECT {IDENTITY}()").fetchall()
    except duckdb.Error:
        return None
    return connection, int(found[0][0])


def answer(session: int, call: Callable[[Instance, Session], Any]) -> dict[str, Any]:
    """Return the row of a call, or the sentence of an error that it met."""
    try:
        return {"error": None, "row": call(*find_session(session))}
    except FAILURES as error:
        return {"error": sentence(error), "row": None}


def pulse(
    session: int,
    statement: int,
    caller: int,
    name: str,
    arguments: Hashable,
    work: Callable[[], dict[str, Any]],
) -> int | None:
    """Wait a moment for the work of a statement, which begins with the second call.

    Returns:
        The number of the call once it is done, for `Calls.find`; else None.

    Raises:
        VectorIndexError: the connection is not loaded any more.
    """
    _, own = find_session(session)
    call = own.calls.begin_once(statement, caller, (name, arguments), name, work)
    if call is None:
        return None
    with contextlib.suppress(KeyboardInterrupt):
        if call.wait_a_moment():
            return call.number
        if not call.heard_ctrl_c():
            return None
    # Raised here it would arrive as an error of this function. Interrupted, the
    # statement ends before the next pulse, with DuckDB's own error.
    call.cancel()
    own.calls.by_keyboard = True
    connection = own.connection()
    if connection is not None:
        connection.interrupt()
    return None
