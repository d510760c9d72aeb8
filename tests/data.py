"""Data for the tests, and the exact answers that searches are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

AS_SCRIPT = "__file__ = 'script.py'\n"
"""Put before a program that Python gets by -c: to DuckDB it is a session at a prompt
without it, for which it draws progress on stdout as soon as something takes long."""

# A full set of build parameters for each type, fit for a few thousand rows.
PARAMS: dict[str, dict[str, int]] = {
    "FLAT": {},
    "IVF_FLAT": {"nlist": 32},
    "IVF_SQ8": {"nlist": 32},
    "IVF_SQ8H": {"nlist": 32},
    "IVF_PQ": {"nlist": 32, "m": 8},
    "NSG": {
        "search_length": 45,
        "out_degree": 30,
        "candidate_pool_size": 200,
        "knng": 50,
    },
    "HNSW": {"M": 16, "efConstruction": 200},
    "ANNOY": {"n_trees": 20},
}
# Search parameters with which the type looks at every entry.
EXHAUSTIVE: dict[str, dict[str, int]] = {
    "FLAT": {},
    "IVF_FLAT": {"nprobe": 32},
    "IVF_SQ8": {"nprobe": 32},
    "IVF_SQ8H": {"nprobe": 32},
    "IVF_PQ": {"nprobe": 32},
}
FUNCTIONS = {
    "L2": "distance",
    "IP": "negative_inner_product",
    "COSINE": "cosine_distance",
}


@dataclass(frozen=True)
class Vectors:
    """Stored vectors (n, d) and queries (nq, d), float32."""

    rows: NDArray[np.float32]
    queries: NDArray[np.float32]

    @property
    def dimension(self) -> int:
        return int(self.rows.shape[1])

    def query(self, number: int) -> list[float]:
        return [float(x) for x in self.queries[number]]


def clustered(count: int, dimension: int, seed: int = 7) -> Vectors:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((40, dimension)) * 2
    labels = rng.integers(0, 40, size=count + 20)
    points = centres[labels] + rng.standard_normal((count + 20, dimension))
    values = points.astype(np.float32)
    return Vectors(values[:count], values[count:])


def create_table(
    con: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    name: str = "items",
    column_type: str | None = None,
    column: str = "embedding",
) -> None:
    """Create a table with `id`, `price` and the vectors."""
    data = arrow_table(vectors.rows)
    wanted = column_type or f"FLOAT[{vectors.dimension}]"
    con.execute(
        f"CREATE TABLE {name} AS SELECT id, (id % 100)::INTEGER AS price, "
        f"vector::{wanted} AS {column} FROM data"
    )
    del data


def arrow_table(rows: NDArray[np.float32], first_id: int = 0) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(rows, dtype=np.float32).ravel())
    return pa.table(
        {
            "id": np.arange(first_id, first_id + len(rows)),
            "vector": pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]),
        }
    )


def create(
    con: duckdb.DuckDBPyConnection,
    index_type: str,
    collection: str = "items",
    **options: Any,
) -> dict[str, Any]:
    """Create an index with the type's parameters from PARAMS; return its row."""
    params = options.pop("params") if "params" in options else PARAMS[index_type]
    named = "".join(f", {name} := ${name}" for name in options)
    result = con.execute(
        f"FROM create_vector_index($collection, $index_type, $params{named})",
        {
            "collection": collection,
            "index_type": index_type,
            "params": params,
            **options,
        },
    )
    names = [column[0] for column in result.description or ()]
    return dict(zip(names, result.fetchall()[0], strict=True))


def exact(
    con: duckdb.DuckDBPyConnection,
    query: list[float],
    k: int = 10,
    metric: str = "L2",
    source: str = "items",
    column: str = "embedding",
) -> list[float]:
    """Return the k smallest distances by plain SQL."""
    rows = con.execute(
        f"SELECT list_{FUNCTIONS[metric]}({column}::DOUBLE[], $query::DOUBLE[]) AS d "
        f"FROM {source} WHERE {column} IS NOT NULL ORDER BY d LIMIT {k}",
        {"query": query},
    ).fetchall()
    return [row[0] for row in rows]


def search(
    con: duckdb.DuckDBPyConnection,
    query: list[float] | None,
    k: int = 10,
    collection: str = "items",
    **options: Any,
) -> list[tuple[int, float]]:
    """Return (id, distance) of a search with the query as a parameter."""
    named = "".join(f", {name} := ${name}" for name in options)
    return con.execute(
        f"SELECT id, distance FROM vector_search($collection, $query, $k{named})",
        {"collection": collection, "query": query, "k": k, **options},
    ).fetchall()


def assert_same(
    found: list[tuple[int, float]], wanted: list[float], tolerance: float = 1e-4
) -> None:
    """Assert that the distances are those wanted, and in order."""
    distances = [distance for _, distance in found]
    assert len(distances) == len(wanted), f"{len(distances)} rows, not {len(wanted)}"
    assert distances == sorted(distances)
    np.testing.assert_allclose(distances, wanted, rtol=tolerance, atol=tolerance)
