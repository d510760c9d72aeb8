"""The results as a table for terminals, as Markdown, as JSON, and drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.plot import draw
from benchmarks.surface_report import surface_tables

# Promised, and marked where a result misses it.
LOWEST_RECALL = 0.95
MOST_EXTRA_MS = 3.0
LOWEST_JOIN_RATIO = 0.5
MOST_BUILD_RATIO = 1.3
MOST_EXTRA_COPIES = 2.0
MOST_CHANGING_RATIO = 2.0
MOST_SETTLED_RATIO = 1.2
MOST_BACK_SECONDS = 2.0
LOWEST_WRITE_RATIO = 0.9

WIDTH = 130
START, END = "<!-- results -->", "<!-- end of results -->"

Row = Mapping[str, Any]


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _marked(text: str, right: bool) -> str:
    return text if right else f"{text} !"


def _extra_copies(row: Row, results: Row) -> float | None:
    if row["peak_bytes"] is None or row["raw_peak_bytes"] is None:
        return None
    return (row["peak_bytes"] - row["raw_peak_bytes"]) / results["vector_bytes"]


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:,.0f}"


def _copies_cell(row: Row, results: Row) -> str:
    copies = _extra_copies(row, results)
    return _marked(_number(copies, 1), copies is None or copies <= MOST_EXTRA_COPIES)


def _build_cell(row: Row, results: Row) -> str:
    ratio = row["whole_build_ratio"]
    return _marked(_number(ratio), ratio <= MOST_BUILD_RATIO)


def _extra_cell(row: Row, results: Row) -> str:
    extra = row["sql_ms"] - row["raw_ms"]
    return _marked(_number(extra), extra <= MOST_EXTRA_MS)


def _join_cell(row: Row, results: Row) -> str:
    ratio = row["join_ratio"]
    return _marked(_number(ratio), ratio >= LOWEST_JOIN_RATIO)


def _recall_cell(name: str) -> Callable[[Row, Row], str]:
    return lambda row, results: _marked(
        _number(row[name], 3), row[name] >= LOWEST_RECALL
    )


BUILD_COLUMNS: dict[str, Callable[[Row, Row], str]] = {
    "read s": lambda row, results: _number(row["raw_read_seconds"]),
    "raw s": lambda row, results: _number(row["raw_build_seconds"]),
    "save s": lambda row, results: _number(row["raw_save_seconds"]),
    "duckvec s": lambda row, results: _number(row["build_seconds"]),
    "ratio": _build_cell,
    "to raw alone": lambda row, results: _number(row["build_ratio"]),
    "raw peak": lambda row, results: _megabytes(row["raw_peak_bytes"]),
    "duckvec peak": lambda row, results: _megabytes(row["peak_bytes"]),
    "copies on top": _copies_cell,
    "raw file": lambda row, results: _megabytes(row["raw_bytes"]),
    "duckvec files": lambda row, results: _megabytes(row["bytes"]),
}
SINGLE_COLUMNS: dict[str, Callable[[Row, Row], str]] = {
    "search parameters": lambda row, results: _params(row["search_params"]),
    "raw ms": lambda row, results: _number(row["raw_ms"]),
    "raw recall": lambda row, results: _number(row["raw_recall"], 3),
    "SQL ms": lambda row, results: _number(row["sql_ms"]),
    "SQL recall": _recall_cell("sql_recall"),
    "on top": _extra_cell,
    "on top, undisturbed": lambda row, results: _number(
        row["sql_low_ms"] - row["raw_low_ms"]
    ),
    "all columns": lambda row, results: _number(row["sql_all_columns_ms"]),
    "COSINE recall": _recall_cell("cosine_recall"),
    "raw, not rescored": lambda row, results: _without_rescoring(row),
}
BATCH_COLUMNS: dict[str, Callable[[Row, Row], str]] = {
    "raw queries/s": lambda row, results: _number(row["raw_per_second"], 0),
    "raw recall": lambda row, results: _number(row["raw_batch_recall"], 3),
    "join queries/s": lambda row, results: _number(row["join_per_second"], 0),
    "join recall": _recall_cell("join_recall"),
    "ratio": _join_cell,
    "raw, not rescored": lambda row, results: (
        _number(row["raw_plain_per_second"], 0) if "raw_plain_ms" in row else "-"
    ),
}
CHANGE_COLUMNS = ("what", "measured", "mark")


def _change_rows(changes: Row) -> list[tuple[str, str, str]]:
    """Return the lines of the table of searches and writes under change."""

    def at_most(name: str, most: float, unit: str = "") -> str:
        value = changes[name]
        text = "never" if value is None else f"{value:.2f}{unit}"
        return _marked(text, value is not None and value <= most)

    def at_least(name: str, least: float) -> str:
        value = changes[name]
        return _marked(f"{value:.2f}", value >= least)

    def recall(name: str) -> str:
        return f"{changes[name]:.3f}"

    def megabytes(name: str) -> str:
        return f"{changes[name] / 1e6:,.0f} MB"

    lines = [
        (
            "search at rest",
            f"{changes['quiet_ms']:.2f} ms, recall {recall('quiet_recall')}",
            "",
        ),
        (
            "search after each of 1,000 inserts of 20 rows",
            f"{changes['changing_ms']:.2f} ms, 95 % within "
            f"{changes['changing_high_ms']:.2f}, recall {recall('changing_recall')}",
            "",
        ),
        (
            "the same, of the search at rest",
            at_most("changing_ratio", MOST_CHANGING_RATIO),
            f"{MOST_CHANGING_RATIO} at most",
        ),
        (
            "search after a checkpoint, of one before",
            at_most("checkpoint_ratio", MOST_SETTLED_RATIO),
            f"{MOST_SETTLED_RATIO} at most",
        ),
        (
            f"back to {MOST_SETTLED_RATIO} after a checkpoint that moved rows",
            at_most("back_seconds", MOST_BACK_SECONDS, " s"),
            f"{MOST_BACK_SECONDS:.0f} s at most",
        ),
    ]
    if "join_seconds" in changes:
        lines.append(
            (
                "join of 2,000 beside 3,000 new rows, of one without: first; later",
                f"{changes['join_first_ratio']:.1f}; "
                f"{changes['join_beside_ratio']:.2f}",
                "",
            )
        )
    writes = {
        "insert": "inserts of 20 rows",
        "update": "updates of a vector",
        "update_in_place": "updates of a number",
        "delete": "deletes",
    }
    lines += [
        (
            f"{label}, of those without an index",
            at_least(f"{name}_ratio", LOWEST_WRITE_RATIO),
            f"{LOWEST_WRITE_RATIO} at least",
        )
        for name, label in writes.items()
    ]
    lines += [
        (
            f"largest {what} in {changes['hour_updates']:,} updates, as of an hour, "
            "and without an index",
            f"{megabytes(f'hour_{key}')}; {megabytes(f'hour_plain_{key}')}",
            "",
        )
        for what, key in (("file", "file_bytes"), ("log", "log_bytes"))
    ]
    return lines


OPENING_COLUMNS = (
    *("type", "connect, load, vector_indexes()", "first search, by a scan"),
    *("until the index serves", "search then"),
)


def _opening_rows(opening: Row) -> list[Any]:
    names = ("opening", "first_search", "until_index", "search")
    return [
        (index_type, *(f"{times[name]:,.0f} ms" for name in names))
        for index_type, times in opening["types"].items()
    ]


def _change_title(changes: Row) -> str:
    return f"Under change ({changes['data']}, {changes['index_type']})"


def _row_tables(results: Row) -> list[tuple[str, tuple[str, ...], list[Any]]]:
    """Return title, columns and lines of the tables that go by measure, not by type."""
    tables: list[tuple[str, tuple[str, ...], list[Any]]] = []
    if "changes" in results:
        changes = results["changes"]
        tables.append((_change_title(changes), CHANGE_COLUMNS, _change_rows(changes)))
    if "opening" in results:
        opening = results["opening"]
        title = f"Opening {opening['segments']} segments ({opening['data']})"
        tables.append((title, OPENING_COLUMNS, _opening_rows(opening)))
    if "surface" in results:
        tables += surface_tables(results["surface"])
    return tables


TABLES = {
    "Builds (memory and files in MB)": BUILD_COLUMNS,
    "One query": SINGLE_COLUMNS,
    "Many queries": BATCH_COLUMNS,
}


def _type_tables(
    results: Row,
) -> list[tuple[str, dict[str, Callable[[Row, Row], str]]]]:
    """Return title and columns of the tables that have a line for each type."""
    return list(TABLES.items()) if results["types"] else []


def write(results: Row, path: Path) -> None:
    """Write the .json, .md and .png files of a run; path has no ending."""
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(_markdown(results))
    draw(results, path.with_suffix(".png"))


def put_into(results: Row, page: Path) -> None:
    """Replace the tables between the two marks of a page."""
    before, _, rest = page.read_text().partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n\n{_markdown(results)}\n{END}{after}")


def show(results: Row) -> None:
    """Print the tables, by rich where it is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(_markdown(results))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for title, columns in _type_tables(results):
        table = Table(title=title, title_justify="left")
        table.add_column("type")
        for name in columns:
            table.add_column(name, justify="right")
        for index_type, row in results["types"].items():
            table.add_row(
                index_type, *(cell(row, results) for cell in columns.values())
            )
        console.print(table)
    for title, names, lines in _row_tables(results):
        table = Table(title=title, title_justify="left")
        for name in names:
            table.add_column(name)
        for line in lines:
            table.add_row(*line)
        console.print(table)
    console.print(_duckdb_line(results))


def _markdown(results: Row) -> str:
    versions = ", ".join(f"{name} {text}" for name, text in results["versions"].items())
    parts = [
        f"{results['data']}; k = {results['k']}, L2, {results['threads']} threads, "
        f"{results['machine']}, {results['date']}. Python {results['python']}, "
        f"{versions}. A `!` marks what misses its mark.",
    ]
    for title, columns in _type_tables(results):
        lines = [
            f"| type | {' | '.join(columns)} |",
            f"|---|{'---:|' * len(columns)}",
        ]
        for index_type, row in results["types"].items():
            cells = " | ".join(cell(row, results) for cell in columns.values())
            lines.append(f"| {index_type} | {cells} |")
        parts.append(f"### {title}\n\n" + "\n".join(lines))
    for title, names, rows in _row_tables(results):
        lines = [
            f"| {' | '.join(names)} |",
            f"|---|{'---:|' * (len(names) - 1)}",
            *(f"| {' | '.join(line)} |" for line in rows),
        ]
        parts.append(f"### {title}\n\n" + "\n".join(lines))
    parts.append(_duckdb_line(results))
    return "\n\n".join(parts) + "\n"


def _duckdb_line(results: Row) -> str:
    plain = results["duckdb"]
    return (
        f"DuckDB without an index: {plain['scan_ms']:.1f} ms for one query, which is "
        f"{1000 / plain['scan_ms']:.0f} queries/s, recall {plain['scan_recall']:.3f}. "
        f"Its floors: `SELECT 1` {plain['select_ms']:.2f} ms, binding a vector "
        f"{plain['bind_ms']:.2f} ms, joining ten row ids {plain['join_ms']:.2f} ms, "
        f"reading all vectors {plain['read_seconds']:.3f} s."
    )


def _params(params: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in params.items()) or "-"


def _without_rescoring(row: Row) -> str:
    if "raw_plain_ms" not in row:
        return "-"
    return f"{row['raw_plain_ms']:.2f} ms, {row['raw_plain_recall']:.3f}"
