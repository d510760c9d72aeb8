"""What Python callers give as queries and params, in the form that SQL takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from duckvec.errors import QueryError


def as_text(params: Mapping[str, Any] | str | None) -> str | None:
    """Return params as JSON text, None where there are none."""
    if params is None or isinstance(params, str):
        return params
    return json.dumps(dict(params))


def as_batch(query: Any) -> pa.Array | None:
    """Return an Arrow column for many queries, None for a single vector."""
    if query is None:
        return None
    if isinstance(query, (pa.Array, pa.ChunkedArray)):
        if pa.types.is_floating(query.type) or pa.types.is_integer(query.type):
            return None
        return query
    if (
        isinstance(query, Sequence)
        and query
        and not isinstance(query[0], (Sequence, np.ndarray))
    ):
        return None
    array = np.asarray(query)
    if array.ndim == 1:
        return None
    if array.ndim != 2:
        raise QueryError(
            f"the query is an array of {array.ndim} dimensions; give one vector (1) "
            "or many (2)"
        )
    flat = np.ascontiguousarray(array, dtype=np.float32).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), array.shape[1])
