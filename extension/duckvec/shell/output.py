"""Results for people and for programs: boxes, CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDEST_LIST = 4
"""So many elements of a list are shown in a box, and then an ellipsis."""
LEAST_WIDTH, MOST_BOXES = 8, 20
"""A narrower column says nothing; and so many rows are drawn as boxes of their own."""


@dataclass(frozen=True)
class Result:
    """The rows of a statement.

    Attributes:
        names: of the columns.
        rows: as DuckDB gives them to Python.
        more: whether there are rows that were not fetched.
    """

    names: Sequence[str]
    rows: Sequence[Sequence[Any]]
    more: bool = False


def as_csv(result: Result) -> str:
    """Return RFC 4180's CSV with a header; NULL is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(result.names)
    writer.writerows([["" if v is None else v for v in row] for row in result.rows])
    return text.getvalue()


def as_json(result: Result) -> str:
    """Return an array with an object for each row, a row a line."""
    rows = (
        json.dumps(
            {name: _plain(v) for name, v in zip(result.names, row, strict=True)},
            ensure_ascii=False,
        )
        for row in result.rows
    )
    return "[" + ",\n".join(rows) + "]\n"


def as_markdown(result: Result) -> str:
    """Return a table of pipes."""

    def line(cells: Sequence[str]) -> str:
        inner = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
        return f"| {' | '.join(inner)} |\n"

    numbers = [_is_numeric(result, at) for at in range(len(result.names))]
    rule = "|" + "|".join("---:" if number else "---" for number in numbers) + "|\n"
    body = (line([_shown(value) for value in row]) for row in result.rows)
    return line(result.names) + rule + "".join(body)


FORMATS: dict[str, Callable[[Result], str]] = {
    "csv": as_csv,
    "json": as_json,
    "markdown": as_markdown,
}


def report(console: Console, sentence: str) -> None:
    """Print an error."""
    console.print(sentence, style="red", markup=False, highlight=False)


def print_box(console: Console, result: Result) -> None:
    """Draw the rows with box lines, and say how many there are.

    Where few rows are too wide for the console, each has a box with a line a column.
    """
    table = _new_table()
    for at, name in enumerate(result.names):
        justify: JustifyMethod = "right" if _is_numeric(result, at) else "left"
        table.add_column(Text(name), justify=justify, overflow="ellipsis")
    for row in result.rows:
        table.add_row(*(_cell(value) for value in row))
    wanted = Measurement.get(console, console.options, table).minimum
    least = LEAST_WIDTH * len(result.names)
    if max(wanted, least) <= console.width or not 0 < len(result.rows) <= MOST_BOXES:
        console.print(table)
    else:
        for row in result.rows:
            upright = _new_table(show_header=False)
            for name, value in zip(result.names, row, strict=True):
                upright.add_row(Text(name, style="bold"), _cell(value))
            console.print(upright)
    count = len(result.rows)
    rows = "1 row" if count == 1 else f"{count:,} rows"
    console.print(f"first {rows}, and more" if result.more else rows, style="dim")


def _new_table(**options: Any) -> Table:
    return Table(box=box.SQUARE, header_style="bold", show_edge=True, **options)


def _cell(value: Any) -> Text:
    return Text("NULL", style="dim") if value is None else Text(_shown(value))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        few = [_shown(element) for element in value[:WIDEST_LIST]]
        rest = ["…"] if len(value) > WIDEST_LIST else []
        return f"[{', '.join([*few, *rest])}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{key}: {_shown(each)}" for key, each in value.items())
        return f"{{{inner}}}"
    return str(value)


def _is_numeric(result: Result, at: int) -> bool:
    values = [row[at] for row in result.rows if row[at] is not None]
    return bool(values) and all(
        isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
        for value in values
    )


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; what is not finite becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (bytes, timedelta)) or not isinstance(
        value, (str, int, bool, type(None))
    ):
        return str(value)
    return value
