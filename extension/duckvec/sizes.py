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


def format_bytes(count: int) -> str:
    """Return so many bytes in three digits or so: '950 bytes', '1.23 GB', '16.0 MB'."""
    if count < 1000:
        return f"{count} bytes"
    size, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.{max(0, 2 - len(str(int(size))) + 1)}f} {unit}"


def parse_limit(given: object) -> int | None:
    """Return the bytes of a limit, None where it lifts it: 'none', or -1.

    Raises:
        ParameterError: it is neither a size nor a number of bytes.
    """
    if given == -1 or (isinstance(given, str) and given.strip().lower() == "none"):
        return None
    if isinstance(given, str):
        return parse_bytes(given)
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    raise ParameterError(
        f"memory_limit = {given!r} is neither a number of bytes nor a size; write it "
        "like 2GB or 512MiB, or none for no limit"
    )
