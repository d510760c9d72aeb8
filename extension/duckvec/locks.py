"""A lock for what finalizers change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType


class DeferringLock:
    """A reentrant lock; what finds it taken is done when it is free again.

    A finalizer runs in the middle of whatever its thread does, perhaps inside this lock
    or another one: it must not wait, and must not see half of a change. It puts its
    work where `deferred` finds it and then calls `deferred`, which begins with
    `enter_at_once`. Each release calls `deferred`, too: nothing stays undone.

    Any thread may use it.
    """

    def __init__(self, deferred: Callable[[], None]) -> None:
        self._deferred = deferred
        self._lock = threading.RLock()
        # Changed by the thread that holds the lock only.
        self._depth = 0
        self._owner: int | None = None

    @property
    def is_mine(self) -> bool:
        """Whether the thread that asks holds the lock."""
        return self._owner == threading.get_ident()

    def enter_at_once(self) -> bool:
        """Take the lock unless any thread has it, this one included."""
        if not self._lock.acquire(blocking=False):
            return False
        if self._depth:
            self._lock.release()
            return False
        self._depth, self._owner = 1, threading.get_ident()
        return True

    def leave(self) -> None:
        """Give the lock back."""
        self._depth -= 1
        free = self._depth == 0
        if free:
            self._owner = None
        self._lock.release()
        if free:
            self._deferred()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        self._owner = threading.get_ident()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()
