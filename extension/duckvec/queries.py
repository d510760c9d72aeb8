"""What Python users hand over as queries and params, in the form that SQL takes.

Lists, NumPy and Arrow arrays, and the columns of pandas, Polars and other data frames,
which all speak Arrow's C stream: none of these libraries is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from duckvec.errors import QueryError

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def as_text(params: Mapping[str, Any] | str | None) -> str | None:
    """Return params as JSON text, None where there are none."""
    if params is None or isinstance(params, str):
        return params
    return json.dumps(dict(params))


def as_batch(query: Any) -> pa.Array | pa.ChunkedArray | None:
    """Return an Arrow column for many queries, None for a single vector.

    Args:
        query: None or one vector (d,); or many: a 2-D array (nq, d), a sequence of
            vectors, or a column of lists, in which a missing vector finds no rows.

    Raises:
        QueryError: it is a data frame, has other dimensions, or holds no vectors.
    """
    if query is None:
        return None
    if hasattr(query, "columns") or isinstance(query, pa.RecordBatch):
        raise QueryError(
            f"the query is a {type(query).__name__}; give one column of it, such as "
            "df['embedding']"
        )
    column = _as_arrow(query)
    if column is not None:
        return None if _holds_numbers(column.type) else _as_float32(column)
    array = _as_array(query)
    if array.ndim == 1:
        return None
    if array.ndim != 2:
        raise QueryError(
            f"the query is an array of {array.ndim} dimensions; give one vector (1) "
            "or many (2)"
        )
    # DuckDB computes in the column's own precision.
    kind = np.float64 if array.dtype == np.float64 else np.float32
    flat = np.ascontiguousarray(array, dtype=kind).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), array.shape[1])


def as_vector(query: Any) -> list[float] | None:
    """Return a single vector as DuckDB takes one; None for None.

    Raises:
        QueryError: it holds something that is no number.
    """
    if query is None:
        return None
    vector: list[float] = _as_array(query).astype(np.float64).tolist()
    return vector


def _as_array(query: Any) -> np.ndarray[Any, Any]:
    """Return numbers as a NumPy array, and an array of vectors as a 2-D one."""
    try:
        array = np.asarray(query)
        if array.dtype == object:
            array = np.asarray([np.asarray(item) for item in query])
        return array if array.dtype.kind in "fiub" else array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise QueryError(
            "the query is neither a vector of numbers nor a list of vectors of one "
            "length"
        ) from error


def _as_arrow(query: Any) -> pa.Array | pa.ChunkedArray | None:
    if isinstance(query, (pa.Array, pa.ChunkedArray)):
        return query
    if hasattr(query, "__arrow_c_stream__"):
        return pa.chunked_array(query)
    return None


def _holds_numbers(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_floating(data_type) or pa.types.is_integer(data_type))


def _as_float32(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return a column of lists whose numbers DuckDB reads: it has no float16."""
    data_type = column.type
    if pa.types.is_null(data_type):
        return column
    if not any(is_list(data_type) for is_list in _LISTS) or not _holds_numbers(
        data_type.value_type
    ):
        raise QueryError(
            f"the query is a column of {data_type}; give one of vectors, such as "
            "list<float>"
        )
    if not pa.types.is_float16(data_type.value_type):
        return column
    if pa.types.is_fixed_size_list(data_type):
        return column.cast(pa.list_(pa.float32(), data_type.list_size))
    return column.cast(pa.list_(pa.float32()))
