"""A collection in two dimensions: the two directions in which its vectors differ most.

They are the principal components of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from duckvec import finding
from duckvec.drawing import check_sample, draw
from duckvec.errors import ColumnError, did_you_mean
from duckvec.instance import Instance
from duckvec.metrics import METRICS, normalize_rows
from duckvec.states import Session
from duckvec.tables import Caller, Table, find_column, read_only, require_table


@dataclass(frozen=True)
class Projection:
    """Rows of a collection, each a point of the plane.

    Attributes:
        collection: the table's name.
        column_name: its vector column.
        color_by: the column whose values the points have, or None.
        shares: of the vectors' variance, how much lies along x, and along y.
        table: a row per point: x, y, and `value`, that of `color_by`.
    """

    collection: str
    column_name: str
    color_by: str | None
    shares: tuple[float, float]
    table: pa.Table


def project(
    instance: Instance,
    session: Session,
    collection: str,
    caller: Caller,
    *,
    color_by: str | None,
    column_name: str | None,
    sample: int,
    seed: int,
) -> Projection:
    """Return some rows of a collection in two dimensions.

    Where the column's index compares by COSINE, directions are projected.

    Args:
        instance: the DuckDB instance.
        session: the caller's connection.
        collection: a table, named as in SQL.
        caller: what names are resolved by.
        color_by: another column, whose values are returned, too.
        column_name: the vector column, where the table has several.
        sample: how many rows at most.
        seed: another one draws others.

    Raises:
        VectorIndexError: a name is wrong, or there is no vector.
    """
    sample = check_sample(str(sample))
    with read_only(session.cursor()) as cursor:
        table = require_table(cursor, collection, caller)
        column = find_column(table, column_name)
        beside = None if color_by is None else _find_name(table, color_by)
        state = instance.database(cursor, table.database, table.database_oid)
        index = finding.find_index(instance, state, table, column.name)
        drawn = draw(cursor, table, column, index, sample, seed=seed, beside=beside)
    vectors = drawn.vectors.astype(np.float32)
    if index is not None and METRICS[index.row.metric].normalizes:
        vectors = normalize_rows(vectors)
    points, shares = principal_components(vectors)
    columns: dict[str, Any] = {"x": points[:, 0], "y": points[:, 1]}
    if beside is not None:
        columns["value"] = _column(drawn.values)
    return Projection(table.name, column.name, beside, shares, pa.table(columns))


def principal_components(
    vectors: NDArray[np.float32],
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Return (n, 2): the vectors along their first two components, and their shares.

    The sign of a component is that with which its largest weight is positive, so that
    the same vectors make the same picture. What is missing is zero.

    Args:
        vectors: float32 (n, d).
    """
    centred = vectors.astype(np.float64)
    centred -= centred.mean(axis=0)
    rows, dimension = centred.shape
    points, shares = np.zeros((rows, 2)), [0.0, 0.0]
    total = float((centred**2).sum())
    if not total:
        return points, (0.0, 0.0)
    # The smaller of the two products has the same eigenvalues.
    if dimension <= rows:
        values, axes = np.linalg.eigh(centred.T @ centred)
    else:
        values, left = np.linalg.eigh(centred @ centred.T)
        axes = centred.T @ left
        axes /= np.maximum(np.linalg.norm(axes, axis=0), np.finfo(float).tiny)
    for place in range(min(2, len(values))):
        axis = axes[:, -1 - place]
        axis = axis * np.sign(axis[np.argmax(np.abs(axis))])
        points[:, place] = centred @ axis
        shares[place] = max(0.0, float(values[-1 - place])) / total
    return points, (shares[0], shares[1])


def _column(values: list[Any]) -> pa.Array:
    """Return values as an Arrow column: as text where Arrow has no type for them."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else str(value) for value in values])


def _find_name(table: Table, name: str) -> str:
    """Return a column's name as the table has it."""
    names = [known for known, _ in table.columns]
    for known in names:
        if known.lower() == name.lower():
            return known
    way_out = did_you_mean(name, names) or f"; it has {', '.join(names)}"
    raise ColumnError(f'{table.label} has no column "{name}"{way_out}')
