"""The command line of `duckvec`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import duckdb
from rich.console import Console

import duckvec as package
from duckvec.errors import VectorIndexError, without_kind
from duckvec.shell import checking
from duckvec.shell.demo import run_demo
from duckvec.shell.output import FORMATS, Result, print_box, report
from duckvec.shell.running import FAILURES, Session, stdin_text

FAILED, INTERRUPTED = 1, 130
SQL = "sql"  # the command that runs where none is named


class _Group(click.Group):
    """`duckvec my.db` is `duckvec sql my.db`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in _OWN_OPTIONS):
            args = [SQL, *args]
        return super().parse_args(ctx, args)


_OWN_OPTIONS = ("--help", "-h", "--version")


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A database whose name is that of a command is written with its folder, "
    "as ./info.",
)
@click.version_option(package.__version__, prog_name="duckvec")
def duckvec() -> None:
    """Search vectors in a DuckDB file by SQL: `duckvec my.db` opens a prompt."""


@duckvec.command(SQL)
@click.argument("database", default=":memory:")
@click.option("-c", "--command", "texts", multiple=True, help="Run this SQL, and end.")
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run the SQL of a file, and end.",
)
@click.option("--read-only", is_flag=True, help="Open the file for reading only.")
@click.option("--csv", "form", flag_value="csv", help="Print rows as CSV.")
@click.option("--json", "form", flag_value="json", help="Print rows as JSON.")
@click.option("--markdown", "form", flag_value="markdown", help="As Markdown.")
def sql(
    database: str,
    texts: tuple[str, ...],
    files: tuple[Path, ...],
    read_only: bool,
    form: str | None,
) -> None:
    """Open a prompt, or run the SQL of -c, -f or the standard input.

    The exit code is 1 where a statement fails, and 2 where the command line is wrong.
    """
    errors = Console(stderr=True)
    session = _open(database, errors, read_only=read_only)
    try:
        given = [*texts, *(file.read_text(encoding="utf-8") for file in files)]
        if not given:
            piped = stdin_text()
            if piped is None:
                from duckvec.shell.prompt import run_prompt

                run_prompt(session, database, Console(), errors)
                return
            given = [piped]
        _run(session, given, form, errors)
    finally:
        session.close()


@duckvec.command()
@click.argument("database", type=click.Path(exists=True, dir_okay=False))
@click.option("--csv", "form", flag_value="csv", help="Print rows as CSV.")
@click.option("--json", "form", flag_value="json", help="Print rows as JSON.")
@click.option("--markdown", "form", flag_value="markdown", help="As Markdown.")
def info(database: str, form: str | None) -> None:
    """List the indexes of a database, and their segments."""
    session = _open(database, Console(stderr=True), read_only=True)
    try:
        found = checking.indexes(session)
        _print(found, form)
        if found.rows:
            _print(checking.segments(session), form)
    finally:
        session.close()


@duckvec.command()
@click.argument("database", type=click.Path(exists=True, dir_okay=False))
def verify(database: str) -> None:
    """Compare the checksums of all files, and the counts of rows.

    The exit code is 1 where anything is wrong.
    """
    errors = Console(stderr=True)
    session = _open(database, errors, read_only=True)
    try:
        findings = checking.verify(session)
    finally:
        session.close()
    rows = [(each.collection, each.what, each.wrong or "right") for each in findings]
    print_box(Console(), Result(("collection", "what", "found"), rows))
    if any(each.wrong for each in findings):
        sys.exit(FAILED)


@duckvec.command()
@click.option("--rows", default=20_000, help="How many vectors.", show_default=True)
def demo(rows: int) -> None:
    """Compare the index types on made-up vectors; leaves nothing behind."""
    run_demo(Console(), rows)


def _open(database: str, errors: Console, **options: Any) -> Session:
    try:
        return Session(database, errors=errors, **options)
    except (duckdb.Error, VectorIndexError) as error:
        report(errors, without_kind(error))
        sys.exit(FAILED)


def _run(session: Session, texts: list[str], form: str | None, errors: Console) -> None:
    try:
        for text in texts:
            for result in session.run(text):
                if result is not None:
                    _print(result, form)
    except FAILURES as error:
        report(errors, without_kind(error))
        sys.exit(FAILED)
    except KeyboardInterrupt:
        errors.print("interrupted", style="red")
        sys.exit(INTERRUPTED)


def _print(result: Result, form: str | None) -> None:
    if form is None:
        print_box(Console(), result)
    else:
        click.echo(FORMATS[form](result), nl=False)
