"""Faults of the file system, for tests: calls on the files of an index that fail.

Python tells an audit hook of each file that it opens, renames, deletes or lists, before
it does; what the hook raises takes the place of the call. Flushing and the writing done
by libraries are wrapped besides. So all that duckvec does on disk is counted, in every
thread, and the n-th call can be made to fail; DuckDB's own files are left alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from duckvec.index_types.annoy import AnnoySegment
from duckvec.index_types.hnsw import HnswSegment

ERRORS = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS)
_WATCHED = {
    "open": "open",
    "os.rename": "rename",
    "os.remove": "remove",
    "os.mkdir": "mkdir",
    "os.rmdir": "rmdir",
    "os.listdir": "list",
    "os.scandir": "list",
}


@dataclass
class Disk:
    """What is done with the files in one folder, and what of it fails.

    Attributes:
        folder: the artifacts' folder; None while nothing is watched.
        fails: says whether a call fails, given its number from 0 and its name.
        error: the number of the error that failing calls meet.
        calls: the names of the calls so far.
        failed: the names of those that failed.
    """

    folder: str | None = None
    fails: Callable[[int, str], bool] = lambda number, name: False
    error: int = errno.ENOSPC
    calls: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def meet(self, name: str, path: object) -> None:
        """Count a call, and raise what it is to meet."""
        if self.folder is None or not isinstance(path, (str, os.PathLike)):
            return
        text = os.fspath(path)
        if not text.startswith(self.folder):
            return
        with self.lock:
            number = len(self.calls)
            self.calls.append(name)
            fails = self.fails(number, name)
            if fails:
                self.failed.append(name)
        if fails:
            raise OSError(self.error, os.strerror(self.error), text)


_disk = Disk()
_hooked: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    name = _WATCHED.get(event)
    if name and _disk.folder is not None and arguments:
        _disk.meet(name, arguments[0])


@contextlib.contextmanager
def watched(
    folder: Path,
    fails: Callable[[int, str], bool] = lambda number, name: False,
    error: int = errno.ENOSPC,
) -> Iterator[Disk]:
    """Count the calls on files in a folder, and let some fail."""
    if not _hooked:
        sys.addaudithook(_hook)  # there is no way to take it away again
        _hooked.append(True)
    fsync = os.fsync

    def watched_fsync(descriptor: int) -> None:
        _disk.meet("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", watched_fsync)
        for kind in (HnswSegment, AnnoySegment):
            patch.setattr(kind, "save", _half_written(kind.save))
        _disk.calls, _disk.failed = [], []
        _disk.fails, _disk.error, _disk.folder = fails, error, str(folder)
        try:
            yield _disk
        finally:
            _disk.folder = None


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Let a test look at the folder itself."""
    folder, _disk.folder = _disk.folder, None
    try:
        yield
    finally:
        _disk.folder = folder


def _half_written(save: Callable[[Any, Path], None]) -> Callable[[Any, Path], None]:
    """Return a `save` that may leave half a file and then fail."""

    def watched_save(self: Any, path: Path) -> None:
        try:
            _disk.meet("save", path)
        except OSError:
            with contextlib.suppress(OSError):
                path.write_bytes(b"half of a file")
            raise
        save(self, path)

    return watched_save


def nth(wanted: int) -> Callable[[int, str], bool]:
    """Return what lets one call fail."""
    return lambda number, name: number == wanted


def from_nth(wanted: int) -> Callable[[int, str], bool]:
    """Return what lets a call and all that follow fail."""
    return lambda number, name: number >= wanted
