"""Sizes as DuckDB writes them: '2GB', '16.0 MiB'."""

from __future__ import annotations

import re

from duckvec.errors import ParameterError

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?(?:ytes?)?\s*", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str) -> int:
    """Return the bytes that a size stands for: kB is 1000 bytes, KiB 1024.

    Raises:
        ParameterError: it is no size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ParameterError(f"{text[:80]!r} is no size; write it like 2GB or 512MiB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** _POWERS[match[2].lower()])
