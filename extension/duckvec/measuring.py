"""Running searches of a session and taking their times, as if its user made them.

A search is planned by the planner, and its text is run on a cursor of the session's, in
a transaction of that cursor: nothing runs on the user's own connection, which waits in
the function that calls this, and nothing is written. So what is committed is searched,
with the session's guard and by the same routes as `vector_search`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import duckdb
import numpy as np
from numpy.typing import NDArray

from duckvec.instance import Instance
from duckvec.planner import Route, plan_search
from duckvec.requests import Request
from duckvec.sql_text import quote_path
from duckvec.states import Session
from duckvec.tables import Caller, Table, VectorColumn
from duckvec.tracking import UNSEALED


@dataclass(frozen=True)
class Run:
    """One search that was run.

    Attributes:
        text: the SQL text that the planner chose.
        route: by which way it goes.
        distances: of the rows that it found, ascending.
        plan_seconds: what the planner took.
        run_seconds: what DuckDB took to parse, bind and run the text, and to return the
            distances.
    """

    text: str
    route: Route
    distances: NDArray[np.float64]
    plan_seconds: float
    run_seconds: float

    @property
    def seconds(self) -> float:
        """What both took together."""
        return self.plan_seconds + self.run_seconds


class Runner:
    """Runs searches of one table on a cursor of its own; a context manager."""

    def __init__(
        self,
        instance: Instance,
        session: Session,
        caller: Caller,
        table: Table,
        column: VectorColumn,
    ) -> None:
        self._instance = instance
        self._session = session
        self._caller = caller
        self._element = column.element
        # A table may have a column of any name: the last one is the distance.
        names = [f"c{number}" for number in range(len(table.columns))]
        self._names = ", ".join([*names, "distance"])
        self._cursor = session.cursor()
        self._transaction = UNSEALED

    def __enter__(self) -> Runner:
        """Return the runner itself, with the caller's schema for names in filters."""
        place = quote_path((self._caller.database, self._caller.schema))
        self._cursor.execute("BEGIN TRANSACTION READ ONLY")  # as in `read_only`
        with contextlib.suppress(duckdb.CatalogException):  # it is not committed
            self._cursor.execute(f"USE {place}")
        self._cursor.execute("ROLLBACK")
        return self

    def __exit__(self, *_: object) -> None:
        """Close the cursor."""
        self._cursor.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Hold one read-only transaction, in which all runs see the same rows."""
        self._cursor.execute("BEGIN TRANSACTION READ ONLY")
        try:
            found = self._cursor.execute("SELECT txid_current()::BIGINT").fetchall()
            self._transaction = int(found[0][0])
            yield
        finally:
            with contextlib.suppress(duckdb.TransactionException):
                self._cursor.execute("ROLLBACK")

    def run(self, request: Request, vector: NDArray[np.floating]) -> Run:
        """Run a search in the snapshot that is held.

        Raises:
            VectorIndexError: the request is wrong.
            duckdb.Error: the text cannot be run.
        """
        return self._run(replace(request, transaction=self._transaction), vector)

    def run_exactly(self, request: Request, vector: NDArray[np.floating]) -> Run:
        """Run the exact scan that answers the same search.

        It is what the planner gives to a transaction that is older than any index.
        """
        return self._run(replace(request, transaction=UNSEALED), vector)

    def _run(self, request: Request, vector: NDArray[np.floating]) -> Run:
        values = {"vector": vector.tolist()}
        started = time.perf_counter()
        plan = plan_search(self._instance, self._session, request, self._caller)
        planned = time.perf_counter()
        found = self._cursor.execute(
            f"WITH __query AS (SELECT $vector::{self._element}[] AS vector)\n"
            f"SELECT distance FROM (\n{plan.text}\n) AS __hit({self._names})",
            values,
        ).fetchall()
        ended = time.perf_counter()
        distances = np.array([row[0] for row in found], dtype=np.float64)
        return Run(
            plan.text,
            plan.route,
            np.sort(distances),
            planned - started,
            ended - planned,
        )
