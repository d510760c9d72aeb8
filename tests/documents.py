"""README.md and the pages of docs/: their blocks, and running them.

Blocks of `python` and `sql` run from the top of a page to its end, on one connection:
`con` of the page's own Python, or a new one in memory. A block with a title is foreign,
and does not run: `FOREIGN` says which titles there are and how many of each a page has.
A `text` block with the title "prints" holds what the Python block before it prints; a
table below `<!-- result -->` holds the rows of the last statement before it.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest

import duckvec

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
}
PRINTS = "prints"
# Blocks that do not run here, by their titles.
FOREIGN = {
    "docs/cookbook/semantic-search.md": {"with a model": 1},
    "docs/migrating-from-pgvector.md": {"PostgreSQL": 7},
    "docs/migrating-from-vss.md": {"DuckDB VSS": 7},
}
# Pages whose blocks another test runs.
RUN_ELSEWHERE = {"docs/integrations.md": "tests/test_integrations.py"}
_FENCE = re.compile(
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"\n]*)")?\n(?P<text>.*?)^```$'
    r"|^<!-- result -->\n\n(?P<table>(?:\|[^\n]*\n)+)",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A block of code, or a table of results, whose language is "result"."""

    language: str
    title: str | None
    text: str


def blocks(document: str) -> Iterator[Block]:
    """Return the blocks of a document in their order."""
    for match in _FENCE.finditer(document):
        if match["table"]:
            yield Block("result", None, match["table"])
        else:
            yield Block(match["language"], match["title"], match["text"])


def foreign(document: str) -> dict[str, int]:
    """Return how many blocks of Python and SQL do not run, by their titles."""
    counts: dict[str, int] = {}
    for block in blocks(document):
        if block.language in ("python", "sql") and block.title:
            counts[block.title] = counts.get(block.title, 0) + 1
    return counts


def run(document: str) -> str:
    """Run a document from its top to its end; return what its Python printed."""
    names: dict[str, Any] = {}
    printed, last, rows = "", "", ""
    try:
        for block in blocks(document):
            if block.language == "text" and block.title == PRINTS:
                assert last == block.text
            elif block.language == "result":
                assert rows == block.text
            elif block.title:
                continue
            elif block.language == "python":
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(block.text, names)
                last = out.getvalue()
                printed += last
            elif block.language == "sql":
                if "con" not in names:
                    names["con"] = duckvec.connect()
                for statement in names["con"].extract_statements(block.text):
                    rows = run_statement(names["con"], statement)
    finally:
        if "con" in names:
            names["con"].close()
    return printed


def run_statement(con: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> str:
    """Run a statement and return its rows as a Markdown table.

    A page whose extension cannot be had without a network ends there.
    """
    try:
        result = con.execute(statement)
    except duckdb.IOException:
        if not statement.query.lstrip().upper().startswith("INSTALL"):
            raise
        pytest.skip(f"{statement.query.strip()}: no network; all before it ran")
    rows = result.fetchall()
    if statement.type in (duckdb.StatementType.SELECT, duckdb.StatementType.CALL):
        assert rows, statement.query
    names = [column[0] for column in result.description or ()]
    lines = [
        names,
        ["---"] * len(names),
        *([_cell(value) for value in row] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: object) -> str:
    """Return a value as DuckDB shows it; a FLOAT arrives here as a double."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
