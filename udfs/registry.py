"""How a function announces itself, so that loading can register it with DuckDB."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from duckvec.errors import VectorIndexError
from duckvec.sessions import find_session, pulse

NOT_LOADED = -1  # the number of no call


@dataclass(frozen=True)
class Udf:
    """One function: its SQL name, its types as SQL text, and how DuckDB calls it.

    Attributes:
        name: the name in SQL.
        function: what is called.
        arguments: types of the arguments.
        returns: type of the result.
        side_effects: whether it runs while executing; otherwise it may be folded
            while a statement is bound.
        arrow: whether it takes and returns Arrow arrays.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    returns: str
    side_effects: bool
    arrow: bool


UDFS: list[Udf] = []


def udf(
    name: str,
    arguments: tuple[str, ...],
    returns: str,
    *,
    side_effects: bool = True,
    arrow: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Announce a function to be registered under a SQL name."""

    def announce(function: Callable[..., Any]) -> Callable[..., Any]:
        UDFS.append(Udf(name, function, arguments, returns, side_effects, arrow))
        return function

    return announce


def long_udf(
    name: str, arguments: tuple[str, ...], returns: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Announce a function that takes long, the first argument a session's number.

    Besides the function itself, these: NAME_begin, which takes also the thread of the
    caller, the number of the statement, and any column. It is called for chunks of
    rows, and returns the number of the call once it is done, NULL before. And NAME_end,
    which returns the result of the call of that number.
    """

    def announce(function: Callable[..., Any]) -> Callable[..., Any]:
        def begin(*columns: pa.ChunkedArray) -> pa.Array:
            *values, caller, statement = (each[0].as_py() for each in columns[:-1])
            try:
                number = pulse(
                    values[0],
                    statement,
                    caller,
                    name,
                    tuple(values),
                    lambda: function(*values),
                )
            except VectorIndexError:
                number = NOT_LOADED  # `end` tells the sentence
            return pa.array([number] * len(columns[-1]), pa.int64())

        def end(session: int, number: int) -> dict[str, Any]:
            try:
                _, own = find_session(session)
            except VectorIndexError as error:
                return {"error": str(error), "row": None}
            call = own.calls.find(number)
            if call.error is not None:
                raise call.error
            result: dict[str, Any] = call.result
            return result

        # DuckDB counts the parameters of what it is given.
        begin.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(f"column_{at}", inspect.Parameter.POSITIONAL_ONLY)
                for at in range(len(arguments) + 3)
            ]
        )
        udf(name, arguments, returns)(function)
        udf(
            f"{name}_begin",
            (*arguments, "BIGINT", "UBIGINT", "BIGINT"),
            "BIGINT",
            arrow=True,
        )(begin)
        udf(f"{name}_end", ("INTEGER", "BIGINT"), returns)(end)
        return function

    return announce


@udf("__duckvec_caller", ("INTEGER",), "BIGINT", side_effects=False)
def caller(session: int) -> int:
    """Return the thread that binds the statement: folded, it is the caller's."""
    return threading.get_ident()


@udf("__duckvec_pulses", ("VARCHAR[]",), "VARCHAR", side_effects=False)
def pulses(arguments: list[str | None]) -> str:
    """Return the text of rows in so many chunks as nobody waits for.

    A long call waits in each of them for a moment. They are unnested, because range()
    would report progress, which DuckDB would draw.

    Args:
        arguments: those of the call, which must all be known while it is bound.
    """
    del arguments
    inner = "SELECT unnest(range(2048)) AS pulse"
    return f"{inner} FROM ({inner} FROM ({inner}))"
