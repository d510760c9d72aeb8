"""Noticing Ctrl-C in threads other than Python's main one.

Python tells only its main thread, and that waits inside DuckDB for a worker thread of
DuckDB's which runs a function of ours, and need not be told. faulthandler can note a
signal in a file before Python handles it as ever. Windows has no such function: there
Ctrl-C is noticed where the main thread itself runs our function.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import tempfile
import threading
from collections.abc import Iterator

_lock = threading.Lock()


class Noticed:
    """Whether Ctrl-C was pressed since; any thread may ask."""

    def __init__(self, file: int | None) -> None:
        """Look at a file that gets longer when it is; None: nobody tells."""
        self._file = file
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Tell whether it was."""
        with self._lock:
            return self._file is not None and os.fstat(self._file).st_size > 0

    def close(self) -> None:
        """Forget the file: its number may be that of another one soon."""
        with self._lock:
            self._file = None


def is_main_thread(ident: int) -> bool:
    """Tell whether a thread is the one in which Python handles signals."""
    return ident == threading.main_thread().ident


@contextlib.contextmanager
def noticing(wanted: bool) -> Iterator[Noticed]:
    """Notice Ctrl-C meanwhile, while the main thread is inside DuckDB.

    It cannot set another handler then, which this one would undo.
    """
    register = getattr(faulthandler, "register", None)
    if register is None or not wanted or not _lock.acquire(blocking=False):
        yield Noticed(None)
        return
    with contextlib.ExitStack() as stack:
        stack.callback(_lock.release)
        noticed = Noticed(None)
        with contextlib.suppress(OSError):  # no place for files, for example
            file = stack.enter_context(tempfile.TemporaryFile())
            register(signal.SIGINT, file, all_threads=False, chain=True)
            stack.callback(faulthandler.unregister, signal.SIGINT)
            noticed = Noticed(file.fileno())
            stack.callback(noticed.close)
        yield noticed
