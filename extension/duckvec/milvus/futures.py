"""What calls with `_async=True` return."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any


class Future:
    """A call that goes on in the client's thread.

    Any thread may call any method. The callback gets what the call returns, a tuple as
    several arguments, in the client's thread; it is not called where the call raises,
    or was cancelled. What it raises itself, `result` raises.
    """

    def __init__(
        self, call: Callable[[], Any], callback: Callable[..., Any] | None = None
    ) -> None:
        self._call: Callable[[], Any] | None = call
        self._callback = callback
        self._state: futures.Future[Any] = futures.Future()
        self._thread: int | None = None
        self._told = threading.Event()
        self._callback_error: BaseException | None = None

    def run(self) -> None:
        """Make the call and tell the callback: what the client's thread does."""
        call, self._call = self._call, None  # a call holds its vectors
        if call is not None and self._state.set_running_or_notify_cancel():
            self._thread = threading.get_ident()
            try:
                answer = call()
            except BaseException as error:
                self._state.set_exception(error)
            else:
                self._state.set_result(answer)
                self._tell(answer)
        self._told.set()

    def result(self, timeout: float | None = None, **kwargs: Any) -> Any:
        """Wait for what the call returns, and for its callback.

        In the callback itself it does not wait.

        Raises:
            TimeoutError: it took longer than so many seconds; it goes on.
            CancelledError: it was cancelled.
            Exception: what the callback raised.
        """
        until = None if timeout is None else time.monotonic() + timeout
        try:
            answer = self._state.result(timeout)
        except futures.TimeoutError as error:
            raise self._late(timeout) from error
        if threading.get_ident() != self._thread:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not self._told.wait(left):
                raise self._late(timeout)
        if self._callback_error is not None:
            raise self._callback_error
        return answer

    def done(self) -> bool:
        """Wait for the end; return True."""
        futures.wait([self._state])
        return True

    def is_done(self) -> bool:
        """Tell whether it has ended."""
        return self._state.done()

    def cancel(self) -> bool:
        """Take the call back; False where it has begun."""
        return self._state.cancel()

    def exception(self) -> None:
        """Raise what the call or its callback has raised, if anything; do not wait."""
        if self._state.done() and not self._state.cancelled():
            error = self._state.exception() or self._callback_error
            if error is not None:
                raise error

    def _tell(self, answer: Any) -> None:
        if self._callback is None:
            return
        try:
            if isinstance(answer, tuple):
                self._callback(*answer)
            else:
                self._callback(answer)
        except Exception as error:
            self._callback_error = error

    @staticmethod
    def _late(timeout: float | None) -> TimeoutError:
        return TimeoutError(f"the call did not end in {timeout} seconds; it goes on")
