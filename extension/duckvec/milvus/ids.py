"""New ids of entities."""

from __future__ import annotations

import threading
import time


class IdSource:
    """Gives ids from the clock, each once in this process.

    Only one process writes to a file, and unless it is set back, the clock is ahead of
    the ids that earlier ones gave. Any thread may ask: `_lock` protects `_last`, and is
    held for a moment.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def take(self, count: int) -> list[int]:
        """Return so many new ids, one after another."""
        with self._lock:
            first = max(time.time_ns(), self._last + 1)
            self._last = first + count - 1
        return list(range(first, first + count))


NEW_IDS = IdSource()
