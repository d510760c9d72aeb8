"""Reading vectors from a table in one snapshot, through Arrow in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from duckvec.errors import ColumnError
from duckvec.hashing import hash_vectors
from duckvec.metrics import Metric, are_bounded
from duckvec.sql_text import quote_identifier
from duckvec.tables import Table, VectorColumn

BATCH_ROWS = 2048


@dataclass(frozen=True)
class Batch:
    """Rows of one batch whose vector may be a neighbour.

    Attributes:
        rowids: int64 (n,).
        vectors: float32 (n, d), finite; read-only memory of Arrow's where possible.
        not_finite: int64, row ids left out because of a NaN or infinite component.
        too_large: int64, those of `rowids` whose vector no library can take.
    """

    rowids: NDArray[np.int64]
    vectors: NDArray[np.float32]
    not_finite: NDArray[np.int64]
    too_large: NDArray[np.int64]


def count_rows(
    cursor: duckdb.DuckDBPyConnection, table: Table, column: VectorColumn
) -> tuple[int, int, int]:
    """Return how many rows there are, how many have a vector, and the last row id."""
    name = quote_identifier(column.name)
    row = cursor.execute(
        f"SELECT count(*), count({name}), coalesce(max(rowid), -1) FROM {table.path}"
    ).fetchall()[0]
    return int(row[0]), int(row[1]), int(row[2])


def find_dimension(
    cursor: duckdb.DuckDBPyConnection, table: Table, column: VectorColumn
) -> int | None:
    """Return the dimension of a column: its fixed length, or its most common one.

    None where a list column holds no vector.
    """
    if column.length is not None:
        return column.length
    name = quote_identifier(column.name)
    row = cursor.execute(
        f"SELECT mode(len({name})) FROM {table.path} WHERE len({name}) > 0"
    ).fetchall()[0]
    return None if row[0] is None else int(row[0])


def usable_condition(column: VectorColumn, dimension: int, metric: Metric) -> str:
    """Return the SQL condition of the rows that an index is to hold."""
    values = f"{quote_identifier(column.name)}::{column.element}[]"
    usable = (
        f"len({values}) = {dimension:d} AND list_count({values}) = {dimension:d} "
        f"AND isfinite(list_sum({values}))"
    )
    if metric.normalizes:  # zeros have no direction
        usable += f" AND (list_max({values}) <> 0 OR list_min({values}) <> 0)"
    return usable


def require_equal_lengths(
    cursor: duckdb.DuckDBPyConnection,
    table: Table,
    column: VectorColumn,
    dimension: int,
) -> None:
    """Check that every vector of a list column has the same length.

    Raises:
        ColumnError: some do not; the sentence says how many, and names one.
    """
    if column.length is not None:
        return
    name = quote_identifier(column.name)
    count, rowid, length = cursor.execute(
        f"SELECT count(*), min(rowid), min_by(len({name}), rowid) FROM {table.path} "
        f"WHERE {name} IS NOT NULL AND len({name}) <> $dimension",
        {"dimension": dimension},
    ).fetchall()[0]
    if count:
        raise ColumnError(
            f"{count} {'vector' if count == 1 else 'vectors'} in {name} of "
            f"{table.label} {'has' if count == 1 else 'have'} a length other than "
            f"{dimension}, such as the one with {length} at rowid {rowid}; make them "
            "equal or NULL"
        )


def read_vectors(
    cursor: duckdb.DuckDBPyConnection,
    table: Table,
    column: VectorColumn,
    dimension: int,
    metric: Metric,
    after_rowid: int = -1,
    up_to: int | None = None,
) -> Iterator[Batch]:
    """Yield the vectors of a table, mostly in the order of their row ids.

    Args:
        cursor: inside the transaction whose snapshot is read.
        table: what to read.
        column: the vector column; rows with NULL or another length are left out.
        dimension: the length wanted.
        metric: where it normalizes, rows of zeros are left out: they have no direction.
        after_rowid: only rows with higher row ids.
        up_to: only rows with this row id or a lower one.
    """
    name = quote_identifier(column.name)
    last = "" if up_to is None else f"AND rowid <= {up_to:d}"
    same_length = "" if column.length else f"AND len({name}) = {dimension:d}"
    reader = cursor.sql(
        f"""
        SELECT rowid, {name}::FLOAT[{dimension:d}] AS vector
        FROM {table.path}
        WHERE rowid > {after_rowid:d} {last} AND {name} IS NOT NULL {same_length}
        """
    ).to_arrow_reader(BATCH_ROWS)
    none = np.empty(0, dtype=np.int64)
    for batch in reader:
        rowids = batch.column(0).to_numpy()
        vectors = _matrix(batch.column(1), dimension)
        bounded = are_bounded(vectors)
        finite: NDArray[np.bool_] = bounded
        if not bounded.all():
            finite = np.asarray(np.isfinite(vectors).all(axis=1))
        usable = finite & vectors.any(axis=1) if metric.normalizes else finite
        too_large = rowids[usable & ~bounded]
        if usable.all():
            yield Batch(rowids, vectors, none, too_large)
        else:
            yield Batch(rowids[usable], vectors[usable], rowids[~finite], too_large)


def _matrix(column: Any, dimension: int) -> NDArray[np.float32]:
    """Return an Arrow column of arrays, none of them NULL, as (n, dimension)."""
    # Not flatten(): it imports pyarrow.compute, which takes longer than the reading.
    values = column.values.slice(column.offset * dimension, len(column) * dimension)
    matrix: NDArray[np.float32] = values.to_numpy(zero_copy_only=False)
    return matrix.reshape(-1, dimension)


def hash_row(
    cursor: duckdb.DuckDBPyConnection, table: Table, column: VectorColumn, rowid: int
) -> int | None:
    """Return the hash of the vector in one row; None where the row is gone.

    What is no whole vector has a hash that none has.
    """
    name = quote_identifier(column.name)
    found = cursor.execute(
        f"SELECT {name} FROM {table.path} WHERE rowid = {rowid:d}"
    ).fetchall()
    if not found:
        return None
    vector = found[0][0]
    if not vector or None in vector:
        return -1
    return int(hash_vectors(np.array([vector], dtype=np.float32))[0])


def read_rowids(
    cursor: duckdb.DuckDBPyConnection,
    table: Table,
    up_to: int | None = None,
    after: int = -1,
) -> NDArray[np.int64]:
    """Return int64 (n,), ascending: the row ids after one, up to and including another.

    All where none is given.
    """
    last = "" if up_to is None else f"AND rowid <= {up_to:d}"
    result = cursor.execute(
        f"SELECT rowid AS id FROM {table.path} WHERE rowid > {after:d} {last}"
    ).fetchnumpy()
    # Without the setting preserve_insertion_order they come in any order.
    return np.sort(np.asarray(result["id"], dtype=np.int64))
