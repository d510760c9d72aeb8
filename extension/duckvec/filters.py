"""Checking a filter: one SQL expression, parsed before it becomes part of a plan."""

from __future__ import annotations

import duckdb

from duckvec.errors import QueryError

# So many filters are remembered, but for those that are longer than this.
MOST_FILTERS, LONGEST_FILTER = 1000, 10_000


class CheckedFilters:
    """Texts that were checked before; any thread may call any method."""

    def __init__(self) -> None:
        self._texts: set[str] = set()

    def __contains__(self, text: str) -> bool:
        """Tell whether `check` found it right before."""
        return text in self._texts

    def check(self, cursor: duckdb.DuckDBPyConnection, text: str | None) -> str | None:
        """Do what `check_filter` does, once for each text: it takes a millisecond."""
        if text is not None and text not in self._texts:
            check_filter(cursor, text)
            if len(text) > LONGEST_FILTER:
                return text
            if len(self._texts) >= MOST_FILTERS:
                self._texts.clear()
            self._texts.add(text)
        return text


def check_filter(cursor: duckdb.DuckDBPyConnection, text: str | None) -> str | None:
    """Return the text of a filter that is one expression, as after WHERE.

    An expression parses both bare after SELECT and inside brackets, as the only item;
    a second statement, a clause, a list or a closing bracket that ends early does
    not. Line breaks around it end a comment.

    Args:
        cursor: any cursor; DuckDB's parser does the work, and runs nothing.
        text: the filter, or None.

    Raises:
        QueryError: it is something else.
    """
    if text is None:
        return None
    bare, bracketed = f"SELECT\n{text}\n", f"SELECT (\n{text}\n)"
    if "\x00" in text or not (
        _is_one_item(cursor, bare) and _is_one_item(cursor, bracketed)
    ):
        shown = text if len(text) <= 80 else text[:77] + "…"
        raise QueryError(
            f"filter {shown!r} is not one SQL expression; write it as after WHERE, "
            "such as 'price < 10'"
        )
    return text


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
