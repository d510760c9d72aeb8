"""The short table in README.md: one line for each type, and the floors of DuckDB."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

START, END = "<!-- bench:begin -->", "<!-- bench:end -->"
HEADER = (
    "| type | build, by hand | build, SQL | files | recall@10 L2 | COSINE | query, raw "
    "| query, SQL | join, of raw |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)

WIDTH = 90

Row = Mapping[str, Any]


def put_into(results: Row, page: Path) -> None:
    """Replace what stands between the two marks of a page.

    Raises:
        ValueError: the run measured no types, or no changes.
    """
    if not results["types"] or "changes" not in results:
        raise ValueError("the summary needs a run with all types and with changes")
    before, _, rest = page.read_text().partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n{summary(results)}\n{END}{after}")


def summary(results: Row) -> str:
    """Return the table and the sentences around it as Markdown."""
    plain, changes = results["duckdb"], results["changes"]
    writes = [
        changes[f"{name}_ratio"]
        for name in ("insert", "update", "update_in_place", "delete")
    ]
    scan = f"| plain scan | | | | 1 | 1 | | {plain['scan_ms']:.0f} ms | |"
    lines = [_line(name, row) for name, row in results["types"].items()]
    about = (
        f"{results['data']}; L2, k = {results['k']}, default search parameters, DuckDB "
        f"{results['versions']['duckdb']}, {results['threads']} threads, medians. "
        "*by hand* is reading the table through Arrow, building with faiss, hnswlib or "
        "annoy, and saving the library's file; *raw* is the library alone, in the same "
        f"run with the same parameters; a join is {results['batch']:,} queries at once."
    )
    floors = (
        f"In the same run `SELECT 1` took {plain['select_ms']:.1f} ms, binding one "
        f"vector {plain['bind_ms']:.1f} ms, and joining ten row ids to the table "
        f"{plain['join_ms']:.1f} ms: those floors of DuckDB are a good part of what a "
        f"single query costs beyond the library. While a table of "
        f"{changes['data'].partition(' in ')[0]} changed, a search after "
        "each of 1,000 inserts of 20 rows took "
        f"{changes['changing_ms']:.1f} ms, {changes['changing_ratio']:.1f} times the "
        "search at rest; inserts, updates and deletes ran at "
        f"{min(writes):.2f} of their speed without an index or more."
    )
    more = "[docs/performance.md](docs/performance.md) has the rest."
    table = "\n".join([HEADER, scan, *lines])
    return f"{fill(about, WIDTH)}\n\n{table}\n\n{fill(floors, WIDTH)}\n{more}"


def _line(index_type: str, row: Row) -> str:
    by_hand = (
        row["raw_read_seconds"] + row["raw_build_seconds"] + row["raw_save_seconds"]
    )
    cells = [
        index_type,
        _seconds(by_hand),
        _seconds(row["build_seconds"]),
        f"{row['bytes'] / 1e6:.0f} MB",
        _recall(row["sql_recall"]),
        _recall(row["cosine_recall"]),
        f"{row['raw_ms']:.1f} ms",
        f"{row['sql_ms']:.1f} ms",
        f"{row['join_ratio']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 0.3 else f"{value:.1f} s"


def _recall(value: float) -> str:
    return "1" if value == 1 else f"{value:.3f}".removeprefix("0")
