"""Long calls of a connection that DuckDB can interrupt.

DuckDB looks between two chunks of rows whether a statement was interrupted, and a
function in it cannot. So the work runs in a thread of its own, and the statement reads
chunks of rows that mean nothing, each of which waits a moment for that thread, until
it is done. Once a statement was interrupted no chunk comes any more: the
thread notices, and cancels the work.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

from duckvec.errors import InterruptedCallError
from duckvec.keeper import POLL_SECONDS, heeding
from duckvec.keyboard import Noticed, is_main_thread, notice

# A chunk waits no longer than this: so soon DuckDB sees that it was interrupted.
PULSE_SECONDS = 0.05
# What DuckDB's wait for a worker thread takes, and more, until Python handles a signal.
CTRL_C_PULSES = 3
# The work was given up where nobody waited for so long, and at so many looks: where the
# whole process stood still, those who wait come first.
ABANDONED_SECONDS, ABANDONED_LOOKS = 2.0, 20
# A commit waits so long, so many times, for a sign that the statement goes on, which
# takes a millisecond unless the machine is very busy.
CONFIRM_SECONDS, CONFIRM_LOOKS = 0.1, 20

_numbers = itertools.count(1)


class Call:
    """Work in a thread of its own, as long as somebody waits for it.

    `wait_a_moment` and `cancel` may be called by any thread; `check` is called by the
    work's own thread, now and then, and `confirm` by the thread that commits for it.
    """

    def __init__(self, name: str, work: Callable[[], Any], caller: int) -> None:
        """Begin the work at once, for a statement of the thread `caller`."""
        self.number = next(_numbers)
        self.result: Any = None
        self.error: BaseException | None = None
        self._name = name
        self._work = work
        self._done = threading.Event()
        # Protects what follows it; a pulse waits on it for the end, or to be let go of.
        self._changed = threading.Condition()
        self._pulses, self._asked = 0, False
        self._cancelled = False
        self._beats = self._seen = 0
        self._looks = 0
        self._looked_at = self._seen_at = time.monotonic()
        self._caller = caller
        self._ctrl_c: Noticed | None = None
        self._ctrl_c_pulses = 0
        threading.Thread(target=self._run, name="duckvec-call", daemon=True).start()

    def wait_a_moment(self) -> bool:
        """Wait for a moment; return whether the work has ended."""
        with self._changed:
            self._beats += 1
            self._pulses += 1
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._done.is_set() or self._asked, PULSE_SECONDS
            )
            self._beats += 1
        return self._done.is_set()

    def confirm(self) -> None:
        """Let the statement come again, which it does unless it was interrupted.

        After Ctrl-C it may come although its caller has left already.

        Raises:
            InterruptedCallError: it was, and nothing may be changed any more.
        """
        with self._changed:
            pulses, self._asked = self._pulses, True
            self._changed.notify_all()
            try:
                comes = any(
                    self._changed.wait_for(
                        lambda: self._pulses > pulses or self._cancelled,
                        CONFIRM_SECONDS,
                    )
                    for _ in range(CONFIRM_LOOKS)
                )
            finally:
                self._asked = False
        if not comes or self._cancelled or self._ctrl_c:
            raise InterruptedCallError(self._name)

    def heard_ctrl_c(self) -> bool:
        """Tell, once a pulse, whether Ctrl-C was pressed some pulses ago.

        Python's own error comes first: else it would still wait for the main thread,
        and come once that has left.
        """
        if self._ctrl_c and not self._done.is_set():
            self._ctrl_c_pulses += 1
        return self._ctrl_c_pulses > CTRL_C_PULSES

    def cancel(self) -> None:
        """Stop the work at its next check."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def check(self) -> None:
        """Stop the work here where it was cancelled, or nobody waits for it any more.

        Raises:
            InterruptedCallError: it was.
        """
        now = time.monotonic()
        if self._beats != self._seen:
            self._seen, self._seen_at, self._looks = self._beats, now, 0
        elif now - self._looked_at >= POLL_SECONDS / 2:
            self._looks += 1
        self._looked_at = now
        late = now - self._seen_at > ABANDONED_SECONDS
        if self._cancelled or (late and self._looks >= ABANDONED_LOOKS):
            raise InterruptedCallError(self._name)

    def _run(self) -> None:
        try:
            if is_main_thread(self._caller):
                self._ctrl_c = notice()
            with heeding(self.check, self.confirm):
                self.result = self._work()
        except BaseException as error:  # handed to the statement that waits
            self.error = error
        finally:
            self._work, self._ctrl_c = _nothing, None
            with self._changed:
                self._done.set()
                self._changed.notify_all()


class Calls:
    """The long calls of the statement that a connection runs; any thread may call it.

    A connection runs one statement at a time.

    Attributes:
        by_keyboard: whether the last statement with a call was ended by Ctrl-C.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._statement: int | None = None
        self._calls: dict[Hashable, Call] = {}
        self._announced: set[Hashable] = set()
        self.by_keyboard = False

    def begin_once(
        self,
        statement: int,
        caller: int,
        key: Hashable,
        name: str,
        work: Callable[[], Any],
    ) -> Call | None:
        """Return the call of the statement with this key; begin it the second time.

        The first time DuckDB may yet have to import what it takes results with, which
        may take longer than a call waits for it: None then.
        """
        with self._lock:
            if statement != self._statement:
                for call in self._calls.values():
                    call.cancel()
                self._statement = statement
                self._calls.clear()
                self._announced.clear()
                self.by_keyboard = False
            if key not in self._announced:
                self._announced.add(key)
                return None
            if key not in self._calls:
                self._calls[key] = Call(name, work, caller)
            return self._calls[key]

    def find(self, number: int) -> Call:
        """Return the call of that number of the statement that runs."""
        with self._lock:
            return next(c for c in self._calls.values() if c.number == number)


def _nothing() -> None:
    """Stand in for work that was done, so that what it held can go."""
