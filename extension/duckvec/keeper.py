"""The thread that does an instance's background work, one task at a time."""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import duckdb

from duckvec.backoff import retry_pause
from duckvec.errors import BusyError, ClosedError, VectorIndexError

logger = logging.getLogger("duckvec")

# What work may meet: our own errors, and those of DuckDB, the system and libraries.
# Each arrives in SQL as its own sentence.
FAILURES = (VectorIndexError, duckdb.Error, OSError, RuntimeError, MemoryError)

# How long a caller waits for a write of ours to begin. Beginning takes a lock that a
# FORCE CHECKPOINT holds while it waits for writers, the caller perhaps among them.
BEGIN_TIMEOUT_SECONDS = 10.0
POLL_SECONDS = 0.05
# A thread waits so long for more work: beginning another one takes longer than most.
LINGER_SECONDS = 0.1
# How long a search waits for short work of its own making.
BRIEF_SECONDS = 0.5


_waiting = threading.local()


@contextlib.contextmanager
def heeding(check: Callable[[], None], confirm: Callable[[], None]) -> Iterator[None]:
    """Ask those that this thread works for whether they still wait.

    Args:
        check: called now and then while this thread waits for tasks. What it raises
            ends the wait, and cancels the task.
        confirm: called in a task of this thread's before it commits; what it raises
            ends the task.
    """
    _waiting.check, _waiting.confirm = check, confirm
    try:
        yield
    finally:
        del _waiting.check, _waiting.confirm


def heed() -> None:
    """Stop here if whoever this thread works for wants it to."""
    check = getattr(_waiting, "check", None)
    if check is not None:
        check()


class Task:
    """One piece of work: what the keeper's thread runs, and what others wait for.

    The work calls `check` now and then, and `beginning` around statements that may
    wait for a lock; any thread may call `wait` and `cancel`.

    Attributes:
        name: what it does, for people.
        progress: how much of it is done, 0 to 1.
        before: returns the task that its thread is at.
        confirm: called before what cannot be undone; raises where nobody waits for it.
    """

    def __init__(self, name: str, work: Callable[[Task], Any]) -> None:
        self.name = name
        self.before: Callable[[], Task | None] = _nobody
        self.confirm: Callable[[], None] = _nothing_to_ask
        self.progress = 0.0
        self._work = work
        self._done = threading.Event()
        self._cancelled = threading.Event()
        self._waits_since: float | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether the work has ended, well or not."""
        return self._done.is_set()

    @property
    def failed(self) -> bool:
        """Whether it ended by an error."""
        return self._error is not None

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked it to stop."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Stop the work here where it was cancelled.

        Raises:
            ClosedError: it was.
        """
        if self.cancelled:
            raise ClosedError(f"{self.name} was cancelled")

    def beginning(self, begin: Callable[[], Any]) -> None:
        """Run `begin`, a statement that may have to wait for a lock of DuckDB's."""
        self._waits_since = time.monotonic()
        try:
            begin()
        finally:
            self._waits_since = None
        self.check()

    def held_up_seconds(self) -> float:
        """Return how long it has been waiting for a lock; 0 where it is not."""
        since = self._waits_since
        return 0.0 if since is None else time.monotonic() - since

    def waits_like(self, other: Task | None) -> None:
        """Wait as long as another task does, which holds a lock of ours."""
        self._waits_since = other._waits_since if other else None
        self.check()

    def cancel(self) -> None:
        """Ask the work to stop at its next check; it leaves nothing behind."""
        self._cancelled.set()

    def wait(self, timeout: float | None = None, *, cancels: bool = True) -> Any:
        """Wait for the end, and return the result or raise what the work raised.

        Args:
            timeout: seconds; None waits as long as it takes.
            cancels: whether interrupting the wait cancels the work, which is right for
                whoever asked for it.

        Raises:
            BusyError: the work could not begin to write in time; it is cancelled.
            TimeoutError: `timeout` seconds passed; the work goes on.
        """
        until = None if timeout is None else time.monotonic() + timeout
        try:
            while not self._done.wait(POLL_SECONDS):
                heed()
                first = self.before()
                waited = self.held_up_seconds()
                if not waited and first is not None:
                    waited = first.held_up_seconds()
                if waited > BEGIN_TIMEOUT_SECONDS:
                    raise BusyError(
                        f"{self.name} cannot begin while a checkpoint waits for open "
                        "transactions; commit them and try again"
                    )
                if until is not None and time.monotonic() > until:
                    raise TimeoutError(f"{self.name} is still running")
        except TimeoutError:
            raise  # the work goes on
        except BaseException:
            if cancels:
                self.cancel()
            raise
        if self._error is not None:
            raise self._error
        return self._result

    def wait_briefly(self, seconds: float = BRIEF_SECONDS) -> bool:
        """Wait a moment inside a call of the user's; return whether the work is done.

        Most work is short, and then over before the call returns, so that nothing of
        ours keeps the file open when the connection is closed next. Long work goes on.
        """
        try:
            self.wait(seconds, cancels=False)
        except FAILURES as error:  # TimeoutError among them
            logger.debug("%s", error)
        return self.done

    def run(self) -> None:
        """Do the work; only the keeper's thread calls this."""
        try:
            self.check()
            self._result = self._work(self)
        except BaseException as error:  # handed to whoever waits, and logged
            self._error = error
            expected = isinstance(error, VectorIndexError)
            logger.log(
                logging.INFO if expected else logging.WARNING,
                "%s failed: %s",
                self.name,
                error,
                exc_info=not expected,
            )
            # Its frames hold what the work had in hand: vectors, for example.
            for each in (error, error.__context__, error.__cause__):
                if each is not None:
                    each.with_traceback(None)
        finally:
            self._work = _nothing
            self._done.set()


class Keeper:
    """A queue of tasks and a thread that lives only while there are any, or just were.

    Any thread may call any method. The thread is a daemon; `stop` ends it.
    """

    def __init__(self, name: str, at_end: Callable[[], None] | None = None) -> None:
        """Begin without a thread; `at_end` is called where its thread ends."""
        self._name = name
        self._at_end = at_end
        self._lock = threading.Lock()
        self._queue: collections.deque[Task] = collections.deque()
        self._current: Task | None = None
        self._thread: threading.Thread | None = None
        # The same, but kept when it has no work left and is about to end.
        self._latest: threading.Thread | None = None
        self._look: Callable[[], float | None] | None = None
        self._failed_looks = 0
        self._wake = threading.Event()
        self._stopping = False

    def submit(self, name: str, work: Callable[[Task], Any]) -> Task:
        """Queue work of the caller's, and start the thread where none runs."""
        task = Task(name, work)
        task.confirm = getattr(_waiting, "confirm", _nothing_to_ask)
        return self._queue_up(task)

    def _queue_up(self, task: Task) -> Task:
        task.before = lambda: self._current
        with self._lock:
            if not self._stopping:
                self._queue.append(task)
                self._start()
                return task
        task.cancel()
        task.run()
        return task

    def submit_once(
        self, name: str, work: Callable[[Task], Any], *, join: bool = True
    ) -> Task:
        """Return the task of that name that is not done yet, or queue the work.

        Args:
            name: what it does, for people.
            work: what is done.
            join: whether one that runs already will do; else it has to begin yet.
        """
        current = self._current
        for task in self.pending():
            if task.name == name and (join or task is not current):
                return task
        return self._queue_up(Task(name, work))

    def watch(self, look: Callable[[], float | None]) -> None:
        """Call `look` now and then, between tasks, as long as it wants to.

        Args:
            look: returns the seconds until it wants to be called again, None for never.
        """
        with self._lock:
            if not self._stopping:
                self._look = look
                self._start()

    def pending(self) -> list[Task]:
        """Return the task that runs and those that wait for it.

        Takes no lock: the garbage collector may come here, by a connection that it
        found, in a thread that holds one.
        """
        queued = tuple(self._queue)  # first: what leaves the queue is current by then
        current = self._current
        tasks = [current, *(task for task in queued if task is not current)]
        return [task for task in tasks if task is not None and not task.done]

    def held_up_seconds(self) -> float:
        """Return how long the task that runs has been waiting for a lock."""
        current = self._current
        return 0.0 if current is None else current.held_up_seconds()

    def cancel(self) -> None:
        """Cancel all tasks, and take no new ones."""
        self._stopping = True
        for task in self.pending():
            task.cancel()
        self._wake.set()

    def stop(self, timeout: float | None = None) -> None:
        """Cancel all tasks and wait for the thread to end, with what it does last.

        A thread that is inside DuckDB when Python ends would end the process.
        """
        self.cancel()
        thread = self._latest
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _start(self) -> None:
        self._wake.set()
        if self._thread is None:
            self._thread = self._latest = threading.Thread(
                target=self._run, name=self._name, daemon=True
            )
            self._thread.start()

    def _run(self) -> None:
        idle = False
        while True:
            self._wake.clear()
            with self._lock:
                task = self._current = self._queue[0] if self._queue else None
                if task is not None:
                    self._queue.popleft()  # `pending` sees it at every moment
                look = self._look
                over = task is None and (self._stopping or (look is None and idle))
                if over:
                    self._thread = None
            if over:
                if self._at_end is not None:
                    self._at_end()
                return
            if task is not None:
                task.run()
                idle = False
            elif look is not None:
                self._pause(look)
            else:
                idle = not self._wake.wait(LINGER_SECONDS)

    def _pause(self, look: Callable[[], float | None]) -> None:
        try:
            seconds = look()
            self._failed_looks = 0
        except Exception:
            logger.exception("looking after the database failed")
            seconds = retry_pause(self._failed_looks)
            self._failed_looks += 1
        if seconds is not None:
            self._wake.wait(seconds)
            return
        with self._lock:
            if self._look is look:
                self._look = None


def _nothing_to_ask() -> None:
    """Stand in for asking whether anybody waits: for work of the background."""


def _nobody() -> Task | None:
    return None


def _nothing(task: Task) -> None:
    """Stand in for work that was done, so that what it held can go."""
