"""What systems do differently: the only module that asks which one this is.

Tested on Linux. What the others do otherwise, and what follows from that:

- Flushing a file. macOS's fsync leaves it in the drive's cache, F_FULLFSYNC does not.
  Windows flushes only what was opened for writing.
- Flushing the names in a folder. Windows cannot: after a power cut a file that the
  catalog names may be missing, which is noticed, and searches are exact.
- Deleting a file that is open or mapped. On Linux and macOS its name goes at once and
  the file with its last reader. Windows refuses, with PermissionError: the file is left
  over, and goes later, or when the database is opened next.
- DuckDB's lock on a database file. On Linux and macOS closing any descriptor of the
  file drops it, so nothing here opens one: sizes and times are asked of its path. On
  Windows no other process can open the file at all.
- The priority of one thread. Only Linux has it; elsewhere builds in the background run
  at the usual one.
- Forking. Windows has none; see `forks`.

Index files are mapped by faiss and annoy themselves, which know the systems.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

# What fcntl.F_FULLFSYNC is on macOS, the only system that has it.
F_FULLFSYNC = 51
NICE = 19


def flush_file(path: Path) -> None:
    """Have all of a file on the disk before this returns.

    Raises:
        OSError: it cannot be flushed.
    """
    # Windows flushes only what may be written.
    flags = os.O_RDWR if sys.platform == "win32" else os.O_RDONLY
    descriptor = os.open(path, flags)
    try:
        if sys.platform == "darwin":
            _flush_the_drive(descriptor)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: Path) -> None:
    """Have the names in a folder on the disk before this returns, where that can be.

    Raises:
        OSError: it cannot be flushed, though the system can do that.
    """
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lower_priority() -> None:
    """Let other threads go before the calling one and those that it starts.

    Where the system cannot do that, or does not let us, the priority stays.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        thread = threading.get_native_id()
        nice = os.getpriority(os.PRIO_PROCESS, thread) + NICE
        os.setpriority(os.PRIO_PROCESS, thread, nice)


def call_after_fork(work: Callable[[], None]) -> None:
    """Have `work` called in each child that this process forks, before anything else.

    Nothing happens where processes cannot fork.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=work)


def _flush_the_drive(descriptor: int) -> None:
    """Flush a file and its drive's cache; some network drives can only do the first."""
    import fcntl

    try:
        fcntl.fcntl(descriptor, F_FULLFSYNC)
    except OSError:
        os.fsync(descriptor)
