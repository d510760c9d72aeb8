"""What calls with `_async=True` return."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from typing import Any


class Future:
    """A call that goes on in the client's thread.

    Any thread may call any method. A callback gets what the call returns, a tuple as
    several arguments, in the client's thread.
    """

    def __init__(
        self,
        call: futures.Future[Any],
        callback: Callable[..., Any] | None = None,
    ) -> None:
        self._call = call
        if callback is not None:
            call.add_done_callback(lambda done: _report(done, callback))

    def result(self, timeout: float | None = None, **kwargs: Any) -> Any:
        """Wait for what the call returns.

        Raises:
            TimeoutError: it took longer than so many seconds; it goes on.
            ParamError: an argument was of the wrong type.
        """
        try:
            return self._call.result(timeout)
        except futures.TimeoutError as error:
            raise TimeoutError(
                f"the call did not end in {timeout} seconds; it goes on"
            ) from error

    def done(self) -> bool:
        """Wait for the end; return True."""
        futures.wait([self._call])
        return True

    def is_done(self) -> bool:
        """Tell whether it has ended."""
        return self._call.done()

    def cancel(self) -> bool:
        """Take the call back; False where it has begun."""
        return self._call.cancel()

    def exception(self) -> BaseException | None:
        """Wait for the end; return what the call raised, if anything."""
        return self._call.exception()


def _report(done: futures.Future[Any], callback: Callable[..., Any]) -> None:
    if done.cancelled() or done.exception() is not None:
        return
    result = done.result()
    callback(*result) if isinstance(result, tuple) else callback(result)
