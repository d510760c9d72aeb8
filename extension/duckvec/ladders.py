"""Recall targets: which settings were measured on a segment, and which one to take.

A ladder holds the settings that a calibration measured, with the recall@10 that each
reached, from the cheapest to the most thorough. It is kept with its segment, so that
each segment is searched with the smallest setting that reached a target there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from duckvec.errors import ParameterError
from duckvec.index_types.base import IndexType
from duckvec.parameters import SearchSettings, measured_names


class Rung(NamedTuple):
    """A setting, with "overfetch" for compressed types, and the recall it reached."""

    recall: float
    setting: Mapping[str, int]


Ladder = tuple[Rung, ...]


@dataclass(frozen=True)
class Measured:
    """What a calibration chose as a segment's default, and what it measured."""

    default: Mapping[str, int]
    ladder: Ladder


def encode_ladder(ladder: Ladder) -> str:
    """Return a ladder as the catalog's text: [[0.973, {"ef": 24}], …]."""
    return json.dumps([[rung.recall, dict(rung.setting)] for rung in ladder])


def decode_ladder(text: str | None) -> Ladder:
    """Return the ladder of the catalog's text; an older duckvec wrote none."""
    return tuple(Rung(*rung) for rung in json.loads(text or "[]"))


def setting_for(ladder: Ladder, recall: float) -> Mapping[str, int]:
    """Return the smallest setting that reached a recall, the last where none did."""
    reached = (rung.setting for rung in ladder if rung.recall >= recall)
    return next(reached, ladder[-1].setting if ladder else {})


def check_target(
    index_type: IndexType,
    settings: SearchSettings,
    build_params: Mapping[str, int],
    ladders: Sequence[Ladder],
    place: str,
) -> SearchSettings:
    """Return the settings where every segment can meet their recall.

    A recall of 1 asks for every row where the type can do that: it becomes the
    setting with which the type looks at all.

    Args:
        index_type: the index's type.
        settings: the caller's, checked.
        build_params: the index's, as given.
        ladders: those of its segments.
        place: the table and its column, as errors name them.

    Raises:
        ParameterError: a segment's calibration did not reach the recall.
    """
    recall = settings.recall
    if recall is None or not ladders:
        return settings
    grid = index_type.search_grid(build_params, 1, 1)
    all_rows = bool(grid) and index_type.exhaustive(grid[-1], build_params)
    if all_rows and (recall == 1 or len(grid) == 1):
        return SearchSettings({**grid[-1], **settings.params})
    best = min(ladder[-1].recall if ladder else 0.0 for ladder in ladders)
    if recall <= best:
        return settings
    names = " or ".join(measured_names(index_type))
    instead = f"give {names}" if names else "leave recall out"
    shown = repr(recall).removesuffix(".0")
    if not all(ladders):
        raise ParameterError(
            f"recall = {shown} cannot be met: no recall was measured for "
            f"{index_type.name} on {place}; build the index again, or {instead}"
        )
    ask = "ask for that, or for 1" if all_rows else "ask for that"
    raise ParameterError(
        f"recall = {shown} is beyond what was measured for {index_type.name} on "
        f"{place}: {best:g} is the best known; {ask}, or {instead}"
    )
