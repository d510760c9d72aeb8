"""What a search that is explained did: noted on its way, and read at its end."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import Any

# An explained search that failed leaves its trace behind: only the last ones are kept.
MOST_KEPT = 16

_numbers = itertools.count(1)


@dataclass
class Trace:
    """One search, from its planning to the count of its rows.

    Attributes:
        plan: what the planner chose; a row of `vector_explain` without the rest.
        filtered: whether the search has a filter.
        started_at: when the planning began, on the performance counter.
        plan_seconds: what the planning took.
        index_seconds: what the search of the segments took.
        candidates: how many row ids it gave.
        entries_visited: how many entries the libraries compared; None where one of
            them does not tell.
        took_all: whether every row that passes the filter was a candidate.
        noting_seconds: what it took to find out how many entries were visited, which a
            search does not.
    """

    plan: dict[str, Any] = field(default_factory=dict)
    filtered: bool = False
    started_at: float = field(default_factory=time.perf_counter)
    plan_seconds: float = 0.0
    index_seconds: float = 0.0
    candidates: int = 0
    entries_visited: int | None = 0
    took_all: bool = True
    noting_seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(
        self,
        seconds: float,
        candidates: int,
        entries_visited: int | None,
        noting_seconds: float,
        *,
        took_all: bool,
    ) -> None:
        """Add what one batch of queries did; batches come from several threads."""
        with self.lock:
            self.index_seconds += seconds
            self.candidates += candidates
            self.noting_seconds += noting_seconds
            self.took_all = self.took_all and took_all
            if self.entries_visited is None or entries_visited is None:
                self.entries_visited = None
            else:
                self.entries_visited += entries_visited


class Traces:
    """The traces of a connection; any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[int, Trace] = {}

    def begin(self) -> tuple[int, Trace]:
        """Begin a trace; return its number too."""
        number, trace = next(_numbers), Trace()
        with self._lock:
            self._kept[number] = trace
            while len(self._kept) > MOST_KEPT:
                del self._kept[next(iter(self._kept))]
        return number, trace

    def find(self, number: int | None) -> Trace | None:
        """Return a trace that is kept."""
        return None if number is None else self._kept.get(number)
