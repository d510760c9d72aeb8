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
from typing import IO, Any

_lock = threading.Lock()
# Where signals are noted; None until they are, or where they cannot be. The noting is
# never just undone: were that done while a signal is handled, faulthandler's handler
# would be put in place again, switched off, and no Ctrl-C would ever arrive.
_file: IO[Any] | None = None
_tried = False


class Noticed:
    """Whether Ctrl-C was pressed since this was made; any thread may ask."""

    def __init__(self, file: int | None = None) -> None:
        """Look at a file that gets longer when it is; None: nobody tells."""
        self._file = file
        self._before = self._size()

    def __bool__(self) -> bool:
        """Tell whether it was."""
        return self._size() > self._before

    def _size(self) -> int:
        return 0 if self._file is None else os.fstat(self._file).st_size


def is_main_thread(ident: int | None = None) -> bool:
    """Tell whether a thread, or this one, is where Python handles signals."""
    return (ident or threading.get_ident()) == threading.main_thread().ident


def notice() -> Noticed:
    """Notice Ctrl-C from now on, where it has its usual meaning in Python."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return Noticed()
    with _lock:
        _note()
    return Noticed(None if _file is None else _file.fileno())


def _note() -> None:
    """Put faulthandler's handler before Python's, also where it was there before.

    Who sets Python's handler anew, as notebooks do for each cell, takes it away.
    """
    global _file, _tried
    register = getattr(faulthandler, "register", None)
    if register is None:
        return
    if not _tried:
        _tried = True
        with contextlib.suppress(OSError):  # no place for files, for example
            _file = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open
    if _file is not None:
        faulthandler.unregister(signal.SIGINT)
        register(signal.SIGINT, _file, all_threads=False, chain=True)
