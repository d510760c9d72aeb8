"""What a planned search by index hands over to its execution: a ticket, as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from duckvec.tracking import Standing


@dataclass(frozen=True)
class Ticket:
    """What the hits of one search are found by.

    Attributes:
        session: number of the caller's connection.
        database: number of the table's database.
        generation: number of the generation to search, looked for again.
        watermark: the highest row id that it covers.
        k: rows wanted of each query; None where those within `radius` are.
        radius: the largest distance wanted.
        params: checked search parameters of the caller's.
        recall: a target that every segment can meet, in place of its default.
        planned: how far things had come when the search was planned.
        in_own_database: whether the table is in the caller's default database.
        filtered: whether only the rows of a selection may be returned.
        trace: number of the trace that the hits are reported to; None for none.
    """

    session: int
    database: int
    generation: int
    watermark: int
    k: int | None
    radius: float | None
    params: dict[str, int]
    recall: float | None
    planned: Standing
    in_own_database: bool
    filtered: bool
    trace: int | None

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        # Not asdict(): it copies each value, which takes longer than all the rest.
        return json.dumps({**vars(self), "planned": vars(self.planned)})

    @staticmethod
    def from_json(text: str) -> Ticket:
        """Return the ticket of a text that `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        return Ticket(**{**values, "planned": Standing(**values["planned"])})
