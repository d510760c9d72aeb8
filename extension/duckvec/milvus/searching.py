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

from duckvec.milvus.checks import search_params
from duckvec.milvus.collection import VECTOR_COLUMN, Collection
from duckvec.milvus.results import RowQueryResult, TopKQueryResult
from duckvec.milvus.staging import registered
from duckvec.milvus.transactions import in_transaction
from duckvec.milvus.types import IndexType, MetricType
from duckvec.sql_text import quote_literal

# Ids and distances of the hits of one query, nearest first.
Hits = tuple[NDArray[np.int64], NDArray[np.float64]]

_CALL = (
    "vector_search($collection, {query}, $k, params := $params, filter := $filter, "
    "column_name := $column_name, metric := $metric)"
)


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
    index_type = collection.index_type(con)
    values = {
        "collection": collection.table,
        "k": top_k,
        "params": _encode_params(index_type, params),
        "filter": _condition(tags),
        "column_name": VECTOR_COLUMN,
        "metric": collection.metric.name,
    }
    # A join with queries costs less for an index, and several times more for a scan.
    if index_type is None or len(queries) == 1:
        hits = in_transaction(con, lambda: _search_each(con, queries, values))
    else:
        hits = _search_all(con, queries, values)
    square = collection.metric is MetricType.L2
    rows = [
        RowQueryResult(ids.tolist(), (d**2 if square else -d).tolist())
        for ids, d in hits
    ]
    return TopKQueryResult(rows, top_k)


def _search_each(
    con: duckdb.DuckDBPyConnection,
    queries: NDArray[np.float32],
    values: Mapping[str, Any],
) -> list[Hits]:
    """Search by a statement for each query, in one transaction of the caller's."""
    hits = []
    for query in queries:
        found = con.execute(
            "SELECT id, distance::DOUBLE AS distance FROM "
            + _CALL.format(query="$query"),
            {**values, "query": query.tolist()},
        ).fetchnumpy()
        hits.append((found["id"], found["distance"]))
    return hits


def _search_all(
    con: duckdb.DuckDBPyConnection,
    queries: NDArray[np.float32],
    values: Mapping[str, Any],
) -> list[Hits]:
    """Search by one join with a table of the queries."""
    with registered(con, _query_table(queries)) as rows:
        found = con.execute(
            "SELECT query_index, id, distance::DOUBLE AS distance "
            f"FROM {rows} AS __queries, {_CALL.format(query='__queries.query_vector')} "
            "AS __hits ORDER BY query_index, __hits.distance",
            values,
        ).fetchnumpy()
    ends = np.searchsorted(found["query_index"], np.arange(len(queries) + 1))
    return [
        (found["id"][start:end], found["distance"][start:end])
        for start, end in pairwise(ends)
    ]


def _encode_params(index_type: str | None, params: Mapping[str, Any]) -> str | None:
    """Return those of the parameters that the collection's index takes, as JSON."""
    kind = IndexType.FLAT if index_type is None else IndexType.of_sql(index_type)
    taken = search_params(kind, params)
    return json.dumps(taken) if taken else None


def _condition(tags: Sequence[str] | None) -> str | None:
    if not tags:
        return None
    return f"partition_tag IN ({', '.join(quote_literal(tag) for tag in tags)})"


def _query_table(queries: NDArray[np.float32]) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(queries).ravel())
    return pa.table(
        {
            "query_index": np.arange(len(queries)),
            "query_vector": pa.FixedSizeListArray.from_arrays(flat, queries.shape[1]),
        }
    )
