"""Bars of tqdm's on the standard error, or in a notebook; nothing anywhere else.

tqdm is optional: without it nothing is shown. The environment variable TQDM_DISABLE
switches bars off, as it does everywhere with tqdm.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import duckdb

from duckvec.instance import Instance
from duckvec.progress import SLOW_SECONDS, follow

logger = logging.getLogger("duckvec")

OFF = "TQDM_DISABLE"
# A terminal may be paused: nothing waits for it longer than this.
LAST_DRAWING_SECONDS = 1.0
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


class Bar:
    """One bar, drawn when it is first shown, and taken away by `close`.

    It belongs to the thread that shows it.
    """

    def __init__(self, tqdm: Any) -> None:
        self._tqdm = tqdm
        self._bar: Any = None
        self._label = ""

    def show(self, label: str, share: float) -> None:
        """Draw what is done, and its share, 0 to 1; a new label begins anew."""
        if self._bar is None:
            self._bar = self._tqdm(
                total=1.0, desc=label, leave=False, bar_format=_FORMAT
            )
        elif label != self._label or share < self._bar.n:
            self._bar.reset()
            self._bar.set_description_str(label, refresh=False)
        self._label = label
        self._bar.n = share
        self._bar.refresh()

    def close(self) -> None:
        """Take the bar away, where one was drawn."""
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def following(
    instance: Instance, connection: duckdb.DuckDBPyConnection | None = None
) -> Iterator[None]:
    """Show a bar while the body waits for what an instance builds.

    A thread draws it, because the body waits inside DuckDB; it ends with the body.

    Args:
        instance: the DuckDB instance.
        connection: one that the body runs a statement on; DuckDB's own bar for it,
            which knows nothing of the build, is off meanwhile.
    """
    tqdm = find_tqdm()
    if tqdm is None:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(
        target=_draw, args=(tqdm, instance, ended), name="duckvec-bar", daemon=True
    )
    quiet: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if connection is not None:
        quiet = _without_bar_of_duckdb(connection)
    with quiet:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(LAST_DRAWING_SECONDS)


@contextlib.contextmanager
def counting(label: str) -> Iterator[Callable[[float], None]]:
    """Give the body a function that shows its share of work, 0 to 1, once it is slow.

    The body's own thread draws the bar.
    """
    tqdm = find_tqdm()
    if tqdm is None:
        yield lambda share: None
        return
    bar, slow_from = Bar(tqdm), time.monotonic() + SLOW_SECONDS

    def show(share: float) -> None:
        if time.monotonic() >= slow_from:
            bar.show(label, share)

    try:
        yield show
    finally:
        bar.close()


def find_tqdm() -> Any:
    """Return the class of bars that can be seen here, None where none can."""
    if os.environ.get(OFF) or not (_in_notebook() or _at_terminal()):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a notebook has no widgets
            from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm


def _draw(tqdm: Any, instance: Instance, ended: threading.Event) -> None:
    bar = Bar(tqdm)
    try:
        for work in follow(instance, ended.wait):
            bar.show(work.label, work.share)
        bar.close()
    except (OSError, ValueError) as error:  # the build goes on
        logger.debug("the bar cannot be drawn: %s", error)


@contextlib.contextmanager
def _without_bar_of_duckdb(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Switch it off for the body where it is on, as it is in interactive sessions."""
    shown = False
    with contextlib.suppress(duckdb.Error):  # an aborted transaction: the body fails
        [(shown,)] = connection.execute(
            "SELECT current_setting('enable_progress_bar')"
        ).fetchall()
        if shown:
            connection.execute("SET enable_progress_bar = false")
    try:
        yield
    finally:
        if shown:
            # Where the body's error aborted a transaction, it stays off.
            with contextlib.suppress(duckdb.Error):
                connection.execute("SET enable_progress_bar = true")


def _at_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config
