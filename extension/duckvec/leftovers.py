"""Files that are to be deleted: at once, or, where that fails, once it can be done.

A file that nothing names any more does no harm, so its deletion never fails a call:
the catalog was committed before. Names are never given twice, so that a late deletion
hits nothing else. What a process leaves behind goes when the database is opened next.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from duckvec import paths
from duckvec.backoff import retry_pause

logger = logging.getLogger("duckvec")


class Leftovers:
    """What could not be deleted yet; any thread may call any method.

    The lock is held for moments, and never while a file is deleted. A finalizer may
    come while its own thread holds it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._left: set[Path] = set()
        self._failures = 0
        self._retry_at = 0.0

    def discard(self, path: Path) -> None:
        """Delete a file now, or keep it in mind for `retry`."""
        try:
            paths.remove(path)
        except OSError as error:
            self._keep(path)
            logger.warning("%s stays for now: %s", path.name, error.strerror or error)

    def retry(self) -> None:
        """Try again to delete what is left, once the pause after a failure is over."""
        if not self._left or time.monotonic() < self._retry_at:
            return
        with self._lock:
            left, self._left = self._left, set()
        for path in sorted(left):
            try:
                paths.remove(path)
            except OSError as error:
                self._keep(path)
                logger.debug("%s still stays: %s", path.name, error)
        with self._lock:
            self._failures = self._failures + 1 if self._left else 0
            self._retry_at = time.monotonic() + retry_pause(self._failures)

    def _keep(self, path: Path) -> None:
        with self._lock:
            if not self._left:
                self._retry_at = time.monotonic() + retry_pause(0)
            self._left.add(path)


leftovers = Leftovers()
"""Those of this process."""


def remove_orphans(folder: Path, named: set[str]) -> None:
    """Delete our files in `folder` that no catalog row names, as far as that goes."""
    try:
        orphans = paths.find_orphans(folder, named)
    except OSError as error:
        logger.warning("%s cannot be cleaned up: %s", folder, error.strerror or error)
        return
    for path in orphans:
        leftovers.discard(path)
