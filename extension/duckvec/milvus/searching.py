"""Searches in a collection."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from duckvec import catalog
from duckvec.milvus.checks import search_params
from duckvec.milvus.collection import MAIN, VECTOR_COLUMN, Collection
from duckvec.milvus.results import RowQueryResult, TopKQueryResult
from duckvec.milvus.staging import registered
from duckvec.milvus.types import IndexType, MetricType
from duckvec.sql_text import quote_literal


def search(
    con: duckdb.DuckDBPyConnection,
    collection: Collection,
    queries: NDArray[np.float32],
    top_k: int,
    params: Mapping[str, Any],
    tags: Sequence[str] | None,
) -> TopKQueryResult:
    """Search for the nearest entities of each query (nq, d).

    L2 distances are squared, and IP is the product itself, larger first: as Milvus has
    them. The collection has the queries' dimension, and the partitions.
    """
    condition = None
    if tags:
        listed = ", ".join(quote_literal(tag) for tag in tags)
        condition = f"partition_tag IN ({listed})"
    taken = _taken_params(con, collection, params)
    with registered(con, _query_table(queries)) as rows:
        found = con.execute(
            "SELECT query_index, id, distance::DOUBLE AS distance "
            f"FROM {rows} AS __queries, vector_search($collection, "
            "__queries.query_vector, $k, params := $params, filter := $filter, "
            "column_name := $column_name, metric := $metric) AS __hits "
            "ORDER BY query_index, __hits.distance",
            {
                "collection": collection.table,
                "k": top_k,
                "params": json.dumps(taken) if taken else None,
                "filter": condition,
                "column_name": VECTOR_COLUMN,
                "metric": collection.metric.name,
            },
        ).fetchnumpy()
    distances = found["distance"]
    distances = distances**2 if collection.metric is MetricType.L2 else -distances
    ends = np.searchsorted(found["query_index"], np.arange(len(queries) + 1))
    hits = [
        RowQueryResult(found["id"][start:end].tolist(), distances[start:end].tolist())
        for start, end in pairwise(ends)
    ]
    return TopKQueryResult(hits, top_k)


def _taken_params(
    con: duckdb.DuckDBPyConnection, collection: Collection, params: Mapping[str, Any]
) -> dict[str, Any]:
    """Return those of the parameters that the collection's index takes.

    The catalog says its type: `vector_indexes()` counts the rows of all tables.
    """
    if not params:
        return {}
    name = catalog.read_index_type(
        con, collection.database, MAIN, collection.name, VECTOR_COLUMN
    )
    return search_params(
        IndexType.FLAT if name is None else IndexType.of_sql(name), params
    )


def _query_table(queries: NDArray[np.float32]) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(queries).ravel())
    return pa.table(
        {
            "query_index": np.arange(len(queries)),
            "query_vector": pa.FixedSizeListArray.from_arrays(flat, queries.shape[1]),
        }
    )
