"""A small database world for random tests: sessions, tables, and what is known of them.

A world knows what its tables and indexes are called and look like, and nothing of their
rows: those are what the database says. `tests/operations.py` changes it, and `verify`
compares searches with exact SQL in every session.
"""

from __future__ import annotations

import copy
import re
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import duckvec
from duckvec.sql_text import quote_identifier, quote_literal
from tests.comparison import (
    FUNCTIONS,
    Mismatch,
    Subject,
    check_joined,
    check_plain,
    check_range,
    goes_by_index,
)
from tests.upkeep import let_background_end
from tests.world_parts import (
    REFUSALS,
    REFUSED,
    SESSIONS,
    IndexInfo,
    Options,
    Session,
    TableState,
    is_exhaustive,
    thorough,
    with_ef,
)


class World:
    """One database, its sessions, and counts of what was done and compared."""

    def __init__(self, folder: Path, options: Options, seed: int) -> None:
        self.folder = folder
        self.options = options
        self.rng = np.random.default_rng(seed)
        self.path = folder / "world0.db"
        self.tables: dict[str, TableState] = {}
        self.indexes: dict[tuple[str, str], IndexInfo] = {}
        self.sessions: list[Session] = []
        self.read_only = False
        self.next_id = 0
        self.touched: str | None = None
        self.counts: Counter[str] = Counter()
        self.recalls: list[float] = []
        self.trace: list[str] = []
        self.verbose = False
        centres = np.random.default_rng(0).standard_normal((40, 16)) * 2
        self._centres = centres.astype(np.float32)

    # Opening and closing

    @property
    def attached(self) -> bool:
        """Whether the tables are in an attached database."""
        return self.options.place in ("small groups", "used")

    def open(self, way: str = "connect", read_only: bool = False) -> None:
        """Open the database and load every session."""
        alone = read_only and not self.attached
        file = ":memory:" if self.options.place != "file" else str(self.path)
        if way == "connect":
            con = duckvec.connect(file, read_only=alone)
        else:
            con = duckdb.connect(file, read_only=alone)
        self.attach(con, read_only)
        if way != "plain":
            duckvec.load(con)
        self.read_only = read_only
        self.sessions = [Session(con)]
        for _ in range(SESSIONS - 1 if way != "plain" else 0):
            cursor = con.cursor()
            if self.options.place == "used":
                cursor.execute("USE side")
            duckvec.load(cursor)
            self.sessions.append(Session(cursor))
        self.note(f"-- opened: {way}{' read-only' if read_only else ''}")

    def attach(self, con: duckdb.DuckDBPyConnection, read_only: bool) -> None:
        """Attach the database file where the world keeps its tables in one."""
        if not self.attached:
            return
        mode = ", READ_ONLY" if read_only else ""
        con.execute(
            f"ATTACH {quote_literal(str(self.path))} AS side "
            f"(ROW_GROUP_SIZE 2048{mode})"
        )
        if self.options.place == "used":
            con.execute("USE side")

    def close(self, drop_references: bool = False) -> None:
        """Close every session, or just let go of them."""
        for session in reversed(self.sessions):
            if not drop_references:
                session.con.close()
        self.sessions = []
        let_background_end()
        self.note("-- closed")

    def crash(self) -> None:
        """Go on with a copy of the files as they are now, as after a power failure."""
        let_background_end()  # the copies are not made in one moment
        number = int(re.findall(r"\d+", self.path.name)[0]) + 1
        copy_path = self.folder / f"world{number}.db"
        for suffix in ("", ".wal", ".duckvec"):
            source = Path(f"{self.path}{suffix}")
            if source.exists():  # by another process: closing a file drops its lock
                subprocess.run(["cp", "-r", source, f"{copy_path}{suffix}"], check=True)
        self.close()
        for suffix in ("", ".wal", ".duckvec"):
            source = Path(f"{self.path}{suffix}")
            subprocess.run(["rm", "-rf", source], check=True)
        self.path = copy_path

    # Statements

    def full_name(self, name: str) -> str:
        """Return a table's name as the sessions have to write it."""
        prefix = "side.main." if self.options.place == "small groups" else ""
        return prefix + quote_identifier(name)

    def note(self, text: str) -> None:
        """Remember what was done, for a person to read."""
        self.trace.append(text)
        if self.verbose:
            print(text, flush=True)

    def run(self, session: Session, sql: str, data: pa.Table | None = None) -> bool:
        """Run a statement; return whether DuckDB did it rather than refuse it.

        A refusal ends the session's transaction, as DuckDB often has done already.
        """
        del data  # found by its name when DuckDB looks for a table `data`
        number = self.sessions.index(session)
        self.note(f"s{number}: {sql}")
        try:
            session.con.execute(sql).fetchall()
        except duckdb.Error as error:
            if not self.is_refusal(session, error):
                raise
            self.note(f"-- refused: {error}")
            self.counts["refused by DuckDB"] += 1
            if session.in_transaction:
                self.end_transaction(session, "ROLLBACK")
            return False
        session.wrote = session.wrote or session.in_transaction
        return True

    def run_with(self, session: Session, sql: str, data: pa.Table) -> bool:
        """Run a statement that reads `data`."""
        session.con.register("data", data)
        try:
            return self.run(session, sql)
        finally:
            session.con.unregister("data")

    def is_refusal(self, session: Session, error: duckdb.Error) -> bool:
        """Tell whether an error is DuckDB's answer to what the operations may do."""
        if isinstance(error, (duckdb.FatalException, duckdb.InternalException)):
            return False
        return isinstance(error, REFUSALS) or bool(REFUSED.search(str(error)))

    def begin(self, session: Session, sql: str = "BEGIN") -> None:
        """Begin a transaction."""
        self.note(f"s{self.sessions.index(session)}: {sql}")
        session.con.execute(sql)
        session.tables = copy.deepcopy(self.tables)
        session.wrote = False

    def end_transaction(self, session: Session, sql: str) -> None:
        """Commit or roll back; a refused commit is a rollback."""
        self.note(f"s{self.sessions.index(session)}: {sql}")
        session.tables = None
        session.wrote = False
        try:
            session.con.execute(sql)
        except duckdb.Error as error:
            if not self.is_refusal(session, error):
                raise
            self.note(f"-- refused: {error}")
            self.counts["refused by DuckDB"] += 1

    # Vectors

    def vectors(self, table: TableState, count: int) -> NDArray[np.float32]:
        """Return random vectors: clustered, and many of them the same."""
        rng = self.rng
        centres = self._centres[rng.integers(0, 40, count), : table.dimension]
        values = centres + rng.standard_normal((count, table.dimension)) * 0.7
        again = rng.random(count) < 0.3
        values[again] = centres[again]
        return np.ascontiguousarray(values, dtype=np.float32)

    def rows(self, table: TableState, ids: NDArray[np.int64]) -> pa.Table:
        """Return random rows with these ids; some vectors are NULL."""
        count = len(ids)
        vectors = self.vectors(table, count)
        flat = pa.array(vectors.ravel())
        offsets = np.arange(count + 1, dtype=np.int32) * table.dimension
        missing = self.rng.random(count) < 0.03
        column = pa.ListArray.from_arrays(
            pa.array(offsets), flat, mask=pa.array(missing)
        )
        prices = self.rng.integers(0, 100, count)
        return pa.table({"id": ids, "price": prices, "vector": column})

    def new_ids(self, count: int) -> NDArray[np.int64]:
        """Return ids that no row has had."""
        first = self.next_id
        self.next_id += count
        return np.arange(first, first + count, dtype=np.int64)

    def query(self, table: TableState) -> list[float]:
        """Return a query vector; often a stored one."""
        return [float(x) for x in self.vectors(table, 1)[0]]

    # Comparing

    def verify(self, rng: np.random.Generator) -> None:
        """Compare searches of the sessions with exact SQL."""
        self.rng = rng
        for number, session in enumerate(self.sessions):
            if number and not session.in_transaction and rng.random() < 0.7:
                continue
            tables = self.tables if session.tables is None else session.tables
            for name, table in list(tables.items()):
                times = 1 if name != self.touched else 2
                if name != self.touched and rng.random() < 0.5:
                    continue
                for _ in range(times):
                    if session.tables is None and tables is not self.tables:
                        break  # its transaction ended when a search was refused
                    self.check(session, table)

    def is_stale(self, session: Session, table: TableState) -> bool:
        """Tell whether the definition of a session's table was changed by another.

        The names in a search mean what is committed; an older snapshot may have
        another table of that name, and then a search may be refused.
        """
        return session.in_transaction and self.tables.get(table.name) != table

    def subject(self, table: TableState, index: IndexInfo | None) -> Subject:
        """Return a way to search a table: by default settings or by thorough ones."""
        rng = self.rng
        params, exhaustive = None, index is None or index.index_type == "FLAT"
        if index is not None and rng.random() < 0.7:
            params = thorough(index)
            exhaustive = exhaustive or is_exhaustive(index, self.next_id)
        options = {}
        if table.other_vectors or rng.random() < 0.3:
            options["column_name"] = table.column
        metric = index.metric if index else "L2"
        if (index is None or not index.params) and rng.random() < 0.3:
            flat = index is not None and index.index_type == "FLAT"
            metric = metric if flat else str(rng.choice(sorted(FUNCTIONS)))
            options["metric"] = metric.lower()
        return Subject(
            self.full_name(table.name),
            table.column,
            table.price,
            table.element,
            table.dimension,
            table.is_list,
            metric,
            params,
            exhaustive,
            options,
        )

    def check(self, session: Session, table: TableState) -> None:
        """Compare one search of a table with exact SQL, in a session's transaction."""
        rng = self.rng
        index = self.indexes.get((table.name, table.column))
        subject = self.subject(table, index)
        k = int(rng.choice([1, 10, 50, 400, 16384], p=[0.2, 0.4, 0.2, 0.15, 0.05]))
        joined = rng.random() < 0.25
        k = min(k, 400) if joined else k
        # The table of that name that is committed may have another element type.
        stale = self.is_stale(session, table)
        subject = replace(with_ef(subject, k), rounded=stale)
        if stale and table.name not in self.tables and "metric" not in subject.options:
            # Renamed or dropped by another: which metric its index had cannot be told.
            subject = replace(subject, metric="L2")
        where = None
        if rng.random() < 0.2:
            where = str(
                rng.choice(
                    [
                        f"{quote_identifier(table.price)} < 10",
                        "id % 7 = 3",
                        "id < 50 OR id % 100 = 1",
                        "false",
                        "true",
                    ]
                )
            )
        query = self.query(table)
        what = f"s{self.sessions.index(session)} {subject.call('…', k, where)}"
        ranged = not joined and "metric" not in subject.options and rng.random() < 0.2
        if ranged:
            k = int(rng.choice([0, 1, 10, 400]))
            subject = with_ef(subject, 10)
            what = f"range of about {what}"
        try:
            if ranged:
                recall = check_range(session.con, subject, query, k, where)
            elif joined:
                name = f"queries{table.dimension}"
                recall = check_joined(
                    session.con, subject, self.full_name(name), k, where
                )
            else:
                recall = check_plain(session.con, subject, query, k, where)
            if not ranged and rng.random() < 0.1:
                way = goes_by_index(session.con, subject, query, k, where)
                kind = "filtered" if where else "sampled"
                self.counts[f"{kind} plans: {'index' if way else 'scan'}"] += 1
        except duckdb.Error as error:
            if self.may_refuse(session, table):
                self.note(f"-- {what}: {error}")
                self.counts["searches of redefined tables refused"] += 1
                if session.in_transaction:
                    self.end_transaction(session, "ROLLBACK")
                return
            raise Mismatch(f"{what}: {type(error).__name__}: {error}") from error
        except Mismatch as error:
            kind = "join" if joined else "search"
            raise Mismatch(
                f"{kind} {what} (index {index}; query {query}): {error}"
            ) from None
        kind = "joined" if joined else "filtered" if where else "plain"
        kind = "range" if ranged else kind
        self.counts[f"{kind} searches compared"] += 1
        if not subject.exhaustive:
            self.recalls.append(recall)

    def may_refuse(self, session: Session, table: TableState) -> bool:
        """Tell whether a search may be refused, though it is a right one.

        In a list column: where an index is for another length, perhaps one of a table
        that had the name before; and where vectors have other lengths only.
        """
        if self.is_stale(session, table):
            return True
        if not table.is_list:
            return False
        index = self.indexes.get((table.name, table.column))
        if index is not None and index.dimension != table.dimension:
            return True
        column = quote_identifier(table.column)
        counts = session.con.execute(
            f"SELECT count({column}), count({column}) FILTER "
            f"(len({column}) = {table.dimension}) FROM {self.full_name(table.name)}"
        ).fetchall()
        return bool(counts[0][0] and not counts[0][1])

    # Row ids

    def rowids(self) -> dict[str, dict[str, NDArray[np.int64]]]:
        """Return ids and row ids of the committed rows of every table."""
        session = self.sessions[0]
        found = {}
        if session.in_transaction:
            return {}
        for name in self.tables:
            rows = session.con.execute(
                f"SELECT id, rowid AS place FROM {self.full_name(name)}"
            ).fetchnumpy()
            order = np.argsort(rows["id"])
            found[name] = {key: rows[key][order] for key in ("id", "place")}
        return found

    def count_moved(self, before: dict[str, dict[str, NDArray[np.int64]]]) -> None:
        """Count the rows whose row id is another than before; the rows are the same."""
        after = self.rowids()
        for name, rows in before.items():
            if name not in after:
                continue
            if not np.array_equal(rows["id"], after[name]["id"]):
                raise Mismatch(f"{name} has other rows after a checkpoint or reopening")
            moved = int(np.count_nonzero(rows["place"] != after[name]["place"]))
            self.counts["row ids moved"] += moved
