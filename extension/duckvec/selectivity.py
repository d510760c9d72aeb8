"""How many rows pass a filter, as measured, which decides how a search is answered."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from dataclasses import dataclass

import duckdb

from duckvec.filters import LONGEST_FILTER, MOST_FILTERS
from duckvec.policy import scan_seconds
from duckvec.states import ChangeSign, DatabaseState, Session
from duckvec.tables import Table, read_only

# A search scans the rows that pass, where that takes less than this: about as much as
# an index saves on them.
FEW_SECONDS = 0.002
# A count is used this long after the table changed, and so many times as long as it
# took: counting stays a small part of the work.
KEEP_SECONDS, KEEP_TIMES = 1.0, 20
# Larger tables are counted in a sample of about as many rows.
SAMPLE_ROWS = 409_600
# A filter that takes longer is evaluated once, by the search itself.
COUNT_SECONDS = 0.1

FEW_PASS = "few rows pass the filter"
NOT_COUNTED = "the filter is one that only this connection understands"

_Key = tuple[int, tuple[int, str], str]


@dataclass(frozen=True)
class _Count:
    """How many rows passed, when that was measured, and how long it took.

    `passing` is infinite where counting took too long, None where it failed.
    """

    passing: float | None
    sign: ChangeSign | None
    measured_at: float
    seconds: float


class Selectivities:
    """The filters that were counted; any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[_Key, _Count] = {}

    def why_scan(
        self,
        session: Session,
        state: DatabaseState,
        table: Table,
        condition: str,
        rows: int,
        dimension: int,
    ) -> str | None:
        """Return why a scan of the rows that pass is better than an index; or None.

        Counts them where they were not counted lately.

        Args:
            session: the caller's connection.
            state: the database of the table.
            table: what is searched.
            condition: the filter, checked.
            rows: about how many rows the table has.
            dimension: the length of the vectors.
        """
        key = (table.database_oid, table.identity, condition)
        sign, now = state.change_sign(), time.monotonic()
        known = self._counts.get(key)
        if known is None or not _holds(known, sign, now):
            passing = _count(session, table, condition, rows)
            known = _Count(passing, sign, now, time.monotonic() - now)
            if len(condition) <= LONGEST_FILTER:
                with self._lock:
                    if len(self._counts) >= MOST_FILTERS:
                        self._counts.clear()
                    self._counts[key] = known
        if known.passing is None:
            return NOT_COUNTED
        few = scan_seconds(known.passing, dimension) <= FEW_SECONDS
        return FEW_PASS if few else None


def _holds(count: _Count, sign: ChangeSign | None, now: float) -> bool:
    if sign is not None and sign == count.sign:
        return True
    return now - count.measured_at < max(KEEP_SECONDS, KEEP_TIMES * count.seconds)


def _count(session: Session, table: Table, condition: str, rows: int) -> float | None:
    """Return about how many rows pass; see `_Count` for what cannot be counted."""
    percent = min(100.0, 100.0 * SAMPLE_ROWS / max(rows, 1))
    sample = "" if percent == 100.0 else f"TABLESAMPLE SYSTEM ({percent:f} PERCENT)"
    sql = f"SELECT count(*) FROM {table.path} {sample} WHERE (\n{condition}\n)"
    with read_only(session.cursor()) as cursor:
        timer = threading.Timer(COUNT_SECONDS, _interrupt, [cursor])
        timer.daemon = True
        timer.start()
        try:
            found = cursor.execute(sql).fetchall()
        except duckdb.InterruptException:
            return math.inf
        except duckdb.Error:
            return None
        finally:
            timer.cancel()
    return int(found[0][0]) * 100.0 / percent


def _interrupt(cursor: duckdb.DuckDBPyConnection) -> None:
    with contextlib.suppress(duckdb.Error):  # it was closed meanwhile
        cursor.interrupt()
