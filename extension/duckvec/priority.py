"""Running long work so that others go first, where the system can do that by thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from duckvec.platforms import has_thread_priorities, lower_priority

Result = TypeVar("Result")


def call_gently(work: Callable[[], Result]) -> Result:
    """Return the result of `work`, run in a thread of low priority.

    Threads that it starts have it, too. It should hold Python's lock for moments only:
    while a thread of low priority has it and does not get to run, all others wait.
    """
    if not has_thread_priorities():
        return work()
    future: Future[Result] = Future()

    def run() -> None:
        lower_priority()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="duckvec-builder", daemon=True).start()
    return future.result()
