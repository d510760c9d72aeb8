"""The Python handle: what `duckvec.load` returns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from duckvec import background, bars, keyboard
from duckvec.errors import ClosedError, ForkedError, QueryError
from duckvec.forks import require_unforked
from duckvec.install import install, uninstall
from duckvec.instance import Instance
from duckvec.keeper import FAILURES
from duckvec.projecting import Projection, project
from duckvec.queries import as_batch, as_text, as_vector
from duckvec.requests import Request
from duckvec.sql_text import parse_collection, quote_identifier
from duckvec.states import Session
from duckvec.tables import (
    Caller,
    find_table,
    read_only,
    unknown_table,
    vector_columns,
)
from duckvec.tracking import UNSEALED
from duckvec.tuning import Tuning, tune

# The text of the RuntimeError that DuckDB raises after Ctrl-C.
BY_KEYBOARD = "Query interrupted"


class VectorIndexes:
    """The vector indexes of one DuckDB instance, seen from one connection.

    `duckvec.load` returns it; each method calls the SQL function of its name.

    ```python
    con = duckvec.connect("shop.db")
    indexes = duckvec.load(con)
    indexes.create("items", "IVF_FLAT", {"nlist": 256})
    indexes.search("items", vector, k=5, filter="id < 1000").fetchall()
    ```

    A context manager; closing it unloads duckvec from the connection and leaves the
    connection open. Use it where the connection may be used: DuckDB connections are
    not for several threads at once; give each thread a cursor and load it.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        instance: Instance,
        session: Session,
    ) -> None:
        self._connection: duckdb.DuckDBPyConnection | None = connection
        self._instance = instance
        self._session = session

    def create(
        self,
        collection: str,
        index_type: str,
        params: Mapping[str, int] | str | None = None,
        *,
        column_name: str | None = None,
        metric: str = "L2",
        index_file_size: int = 1024,
    ) -> dict[str, Any]:
        """Build an index, and return its row; writes to the database.

        Args:
            collection: a table, named as in SQL.
            index_type: FLAT, IVF_FLAT, IVF_SQ8, IVF_SQ8H, IVF_PQ, NSG, HNSW or ANNOY.
            params: the type's build parameters, all mandatory: a mapping, or JSON.
            column_name: the vector column, where the table has several.
            metric: L2, IP or COSINE.
            index_file_size: megabytes of vectors in one segment, 1 to 4096.

        Raises:
            duckdb.InvalidInputException: the request is wrong; nothing was changed.
        """
        return self._row(
            "FROM create_vector_index($collection, $index_type, params := $params, "
            "column_name := $column_name, metric := $metric, "
            "index_file_size := $index_file_size)",
            {
                "collection": collection,
                "index_type": index_type,
                "params": as_text(params),
                "column_name": column_name,
                "metric": metric,
                "index_file_size": index_file_size,
            },
        )

    def drop(
        self, collection: str, *, column_name: str | None = None
    ) -> dict[str, Any]:
        """Drop an index, back to exact scans; writes to the database.

        Returns:
            A row as that of `create`, whose index_type is FLAT.

        Raises:
            duckdb.InvalidInputException: there is no such table or column. No index
                there is no error.
        """
        return self._row(
            "FROM drop_vector_index($collection, column_name := $column_name)",
            {"collection": collection, "column_name": column_name},
        )

    def compact(
        self, collection: str, *, column_name: str | None = None
    ) -> dict[str, Any]:
        """Merge segments, index new rows, drop deleted ones; writes to the database.

        Returns:
            A row as that of `create`.

        Raises:
            duckdb.InvalidInputException: there is no index.
        """
        return self._row(
            "FROM vector_compact($collection, column_name := $column_name)",
            {"collection": collection, "column_name": column_name},
        )

    def search(
        self,
        collection: str,
        query: Any,
        k: int = 10,
        *,
        params: Mapping[str, Any] | str | None = None,
        filter: str | None = None,
        column_name: str | None = None,
        metric: str | None = None,
    ) -> duckdb.DuckDBPyRelation:
        """Return the nearest rows as a relation, which is run when it is read.

        Args:
            collection: a table, named as in SQL.
            query: one vector (d,); or many: a 2-D array (nq, d), a column of vectors
                of Arrow, pandas or Polars, or the name of a table with one vector
                column.
            k: rows wanted for each query, 1 to 16384.
            params: search parameters of the index type.
            filter: one SQL expression over the table's columns, as after WHERE.
            column_name: the vector column, where the table has several.
            metric: L2, IP or COSINE; by default that of the index.

        Returns:
            The table's columns and `distance`. For many queries in an array or a
            column: `query_index` (0-based) first; for a table: its columns first.

        Raises:
            QueryError: the query is no vector, and no vectors.
            UnknownCollectionError: no table has the query's name.
            duckdb.InvalidInputException: the rest of the request is wrong.
        """
        options = {
            "collection": collection,
            "k": k,
            "params": as_text(params),
            "filter": filter,
            "column_name": column_name,
            "metric": metric,
        }
        call = (
            "vector_search($collection, {query}, $k, params := $params, "
            "filter := $filter, column_name := $column_name, metric := $metric)"
        )
        connection = self._open()
        if isinstance(query, str):
            path, vector = self._query_table(query)
            source = call.format(query=f"__queries.{quote_identifier(vector)}")
            sql = f"SELECT * FROM {path} AS __queries, {source} AS __hits"
            return connection.sql(sql, params=options)
        vectors = as_batch(query)
        if vectors is None:
            sql = f"FROM {call.format(query='$query')}"
            return connection.sql(sql, params={**options, "query": as_vector(query)})
        return _search_many(connection, call, vectors, options)

    def indexes(self) -> duckdb.DuckDBPyRelation:
        """Return all indexes, a row for each, as a relation: `vector_indexes()`."""
        return self._open().sql("FROM vector_indexes()")

    def tune(
        self,
        collection: str,
        k: int = 10,
        *,
        sample: int = 100,
        queries: Any = None,
        settings: Sequence[Mapping[str, Any]] | None = None,
        filter: str | None = None,
        column_name: str | None = None,
    ) -> Tuning:
        """Measure what search parameters find and cost; the result recommends some.

        Args:
            collection: a table, named as in SQL.
            k: rows wanted for each query, 1 to 16384.
            sample: how many stored vectors are searched for, 1 to 10000.
            queries: searched for instead: a 2-D array (nq, d). Stored vectors are
                found more easily than new ones.
            settings: search parameters to try; by default a sweep from the cheapest
                to those that look at all rows, or at as many as they can.
            filter: one SQL expression over the table's columns, as after WHERE.
            column_name: the vector column, where the table has several.

        Raises:
            VectorIndexError: the request is wrong, or there is nothing to measure.
            duckdb.Error: a search fails.
        """
        caller = self._caller()
        request = Request(
            collection, str(k), None, filter, column_name, None, transaction=UNSEALED
        )
        with bars.counting(f"tuning {collection}") as show:
            return tune(
                self._instance,
                self._session,
                request,
                caller,
                sample=sample,
                queries=None if queries is None else np.asarray(queries, dtype=float),
                settings=settings,
                show=show,
            )

    def project(
        self,
        collection: str,
        color_by: str | None = None,
        *,
        sample: int = 5000,
        seed: int = 0,
        column_name: str | None = None,
    ) -> Projection:
        """Return rows of a collection in two dimensions, by their principal components.

        Args:
            collection: a table, named as in SQL.
            color_by: another column, whose values come along.
            sample: how many rows at most, 1 to 10000, drawn at random.
            seed: another one draws others.
            column_name: the vector column, where the table has several.

        Raises:
            VectorIndexError: a name is wrong, or there is no vector.
        """
        return project(
            self._instance,
            self._session,
            collection,
            self._caller(),
            color_by=color_by,
            column_name=column_name,
            sample=sample,
            seed=seed,
        )

    def wait(self, timeout: float | None = None) -> None:
        """Wait until nothing is left to do in the background; new rows are indexed.

        It does that work itself where `background` is False, too.

        Fewer than 4096 new rows stay in the tail, which is scanned exactly.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            TimeoutError: there is still work; it goes on.
            BusyError: the tables change faster than their rows can be indexed.
        """
        until = None if timeout is None else time.monotonic() + timeout
        self._open()
        with (
            self._telling_ctrl_c(),
            bars.following(self._instance),
            background.guarded(self._instance, self._session),
        ):
            others = self._instance.keeper.pending()
            own = background.tend_all(self._instance)
            for task in (*others, own):
                left = None if until is None else max(0.0, until - time.monotonic())
                try:
                    task.wait(left, cancels=task is own)
                except TimeoutError:
                    raise
                except FAILURES:
                    if task is own:
                        raise  # what others asked for is told to them

    def close(self) -> None:
        """Take the functions away from the connection, which stays open.

        Closing again is no error; the other methods then raise ClosedError.
        """
        if self._connection is not None:
            try:
                uninstall(self._connection)
            except duckdb.ConnectionException:
                self._instance.remove_session(self._session)
            except ForkedError:
                pass  # it is the parent's
            self._connection = None

    def __enter__(self) -> VectorIndexes:
        """Return the handle itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the handle."""
        self.close()

    def _open(self) -> duckdb.DuckDBPyConnection:
        require_unforked()
        if self._connection is None:
            raise ClosedError("this handle is closed; load the connection again")
        return self._connection

    def _row(self, sql: str, values: dict[str, Any]) -> dict[str, Any]:
        connection = self._open()
        with self._telling_ctrl_c(), bars.following(self._instance, connection):
            result = connection.execute(sql, values)
            names = [column[0] for column in result.description or ()]
            return dict(zip(names, result.fetchall()[0], strict=True))

    @contextlib.contextmanager
    def _telling_ctrl_c(self) -> Iterator[None]:
        """Raise what Python raises where DuckDB was interrupted by Ctrl-C."""
        self._session.calls.by_keyboard = False
        pressed = keyboard.notice() if keyboard.is_main_thread() else False
        try:
            yield
        except (duckdb.Error, RuntimeError) as error:
            told = self._session.calls.by_keyboard or str(error) == BY_KEYBOARD
            if pressed or told:
                raise KeyboardInterrupt from error
            raise

    def _caller(self) -> Caller:
        """Return what names are resolved by on the connection now."""
        row = (
            self._open()
            .execute(
                "SELECT current_database(), current_schema(), "
                "current_setting('search_path')"
            )
            .fetchall()[0]
        )
        return Caller(self._session.number, *row)

    def _query_table(self, name: str) -> tuple[str, str]:
        """Return the quoted path of a table of queries, and its vector column."""
        with read_only(self._session.cursor()) as cursor:
            table = find_table(cursor, name, self._caller())
            if table is None:
                raise unknown_table(
                    cursor,
                    parse_collection(name),
                    "of a temporary table or a DataFrame, give the column itself",
                )
        columns = vector_columns(table)
        if len(columns) != 1:
            raise QueryError(
                f"table {table.label} has {len(columns)} vector columns; a table of "
                "queries has exactly one"
            )
        return table.path, columns[0].name


def _search_many(
    connection: duckdb.DuckDBPyConnection,
    call: str,
    vectors: pa.Array | pa.ChunkedArray,
    options: dict[str, Any],
) -> duckdb.DuckDBPyRelation:
    # DuckDB finds the table by the variable's name, where no table has that: none does.
    __duckvec_queries = pa.table(
        {"query_index": np.arange(len(vectors)), "query_vector": vectors}
    )
    source = call.format(query="__queries.query_vector")
    relation = connection.sql(
        "SELECT __queries.query_index, __hits.* "
        f"FROM __duckvec_queries AS __queries, {source} AS __hits "
        "ORDER BY query_index ASC, __hits.distance ASC",
        params=options,
    )
    del __duckvec_queries
    return relation


def load(
    con: duckdb.DuckDBPyConnection,
    *,
    directory: str | None = None,
    background: bool | int = True,
    memory_limit: int | str | None = None,
) -> VectorIndexes:
    """Load duckvec into a DuckDB connection or cursor, and return a handle.

    ```python
    con = duckdb.connect("shop.db")
    indexes = duckvec.load(con)
    con.execute("FROM vector_search('items', ?, 10)", [vector]).fetchall()
    ```

    Installs the SQL functions `create_vector_index`, `drop_vector_index`,
    `vector_compact`, `vector_search`, `vector_range_search`, `vector_explain`,
    `vector_indexes`, `vector_index_segments`, `vector_index_types`,
    `vector_index_estimate` and `vector_recall` as temporary macros of this connection.
    Idempotent and cheap; leaves nothing in the database. Each connection and each
    cursor that wants the functions is loaded; all loads of one instance share one
    state.

    Args:
        con: a connection to a file, in memory, or read-only; or a cursor.
        directory: where artifacts go; by default `<database file>.duckvec`. Counts
            for the first load of an instance.
        background: whether new rows are indexed in the background; a number says with
            how many threads, by default half of DuckDB's. With False they are indexed
            only by `vector_compact` and `VectorIndexes.wait`. Counts for the first
            load of an instance.
        memory_limit: what open segments and builds may hold, in bytes, or as text like
            '2GB'; 'none' or -1 lifts it. The last one given holds for all loads of an
            instance; None leaves it as it is, by default without a limit.

    Raises:
        ClosedError: the connection is closed.
        ForkedError: this process was forked after its parent loaded duckvec.
        ParameterError: `background` is negative or no number, or `memory_limit` is no
            size.
    """
    instance, session = install(con, directory, background, memory_limit)
    return VectorIndexes(con, instance, session)


def unload(con: duckdb.DuckDBPyConnection) -> None:
    """Take the functions away from a connection; no error where there are none."""
    uninstall(con)


def connect(
    database: str = ":memory:",
    *,
    directory: str | None = None,
    background: bool | int = True,
    memory_limit: int | str | None = None,
    **options: Any,
) -> duckdb.DuckDBPyConnection:
    """Return `duckdb.connect(database, **options)` with duckvec loaded.

    ```python
    con = duckvec.connect("shop.db")
    con.execute("FROM vector_indexes()").fetchall()
    ```

    Args:
        database: path of the database file, or ":memory:".
        directory: where artifacts go; see `load`.
        background: whether new rows are indexed in the background; see `load`.
        memory_limit: what open segments and builds may hold; see `load`.
        options: further arguments of `duckdb.connect`, such as read_only=True.

    Raises:
        duckdb.Error: the database cannot be opened.
        ParameterError: `background` is negative or no number.
    """
    con = duckdb.connect(database, **options)
    try:
        load(
            con,
            directory=directory,
            background=background,
            memory_limit=memory_limit,
        )
    except BaseException:
        con.close()
        raise
    return con
