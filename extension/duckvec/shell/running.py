"""Running statements so that they can be stopped, and show how far a build is."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import duckdb
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import duckvec
from duckvec.progress import POLL_SECONDS, follow
from duckvec.shell.output import Result

# What may come of a statement; the last two where Python has no such value.
FAILURES = (duckdb.Error, OverflowError, ValueError)


class Session:
    """A connection with duckvec loaded, and another one to look at its names.

    One thread calls `run`; the statement runs in a thread of its own meanwhile.
    """

    def __init__(
        self,
        path: str,
        *,
        read_only: bool = False,
        errors: Console | None = None,
    ) -> None:
        """Open a database.

        Args:
            path: a file, made where there is none, or ":memory:".
            read_only: whether nothing may be written.
            errors: where bars are drawn, where that is a terminal.

        Raises:
            duckdb.Error: it cannot be opened.
        """
        self.connection = duckdb.connect(path, read_only=read_only)
        self.handle = duckvec.load(self.connection)
        self._watch = self.connection.cursor()
        duckvec.load(self._watch)
        self._errors = errors

    def close(self) -> None:
        """Close the database."""
        self._watch.close()
        self.connection.close()

    def run(self, text: str, most: int | None = None) -> Iterator[Result | None]:
        """Run statements one after another; yield the rows of each, or None.

        Args:
            text: one statement or more.
            most: rows to fetch of each; None fetches all.

        Raises:
            duckdb.Error: one is no SQL, and none was run; or one failed, and those
                before it are done.
            OverflowError, ValueError: Python has no value for one of the rows.
            KeyboardInterrupt: it was interrupted, and has stopped.
        """
        for statement in self.connection.extract_statements(text):
            yield self._run_one(statement, most)

    def names(self) -> list[str]:
        """Return the names of tables, columns and functions, for completion."""
        rows = self._watch.execute(
            "SELECT table_name FROM duckdb_tables() WHERE NOT internal "
            "UNION SELECT view_name FROM duckdb_views() WHERE NOT internal "
            "UNION SELECT column_name FROM duckdb_columns() WHERE NOT internal "
            "UNION SELECT function_name FROM duckdb_functions() "
            "WHERE function_name NOT LIKE '\\_\\_%' ESCAPE '\\' "
            "AND regexp_full_match(function_name, '\\w+')"
        ).fetchall()
        return sorted(name for (name,) in rows)

    def _run_one(self, statement: Any, most: int | None) -> Result | None:
        answer: list[Result | None] = []
        failure: list[BaseException] = []
        # Joining the thread would not do: once Ctrl-C came in the middle of it,
        # Python 3.11 takes the thread for one that has ended.
        ended = threading.Event()

        def work() -> None:
            try:
                answer.append(self._fetch(statement, most))
            except BaseException as error:
                failure.append(error)
            finally:
                ended.set()

        thread = threading.Thread(target=work, name="duckvec-shell", daemon=True)
        try:
            thread.start()
            self._wait(ended)
        except KeyboardInterrupt:
            self.connection.interrupt()
            while not ended.wait(POLL_SECONDS):
                self.connection.interrupt()  # it had not begun the time before
            raise
        if failure:
            raise failure[0]
        return answer[0]

    def _fetch(self, statement: Any, most: int | None) -> Result | None:
        self.connection.execute(statement)
        if statement.type in _WITHOUT_ROWS or self.connection.description is None:
            return None
        names = [column[0] for column in self.connection.description]
        if most is None:
            return Result(names, self.connection.fetchall())
        rows = self.connection.fetchmany(most + 1)
        return Result(names, rows[:most], more=len(rows) > most)

    def _wait(self, ended: threading.Event) -> None:
        """Wait for a statement; draw a bar where it builds an index for long."""
        if self._errors is None or not self._errors.is_terminal:
            # Another thread may be the one that gets the signal of Ctrl-C, one that
            # starts threads for example, and a wait without end never hears of it.
            while not ended.wait(POLL_SECONDS):
                pass
            return
        works = follow(self.handle._instance, ended.wait)
        first = next(works, None)
        if first is None:
            return
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=self._errors,
            transient=True,
        ) as progress:
            bar = progress.add_task("", total=1.0)
            for work in itertools.chain([first], works):
                progress.update(bar, description=work.label, completed=work.share)


_WITHOUT_ROWS = {
    kind
    for name in ("CREATE", "DROP", "ALTER", "TRANSACTION", "ATTACH", "DETACH", "SET")
    if (kind := getattr(duckdb.StatementType, name, None)) is not None
}


def is_complete(text: str) -> bool:
    """Tell whether what was typed is a whole statement, or none that more can mend."""
    stripped = text.strip()
    if not stripped or stripped.startswith("."):
        return True
    if not stripped.endswith(";"):
        return False
    try:
        duckdb.extract_statements(stripped)
    except duckdb.Error as error:
        return "unterminated" not in str(error)
    return True


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def __str__(self) -> str:
        seconds = time.perf_counter() - self._started
        return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def stdin_text() -> str | None:
    """Return what is piped in, None at a terminal."""
    return None if sys.stdin.isatty() else sys.stdin.read()
