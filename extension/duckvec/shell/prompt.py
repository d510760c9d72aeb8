"""The prompt: history, several lines, completion."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import duckdb
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console

import duckvec
from duckvec.errors import without_kind
from duckvec.shell.output import print_box, report
from duckvec.shell.running import FAILURES, Session, Stopwatch, is_complete

MOST_ROWS = 200
HISTORY = Path("~/.duckvec_history")
HELP = """\
A statement ends with a semicolon, and may take several lines.
.help        this text
.tables      the tables
.indexes     the vector indexes
.quit        leave; so does Ctrl-D
"""
COMMANDS = {
    ".tables": "SHOW ALL TABLES",
    ".indexes": "SELECT collection, column_name, index_type, metric, params, "
    "indexed_rows, unindexed_rows, state FROM vector_indexes()",
}
KEYWORDS = (
    *("SELECT", "FROM", "WHERE", "GROUP BY", "ORDER BY", "LIMIT", "INSERT INTO"),
    *("VALUES", "UPDATE", "SET", "DELETE FROM", "CREATE TABLE", "DROP TABLE", "CALL"),
    *("ATTACH", "DETACH", "COPY", "EXPLAIN", "BEGIN", "COMMIT", "ROLLBACK", "JOIN"),
)
_WORD = re.compile(r"[\w.]+")


class SqlCompleter(Completer):
    """Completes keywords, and the names of tables, columns and functions."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield what begins like the word before the cursor."""
        word = document.get_word_before_cursor(pattern=_WORD)
        if not word:
            return
        if word.startswith("."):
            names: Iterable[str] = (".help", ".quit", *COMMANDS)
        else:
            names = (*self._names(), *KEYWORDS)
        for name in names:
            if name.lower().startswith(word.lower()):
                yield Completion(name, start_position=-len(word))

    def _names(self) -> list[str]:
        try:
            return self._session.names()
        except duckdb.Error:
            return []


def run_prompt(session: Session, label: str, console: Console, errors: Console) -> None:
    """Read statements and run them until the user leaves."""
    console.print(
        f"duckvec {duckvec.__version__}, DuckDB {duckdb.__version__}, {label}; "
        ".help says what there is",
        style="dim",
        highlight=False,
    )
    asking: PromptSession[str] = PromptSession(
        history=_history(),
        completer=SqlCompleter(session),
        complete_while_typing=False,
        multiline=True,
        key_bindings=_bindings(),
        prompt_continuation="      …> ",
    )
    while True:
        try:
            text = asking.prompt("duckvec> ").strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if text in (".quit", ".exit"):
            return
        run_text(session, text, console, errors)


def run_text(session: Session, text: str, console: Console, errors: Console) -> None:
    """Run what was typed, and print rows, times and errors."""
    if text == ".help":
        console.print(HELP, end="", highlight=False)
        return
    if text.startswith("."):
        if text not in COMMANDS:
            report(errors, f"no command {text[:40]}; .help lists them")
            return
        text = COMMANDS[text]
    watch = Stopwatch()
    try:
        for result in session.run(text, MOST_ROWS):
            if result is not None:
                print_box(console, result)
            console.print(str(watch), style="dim", highlight=False)
            watch = Stopwatch()
    except KeyboardInterrupt:
        errors.print("interrupted", style="red")
    except FAILURES as error:
        report(errors, without_kind(error))


def _history() -> FileHistory:
    named = os.environ.get("DUCKVEC_HISTORY")
    return FileHistory(str((Path(named) if named else HISTORY).expanduser()))


def _bindings() -> KeyBindings:
    """Return the keys: Enter runs a whole statement, and else begins a new line."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    return bindings
