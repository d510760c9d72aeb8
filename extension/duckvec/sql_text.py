"""SQL text: quoting, the .sql files, and the names that people type."""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Sequence

from duckvec.errors import UnknownCollectionError

_NAME_PART = re.compile(
    r"""\s*(?: "((?:[^"]|"")*)" | ([^\s".()'\[\];,]+) )\s*""", re.VERBOSE
)


def quote_identifier(name: str) -> str:
    """Return `name` as a quoted SQL identifier."""
    if "\x00" in name:
        raise UnknownCollectionError("a name cannot hold a NUL character")
    return '"' + name.replace('"', '""') + '"'


def quote_path(parts: Sequence[str]) -> str:
    """Return a dotted name with every part quoted."""
    return ".".join(quote_identifier(part) for part in parts)


def quote_literal(text: str) -> str:
    """Return `text` as a SQL string literal, for places that take no parameter."""
    if "\x00" in text:
        raise UnknownCollectionError("a text in SQL cannot hold a NUL character")
    return "'" + text.replace("'", "''") + "'"


@functools.cache
def read_sql(name: str) -> str:
    """Return the text of one packaged .sql file.

    Args:
        name: file name without its ending, such as "catalog".
    """
    resource = importlib.resources.files("duckvec.sql").joinpath(f"{name}.sql")
    return resource.read_text(encoding="utf-8")


def parse_collection(text: str | None) -> tuple[str, ...]:
    """Split a table name as one writes it in SQL into its one to three parts.

    `items`, `main.items` and `shop.main."odd name"` are such names.

    Raises:
        UnknownCollectionError: where the text is no such name.
    """
    if text is None:
        raise UnknownCollectionError(
            "the collection is NULL; name a table, such as 'items'"
        )
    parts: list[str] = []
    position = 0
    while True:
        match = _NAME_PART.match(text, position)
        part = None
        if match:
            part = match[2] if match[1] is None else match[1].replace('""', '"')
        if not match or not part or "\x00" in part:
            raise UnknownCollectionError(
                f"{text[:80]!r} is not a table name; write it like items, "
                'main.items or shop.main."odd name"'
            )
        parts.append(part)
        position = match.end()
        if position == len(text):
            break
        if text[position] != "." or len(parts) == 3:
            raise UnknownCollectionError(
                f"{text[:80]!r} is not a table name; write it like items, "
                'main.items or shop.main."odd name"'
            )
        position += 1
    return tuple(parts)
