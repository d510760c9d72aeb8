"""Search settings that belong to a library's object, not to the call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SharedSetting:
    """One value of an object that many threads search at once.

    Searches that want the same value run side by side; one that wants another value
    waits until they end, and those that come after it wait for it.
    """

    def __init__(self, apply: Callable[[int], None]) -> None:
        self._apply = apply
        self._value: int | None = None
        self._holders = 0
        self._waiting = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, value: int) -> Iterator[None]:
        """Keep the setting at this value until the block ends."""
        with self._changed:
            if self._holders and (self._waiting or self._value != value):
                self._waiting += 1
                try:
                    while self._holders and self._value != value:
                        self._changed.wait()
                finally:
                    self._waiting -= 1
            if self._value != value:
                self._apply(value)
                self._value = value
            self._holders += 1
        try:
            yield
        finally:
            with self._changed:
                self._holders -= 1
                self._changed.notify_all()
