"""Checking a filter: one SQL expression, parsed before it becomes part of a plan.

A filter chooses among rows: it may ask other tables, but it changes nothing, gives the
same answer however often it is asked, and reads no files.
"""

from __future__ import annotations

import json
import re
from typing import Any

import duckdb

from duckvec.errors import QueryError, shorten

# So many filters are remembered, but for those that are longer than this.
MOST_FILTERS, LONGEST_FILTER = 1000, 10_000

_VOLATILE = """
SELECT function_name, bool_or(stability = 'VOLATILE')
FROM duckdb_functions()
WHERE list_contains($names, function_name)
GROUP BY ALL
"""
# Ours are macros over functions with side effects; DuckDB tells that of functions only.
_CHANGING = re.compile("__duckvec.*|(create|drop)_vector_index|vector_compact")
_TABLE_FUNCTIONS = frozenset(("range", "generate_series", "unnest"))
_QUERIES = frozenset(
    ("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE")
)
# DuckDB reads files by names with dots and slashes where no table has them.
PLAIN_NAME = re.compile(r"[\w $-]+")


class CheckedFilters:
    """Texts that were checked before; any thread may call any method."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._volatile: dict[str, bool] = {}

    def __contains__(self, text: str) -> bool:
        """Tell whether `check` found it right before."""
        return text in self._texts

    def check(self, cursor: duckdb.DuckDBPyConnection, text: str | None) -> str | None:
        """Return the text of a filter that is one expression, as after WHERE.

        An expression parses both bare after SELECT and inside brackets, as the only
        item; a second statement, a clause, a list or a closing bracket that ends early
        does not. Line breaks around it end a comment. Each text is checked once: it
        takes a millisecond.

        Args:
            cursor: any cursor; DuckDB's parser does the work, and runs nothing.
            text: the filter, or None.

        Raises:
            QueryError: it is something else, or does more than to choose rows.
        """
        if text is None or text in self._texts:
            return text
        self._check(cursor, text)
        if len(text) <= LONGEST_FILTER:
            if len(self._texts) >= MOST_FILTERS:
                self._texts.clear()
            self._texts.add(text)
        return text

    def _check(self, cursor: duckdb.DuckDBPyConnection, text: str) -> None:
        bare, bracketed = f"SELECT\n{text}\n", f"SELECT (\n{text}\n)"
        if "\x00" in text or not (
            _is_one_item(cursor, bare) and _is_one_item(cursor, bracketed)
        ):
            raise QueryError(
                f"filter {_shown(text)} is not one SQL expression; write it as after "
                "WHERE, such as 'price < 10'"
            )
        found = cursor.execute("SELECT json_serialize_sql($sql)", {"sql": bare})
        uses = _Uses(found.fetchall()[0][0], text)
        for name in sorted(uses.functions - _TABLE_FUNCTIONS):
            if _CHANGING.fullmatch(name) or self._is_volatile(cursor, name):
                raise QueryError(
                    f"filter {_shown(text)} calls {shorten(name)}, which changes "
                    "something or answers anew each time; use what depends on the row "
                    "alone"
                )

    def _is_volatile(self, cursor: duckdb.DuckDBPyConnection, name: str) -> bool:
        """Tell whether a function has side effects; looking that up takes 30 ms."""
        if name not in self._volatile:
            names = [name, *_COMMON] if not self._volatile else [name]
            found = dict(cursor.execute(_VOLATILE, {"names": names}).fetchall())
            if len(self._volatile) >= MOST_FILTERS:
                self._volatile.clear()
            self._volatile.update((each, bool(found[each])) for each in found)
            if name not in found:
                return False  # there is none, and DuckDB says so better
        return self._volatile[name]


# Looked up together, before the first filter needs one of them.
_COMMON = (*"+-*/%~", "||", "~~", "~~*", "!~~", "lower", "upper", "length", "contains")


class _Uses:
    """What a parsed filter uses: `functions` are the names of those it calls.

    Raises:
        QueryError: it reads files, changes something, or is nested too deep.
    """

    def __init__(self, parsed: str, text: str) -> None:
        self.functions: set[str] = set()
        self._text = text
        try:
            json.loads(parsed, object_hook=self._look)
        except RecursionError:
            raise QueryError(
                f"filter {_shown(text)} is nested too deep; write it flatter"
            ) from None

    def _look(self, node: dict[str, Any]) -> dict[str, Any]:
        kind = node.get("type")
        if not isinstance(kind, str):
            return node
        if "function_name" in node:
            self.functions.add(node["function_name"].lower())
        if kind == "TABLE_FUNCTION":
            name = str((node.get("function") or {}).get("function_name")).lower()
            self._allow(name in _TABLE_FUNCTIONS, name)
        elif kind == "BASE_TABLE":
            name = str(node.get("table_name"))
            self._allow(PLAIN_NAME.fullmatch(name) is not None, name)
        elif kind == "SHOW_REF" or kind.endswith("_NODE"):
            self._allow(kind in _QUERIES, kind.partition("_")[0])
        return node

    def _allow(self, allowed: bool, name: str) -> None:
        if not allowed:
            raise QueryError(
                f"filter {_shown(self._text)} reads or writes by {shorten(name)!r}; it "
                f"may ask tables and {', '.join(sorted(_TABLE_FUNCTIONS))}"
            )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "…")


def _is_one_item(cursor: duckdb.DuckDBPyConnection, sql: str) -> bool:
    """Tell whether the text is one SELECT of one item and nothing else."""
    found = cursor.execute(
        """
        SELECT
            json_extract_string(parsed, '$.error') = 'false'
            AND json_array_length(parsed, '$.statements') = 1
            AND json_array_length(parsed, '$.statements[0].node.select_list') = 1
            AND item <> 'STAR'
            AND source = 'EMPTY'
            AND condition IS NULL
            AND json_array_length(parsed, '$.statements[0].node.modifiers') = 0
        FROM (
            SELECT
                parsed,
                json_extract_string(parsed, '$.statements[0].node.select_list[0].class')
                    AS item,
                json_extract_string(parsed, '$.statements[0].node.from_table.type')
                    AS source,
                json_extract_string(parsed, '$.statements[0].node.where_clause')
                    AS condition
            FROM (SELECT json_serialize_sql($sql)::JSON AS parsed)
        )
        """,
        {"sql": sql},
    ).fetchall()
    return bool(found[0][0])
