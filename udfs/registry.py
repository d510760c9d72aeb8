"""How a function announces itself, so that loading can register it with DuckDB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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
