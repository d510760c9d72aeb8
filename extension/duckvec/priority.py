"""Running long work of libraries in threads: gently, and so that it can be given up."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from duckvec.platforms import lower_priority

POLL_SECONDS = 0.05

Result = TypeVar("Result")

_running: set[threading.Thread] = set()


def call_apart(
    work: Callable[[], Result],
    check: Callable[[], None],
    held: contextlib.ExitStack,
    *,
    gently: bool,
) -> Result:
    """Return the result of `work`, run in a thread of its own.

    It should hold Python's lock for moments only: while a thread of low priority has it
    and does not get to run, all others wait.

    Args:
        work: what is run; threads that it starts have its priority.
        check: called now and then; what it raises is raised at once, and `work` goes on
            alone, to be thrown away.
        held: what `work` needs as long as it runs; then closed here once it ended.
        gently: whether it has a low priority, where the system can do that by thread.
    """
    future: Future[Result] = Future()

    def run() -> None:
        if gently:
            lower_priority()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        finally:
            _running.discard(threading.current_thread())

    worker = threading.Thread(target=run, name="duckvec-builder", daemon=True)
    _running.add(worker)
    try:
        worker.start()
    except RuntimeError:  # no thread is to be had
        _running.discard(worker)
        raise
    try:
        while not wait([future], POLL_SECONDS).done:
            check()
    except BaseException:
        needed = held.pop_all()
        future.add_done_callback(lambda _: needed.close())
        raise
    return future.result()


def wait_for_all(seconds: float) -> None:
    """Wait so long for work to end that was given up, before the process ends."""
    until = time.monotonic() + seconds
    for worker in list(_running):
        worker.join(max(0.0, until - time.monotonic()))
