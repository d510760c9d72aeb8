"""The rows that pass the filter of a running search, and the entries that hold them."""

from __future__ import annotations

import functools
import itertools
import threading

import numpy as np
from numpy.typing import NDArray

from duckvec.errors import QueryError
from duckvec.index_types import get_index_type
from duckvec.index_types.base import SegmentIndex
from duckvec.metrics import Metric
from duckvec.tracking import Generation, LiveSegment

# Of one statement; more than anyone writes.
MOST_KEPT = 1000

_numbers = itertools.count(1)


class SelectedSegment:
    """The entries of one segment whose row passes the filter.

    Attributes:
        allowed: bool (entries,).
        count: how many are allowed.
    """

    def __init__(self, live: LiveSegment, passing: NDArray[np.bool_]) -> None:
        """Look up each entry's row id in `passing`, whose last place is False."""
        self.allowed = passing[live.rowids]  # row id -1 reads the last place
        self.count = int(np.count_nonzero(self.allowed))
        self._live = live
        self._lock = threading.Lock()
        self._packed: tuple[SegmentIndex, NDArray[np.int64]] | None = None

    def packed(self, metric: Metric) -> tuple[SegmentIndex, NDArray[np.int64]] | None:
        """Return a FLAT index of the allowed entries' vectors, and their positions.

        None where the type does not give its vectors back.
        """
        with self._lock:
            if self._packed is None:
                positions = np.flatnonzero(self.allowed)
                with self._live.segment.use() as index:
                    vectors = index.vectors(positions)
                if vectors is None:
                    return None
                flat = get_index_type("FLAT").build(vectors, metric, {}, threads=1)
                self._packed = flat, positions
            return self._packed


class Selection:
    """The rows up to a generation's watermark that pass a filter, in one snapshot.

    Attributes:
        rowids: int64 (n,), in any order.
    """

    def __init__(
        self, rowids: NDArray[np.int64], generation: Generation | None, watermark: int
    ) -> None:
        """Keep the rows; the generation is None where it is gone by now."""
        self.rowids = rowids
        self._generation = generation
        self._watermark = watermark

    def segments(self, generation: Generation) -> tuple[SelectedSegment, ...] | None:
        """Return what is selected of each segment; None for another generation."""
        return self._segments if generation is self._generation else None

    @functools.cached_property
    def _segments(self) -> tuple[SelectedSegment, ...]:
        if self._generation is None:
            return ()
        passing = np.zeros(self._watermark + 2, dtype=np.bool_)
        passing[self.rowids] = True
        return tuple(
            SelectedSegment(live, passing) for live in self._generation.segments
        )


class Selections:
    """The selections of the statement that a connection runs; any thread may call it.

    A connection runs one statement at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._statement: int | None = None
        self._kept: dict[int, Selection] = {}

    def keep(self, statement: int, selection: Selection) -> int:
        """Keep a selection while the statement runs; return its number."""
        number = next(_numbers)
        with self._lock:
            if statement != self._statement:
                self._statement = statement
                self._kept.clear()
            self._kept[number] = selection
            while len(self._kept) > MOST_KEPT:
                del self._kept[next(iter(self._kept))]
        return number

    def find(self, number: int) -> Selection:
        """Return the selection of that number.

        Raises:
            QueryError: it is not kept any more.
        """
        with self._lock:
            selection = self._kept.get(number)
        if selection is None:
            raise QueryError(
                f"a statement may hold {MOST_KEPT} searches with a filter; split it"
            )
        return selection
