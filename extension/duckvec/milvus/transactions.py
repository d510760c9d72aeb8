"""Transactions of the client: whole or not at all, and again after a conflict."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from typing import TypeVar

import duckdb

# DuckDB refuses the later of two transactions that write the same row, at once. Tries
# with pauses between them, doubling: some seconds in all, as a large insert takes.
MOST_TRIES = 12
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 1.0

Answer = TypeVar("Answer")


def in_transaction(
    con: duckdb.DuckDBPyConnection, work: Callable[[], Answer]
) -> Answer:
    """Run `work` in a transaction, and commit; return what it returns.

    Where another connection's transaction comes between, it is rolled back and `work`
    runs again: `work` reads what it decides by, and changes nothing but the database.

    Raises:
        duckdb.TransactionException: others came between in each of MOST_TRIES tries.
    """
    for pause in _pauses():
        try:
            return _run_once(con, work)
        except duckdb.TransactionException:
            time.sleep(pause)
    return _run_once(con, work)


def _pauses() -> list[float]:
    """Return the seconds between tries: each client's own, so that they part."""
    return [
        random.uniform(0.5, 1.0) * min(FIRST_PAUSE * 2.0**number, LONGEST_PAUSE)
        for number in range(MOST_TRIES - 1)
    ]


def _run_once(con: duckdb.DuckDBPyConnection, work: Callable[[], Answer]) -> Answer:
    con.execute("BEGIN")
    try:
        answer = work()
        con.execute("COMMIT")
    except BaseException:
        # A COMMIT that failed has ended the transaction: what counts is why.
        with contextlib.suppress(duckdb.TransactionException):
            con.execute("ROLLBACK")
        raise
    return answer
