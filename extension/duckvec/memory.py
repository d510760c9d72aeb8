"""How much memory open segments and builds may hold, and what they hold."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Iterator
from typing import Protocol

from duckvec.errors import MemoryLimitError
from duckvec.sizes import format_bytes


class Holder(Protocol):
    """What holds memory that it can give back, and take again."""

    def memory_bytes(self) -> int:
        """Return the bytes held now."""

    def close_if_idle(self) -> bool:
        """Give the memory back unless somebody uses it now; return whether it did."""


class MemoryBudget:
    """What open segments and builds of one DuckDB instance hold, and their limit.

    Builds reserve what they may take before they begin, and are refused where it does
    not fit. What is opened for a search is never refused: a single segment that is
    larger than the limit is searched all the same, with all others closed.

    Any thread may call any method. The lock protects the numbers; it is held for
    moments, and never while a segment is opened or closed.
    """

    def __init__(self, limit: int | None = None) -> None:
        """Begin with nothing; `limit` in bytes, None for no limit."""
        self._lock = threading.RLock()  # a finalizer may come while it is held
        self._limit = limit
        self._reserved = 0
        self._ticks = itertools.count()
        # A segment that nobody names any more takes its memory along.
        self._used: weakref.WeakKeyDictionary[Holder, int] = weakref.WeakKeyDictionary()

    @property
    def limit(self) -> int | None:
        """The limit in bytes, None where there is none."""
        return self._limit

    def set_limit(self, limit: int | None) -> None:
        """Set or lift the limit, and close what is beyond it."""
        self._limit = limit
        self.shrink()

    def held_bytes(self) -> int:
        """Return the bytes of all open segments and running builds."""
        with self._lock:
            return self._held()

    def use(self, holder: Holder) -> None:
        """Note that an open segment is used now: it is the last to be closed."""
        with self._lock:
            self._used[holder] = next(self._ticks)

    def shrink(self, but: Holder | None = None) -> None:
        """Close the segments that were not used for longest until all is within.

        Args:
            but: one that stays open.
        """
        if self._limit is not None:
            self._make_room(0, but)

    def opening(self, expected: int) -> contextlib.AbstractContextManager[None]:
        """Make room for a segment, as far as others can be closed, and keep it.

        Args:
            expected: the bytes that it will hold, as far as that is known.
        """
        return self._taking(expected, refused=None)

    def building(
        self, wanted: int, name: str
    ) -> contextlib.AbstractContextManager[None]:
        """Reserve memory for a build.

        Args:
            wanted: the bytes that it may take.
            name: what is built, for the error.

        Raises:
            MemoryLimitError: when entered, where it does not fit.
        """
        return self._taking(wanted, refused=name)

    @contextlib.contextmanager
    def _taking(self, wanted: int, refused: str | None) -> Iterator[None]:
        self._make_room(wanted)
        with self._lock:
            held, limit = self._held(), self._limit
            if refused is not None and limit is not None and held + wanted > limit:
                raise MemoryLimitError(
                    f"{refused} may take {format_bytes(wanted)}, and memory_limit is "
                    f"{format_bytes(limit)}, of which {format_bytes(held)} are in use; "
                    "take a smaller index_file_size, another type or a higher limit"
                )
            self._reserved += wanted
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= wanted

    def _make_room(self, wanted: int, but: Holder | None = None) -> None:
        stuck = {id(but)}  # and those in use: not asked again
        while (holder := self._in_the_way(wanted, stuck)) is not None:
            if not holder.close_if_idle():
                stuck.add(id(holder))

    def _in_the_way(self, wanted: int, stuck: set[int]) -> Holder | None:
        """Return what is to be closed next to make room; None where nothing is."""
        with self._lock:
            if self._limit is None or self._held() + wanted <= self._limit:
                return None
            open_ones = [
                (used, holder)
                for holder, used in self._used.items()
                if id(holder) not in stuck and holder.memory_bytes()
            ]
        return min(open_ones, key=lambda each: each[0])[1] if open_ones else None

    def _held(self) -> int:
        holders = list(self._used)
        return self._reserved + sum(holder.memory_bytes() for holder in holders)
