"""Checking the rows of a catalog: what is edited by hand must do no harm.

A row that cannot be right makes its index *faulty*: no file of it is opened, searches
are exact, and a new index takes its place. What it says of the column, its metric for
one, is kept where it can be.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from duckvec import paths
from duckvec.catalog import MAX_FILE_SIZE, IndexRow
from duckvec.errors import VectorIndexError, shorten
from duckvec.index_types import get_index_type
from duckvec.ladders import Ladder, Rung
from duckvec.metrics import METRICS
from duckvec.parameters import check_build_params, check_search_params
from duckvec.segments import SegmentRow

# The name of what has none in the catalog.
UNKNOWN = "?"
_LARGEST = (1 << 63) - 1
_EPOCH = datetime(1970, 1, 1)

RawRow = Mapping[str, Any]
"""A catalog row by column, as DuckDB gives it."""


@dataclass(frozen=True)
class CheckedIndex:
    """What the catalog says of one column.

    Attributes:
        row: its row; with a fault, with harmless values for those that are wrong.
        segments: rows of its segments; with a fault, those that name files of ours.
        fault: the sentence about what is wrong, or None.
    """

    row: IndexRow
    segments: tuple[SegmentRow, ...]
    fault: str | None


class _WrongRowError(VectorIndexError):
    """Raised when a value of a catalog row cannot be right."""


def check_catalog(
    indexes: Sequence[RawRow], segments: Sequence[RawRow]
) -> list[CheckedIndex]:
    """Return the indexes of a catalog, one for each column that it names.

    Segments of indexes that are not there are left out.

    Args:
        indexes: the rows of `indexes`.
        segments: the rows of `segments`.
    """
    by_index: dict[str, list[RawRow]] = {}
    for raw in segments:
        by_index.setdefault(_shown(raw["index_id"]), []).append(raw)
    ids = Counter(_shown(raw["index_id"]) for raw in indexes)
    names = Counter(
        _shown(raw[name]) for raw in segments for name in ("file", "map_file")
    )
    found: dict[tuple[str, str, str], CheckedIndex] = {}
    for raw in indexes:
        own = by_index.get(_shown(raw["index_id"]), [])
        try:
            if ids[_shown(raw["index_id"])] > 1:
                raise _WrongRowError("the catalog has several rows for the same index")
            row = _index_row(raw, _refuse)
            rows = [_segment_row(each, row) for each in own]
            if any(names[name] > 1 for r in rows for name in (r.file, r.map_file)):
                raise _WrongRowError("the catalog names a file of the index twice")
            if len({each.segment for each in rows}) < len(rows):
                raise _WrongRowError("two segments of the index have the same number")
            rows.sort(key=lambda each: each.segment)
            checked = CheckedIndex(row, tuple(rows), None)
        except VectorIndexError as error:
            checked = _faulty(raw, own, str(error))
        if checked.row.key in found:
            checked = _faulty(raw, own, "the catalog has several rows for the column")
        found[checked.row.key] = checked
    return list(found.values())


def _faulty(raw: RawRow, segments: Sequence[RawRow], reason: str) -> CheckedIndex:
    way_out = "" if reason.endswith("build the index again") else "; build it again"
    row = _index_row(raw, lambda _, harmless: harmless)
    files = []
    for each in segments:
        try:
            files.append(_segment_row(each, row, loosely=True))
        except VectorIndexError:
            continue  # it names no file of ours
    return CheckedIndex(row, tuple(files), f"{reason}{way_out}")


_Otherwise = Callable[[_WrongRowError, Any], Any]
"""What becomes of a wrong value: from what is wrong, and a harmless value."""


def _refuse(error: _WrongRowError, harmless: object) -> Any:
    del harmless
    raise error


def _index_row(raw: RawRow, otherwise: _Otherwise) -> IndexRow:
    def value(name: str, read: Callable[[object], Any], harmless: object) -> Any:
        try:
            return read(raw[name])
        except (_WrongRowError, ValueError, TypeError) as error:
            return otherwise(_wrong("indexes", name, raw[name], error), harmless)

    dimension = value(
        "dimension", lambda x: None if x is None else _integer(x, 1), None
    )
    kind = value("index_type", _known_type, shorten(_shown(raw["index_type"])))

    def build_params(given: object) -> dict[str, int]:
        return check_build_params(get_index_type(kind), _object(given), dimension)

    return IndexRow(
        index_id=value("index_id", _text, ""),
        schema_name=value("schema_name", _text, UNKNOWN),
        table_name=value("table_name", _text, UNKNOWN),
        column_name=value("column_name", _text, UNKNOWN),
        index_type=kind,
        metric=value("metric", _known_metric, "L2"),
        params=value("params", build_params, {}),
        search_params=value("search_params", _numbers, {}),
        dimension=dimension,
        index_file_size=value(
            "index_file_size", lambda x: _integer(x, 0, MAX_FILE_SIZE), 0
        ),
        row_count=value("row_count", _integer, 0),
        skipped_rows=value("skipped_rows", _integer, 0),
        build_seconds=value("build_seconds", _seconds, 0.0),
        created_at=value("created_at", _time, _EPOCH),
        updated_at=value("updated_at", _time, _EPOCH),
    )


def _segment_row(raw: RawRow, index: IndexRow, *, loosely: bool = False) -> SegmentRow:
    """Return a row of `segments`; loosely, all but its file names may be wrong."""
    anywhere = Path()
    for name in ("file", "map_file"):
        paths.artifact_path(anywhere, raw[name] if _is_text(raw[name]) else "")

    def value(name: str, read: Callable[[object], Any], harmless: object) -> Any:
        if loosely:
            return harmless
        try:
            return read(raw[name])
        except (VectorIndexError, ValueError, TypeError) as error:
            raise _wrong("segments", name, raw[name], error) from None

    def same_as(wanted: object) -> Callable[[object], object]:
        def read(given: object) -> object:
            if given != wanted:
                raise _WrongRowError(f"it is {wanted} in the index's row")
            return given

        return read

    params = value("params", _numbers, {})

    def setting(given: object) -> dict[str, int]:
        return _setting(index.index_type, given, params)

    return SegmentRow(
        segment_id=value("segment_id", _text, ""),
        index_id=index.index_id,
        segment=value("segment", _integer, 0),
        index_type=value("index_type", same_as(index.index_type), ""),
        metric=value("metric", same_as(index.metric), ""),
        dimension=value("dimension", same_as(index.dimension), 0),
        row_count=value("row_count", _integer, 0),
        params=params,
        search_params=value("search_params", lambda x: setting(_json(x)), {}),
        file=raw["file"],
        map_file=raw["map_file"],
        size_bytes=value("size_bytes", _integer, 0),
        checksum=value("checksum", _text, ""),
        format_version=value("format_version", _integer, 0),
        library=value("library", str, ""),
        library_version=value("library_version", str, ""),
        build_seconds=value("build_seconds", _seconds, 0.0),
        ladder=value("ladder", lambda x: _ladder(x, setting), ()),
    )


def _setting(
    index_type: str, given: object, params: Mapping[str, int]
) -> dict[str, int]:
    """Return measured search parameters, "overfetch" among them for some types."""
    if not isinstance(given, dict):
        raise _WrongRowError("it is no JSON object")
    own = {name: value for name, value in given.items() if name != "overfetch"}
    checked = check_search_params(get_index_type(index_type), own, 1, params).params
    if "overfetch" not in given:
        return dict(checked)
    return {**checked, "overfetch": _integer(given["overfetch"], 1, 1_000_000)}


def _ladder(text: object, setting: Callable[[object], dict[str, int]]) -> Ladder:
    rungs = []
    for recall, chosen in _json(text) if text is not None else ():
        if not isinstance(recall, (int, float)) or not 0 <= recall <= 1:
            raise _WrongRowError("a recall is outside [0, 1]")
        rungs.append(Rung(float(recall), setting(chosen)))
    return tuple(rungs)


def _known_type(value: object) -> str:
    name = _text(value)
    if get_index_type(name).name != name:
        raise _WrongRowError("it is another spelling")
    return name


def _known_metric(value: object) -> str:
    if value not in METRICS:
        raise _WrongRowError(f"it is none of {', '.join(METRICS)}")
    return str(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _WrongRowError("it is no text")
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _integer(value: object, least: int = 0, most: int = _LARGEST) -> int:
    number = int(value) if isinstance(value, str) else value
    if not isinstance(number, int) or isinstance(number, bool):
        raise _WrongRowError("it is no integer")
    if not least <= number <= most:
        raise _WrongRowError(f"it is outside [{least}, {most}]")
    return number


def _seconds(value: object) -> float:
    number = float(value) if isinstance(value, (int, float, str)) else math.nan
    if not 0 <= number < math.inf:
        raise _WrongRowError("it is no time in seconds")
    return number


def _time(value: object) -> datetime:
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(found, datetime):
        raise _WrongRowError("it is no time")
    return found


def _json(text: object) -> Any:
    try:
        return json.loads(_text(text))
    except RecursionError:
        raise _WrongRowError("it is nested too deep") from None


def _object(text: object) -> dict[str, object]:
    value = _json(text)
    if not isinstance(value, dict):
        raise _WrongRowError("it is no JSON object")
    return value


def _numbers(text: object) -> dict[str, int]:
    return {name: _integer(value, -1) for name, value in _object(text).items()}


def _shown(value: object) -> str:
    return "NULL" if value is None else str(value)


def _wrong(table: str, name: str, value: object, error: Exception) -> _WrongRowError:
    why = str(error) if isinstance(error, VectorIndexError) else "it cannot be read"
    return _WrongRowError(
        f"the catalog's {table}.{name} = {shorten(_shown(value))} is wrong ({why})"
    )
