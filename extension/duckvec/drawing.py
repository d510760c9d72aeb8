"""Drawing stored vectors at random: the same ones as long as the table is the same."""

from __future__ import annotations

from typing import Any, NamedTuple

import duckdb
import numpy as np
from numpy.typing import NDArray

from duckvec.errors import QueryError, shorten
from duckvec.metrics import METRICS
from duckvec.reader import find_dimension, usable_condition
from duckvec.sql_text import quote_identifier
from duckvec.states import IndexState
from duckvec.tables import Table, VectorColumn

MAX_SAMPLE = 10_000


class Drawn(NamedTuple):
    """Vectors (s, d), and for each the value of another column; None without one."""

    vectors: NDArray[np.floating]
    values: list[Any]


def check_sample(text: str | None) -> int:
    """Return how many vectors are drawn.

    Raises:
        QueryError: it is no integer in [1, MAX_SAMPLE].
    """
    try:
        sample = 0 if text is None else int(text)
    except ValueError:
        raise QueryError(
            f"sample = {shorten(text or '')} is no integer; give one in "
            f"[1, {MAX_SAMPLE}]"
        ) from None
    if not 1 <= sample <= MAX_SAMPLE:
        shown = shorten(text or "NULL")
        raise QueryError(f"sample = {shown} is outside [1, {MAX_SAMPLE}]")
    return sample


def draw(
    cursor: duckdb.DuckDBPyConnection,
    table: Table,
    column: VectorColumn,
    index: IndexState | None,
    sample: int,
    *,
    seed: int = 0,
    beside: str | None = None,
) -> Drawn:
    """Return so many vectors that a search can be made with, fewer where there are.

    Those with the smallest hashes: views have no row ids, and those of a table move.

    Args:
        cursor: where to read them.
        table: the table.
        column: its vector column.
        index: the index of that column, if any: it has a dimension and a metric.
        sample: how many.
        seed: another one draws others.
        beside: a column of the table whose values are returned, too.

    Raises:
        QueryError: there is none.
    """
    metric = METRICS[index.row.metric if index else "L2"]
    dimension = index.row.dimension if index else None
    dimension = dimension or find_dimension(cursor, table, column)
    if dimension is not None:
        name = quote_identifier(column.name)
        value = "NULL" if beside is None else quote_identifier(beside)
        number = f"hash({name})" if not seed else f"hash({name}, {seed:d})"
        found = cursor.execute(
            f"SELECT {name}, {value} FROM {table.path} WHERE {name} IS NOT NULL "
            f"AND ({usable_condition(column, dimension, metric)}) "
            f"ORDER BY {number} LIMIT {sample:d}"
        ).fetchall()
        if found:
            kind = np.float32 if column.element == "FLOAT" else np.float64
            vectors: NDArray[np.floating] = np.array([row[0] for row in found], kind)
            return Drawn(vectors, [row[1] for row in found])
    raise QueryError(
        f'there is no vector in "{column.name}" of {table.label} to measure with'
    )
