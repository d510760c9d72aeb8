"""What is searched: stored vectors, queries, exact answers, and the database."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = (REPOSITORY.parent / "shared" / "data", REPOSITORY / "examples" / "data")
BATCH = 2000
PERTURBATION = 0.1
K = 10
POINTS_PER_CENTROID = 39
PQ_BYTES = (96, 64, 56, 48, 40, 32, 28, 24, 20, 16, 12, 8, 4, 3, 2, 1)


@dataclass(frozen=True)
class Dataset:
    """Vectors, and what the database table is made from.

    Attributes:
        title: what it is, in words.
        rows: float32 (n, d), stored; the row's place is its id.
        queries: float32 (nq, d), not among the rows.
        source: a parquet file with the table's columns; None for synthetic rows.
        batch_size: how many queries the batch has at least.
    """

    title: str
    rows: NDArray[np.float32]
    queries: NDArray[np.float32]
    source: Path | None
    batch_size: int = BATCH

    @property
    def dimension(self) -> int:
        """Return the length of the vectors."""
        return int(self.rows.shape[1])

    @cached_property
    def batch(self) -> NDArray[np.float32]:
        """Return at least so many queries: the queries, and perturbed copies."""
        return _with_copies(self.queries, -(-self.batch_size // len(self.queries)))


def load_packages(folder: Path | None) -> Dataset:
    """Read packages.parquet and queries.parquet of the first folder that has them."""
    folders = FOLDERS if folder is None else (folder,)
    found = next(path for path in folders if (path / "packages.parquet").is_file())
    rows = _read(found / "packages.parquet")
    queries = _read(found / "queries.parquet")
    shipped = found == FOLDERS[1]
    where = (
        "the shipped sample of package summaries" if shipped else "package summaries"
    )
    title = (
        f"{len(rows):,} x {rows.shape[1]} sentence embeddings of {where}, "
        f"{len(queries)} held-out queries"
    )
    return Dataset(title, rows, queries, found / "packages.parquet")


def clustered(count: int, dimension: int, seed: int = 7) -> Dataset:
    """Return points around 1,000 centres, and 200 queries of the same kind."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((1000, dimension))
    spread = rng.uniform(0.3, 0.7, (1000, 1))
    labels = rng.integers(0, len(centres), count + 200)
    points = np.empty((count + 200, dimension), dtype=np.float32)
    for start in range(0, len(points), 65_536):
        some = labels[start : start + 65_536]
        noise = rng.standard_normal((len(some), dimension))
        points[start : start + len(some)] = centres[some] + spread[some] * noise
    title = f"{count:,} x {dimension} synthetic vectors in 1,000 clusters, 200 queries"
    return Dataset(title, points[:count], points[count:], None)


def with_copies(data: Dataset, copies: int) -> Dataset:
    """Return the rows, and perturbed copies of them: so many of each in all."""
    rows = _with_copies(data.rows, copies)
    title = (
        f"{len(rows):,} x {data.dimension}: {data.title}, the rows {copies} times "
        "over, all but the first time with noise"
    )
    return Dataset(title, rows, data.queries, None)


def create_database(path: Path, data: Dataset) -> None:
    """Write the tables `items` and `queries`, the batch, to a new database file."""
    with duckdb.connect(str(path)) as con:
        vectors = f"FLOAT[{data.dimension}]"
        if data.source is not None:
            con.execute(
                f"CREATE TABLE items AS SELECT * REPLACE (embedding::{vectors} AS "
                f"embedding) FROM read_parquet($path) ORDER BY id",
                {"path": str(data.source)},
            )
        else:
            rows = _arrow(data.rows)
            con.execute(
                "CREATE TABLE items AS SELECT id, 'row ' || id AS name, "
                "(id % 100)::INTEGER AS price, embedding FROM rows"
            )
            del rows
        batch = _arrow(data.batch)
        con.execute("CREATE TABLE queries AS SELECT id, embedding FROM batch")
        del batch
        counted = con.execute("SELECT count(*) FROM items WHERE id <> rowid").fetchall()
        if counted[0][0]:
            raise SystemExit("ids have to be 0, 1, 2, … in the order of the rows")


def build_params(index_type: str, rows: int, dimension: int) -> dict[str, int]:
    """Return the build parameters that a type is measured with, for this many rows."""
    nlist = 2 ** round(np.log2(4 * rows**0.5))
    nlist = max(1, min(nlist, rows // POINTS_PER_CENTROID))
    most = max(1, dimension // 8)
    m = next(m for m in PQ_BYTES if m <= most and dimension % m == 0)
    return {
        "FLAT": {},
        "IVF_FLAT": {"nlist": nlist},
        "IVF_SQ8": {"nlist": nlist},
        "IVF_SQ8H": {"nlist": nlist},
        "IVF_PQ": {"nlist": nlist, "m": m},
        "NSG": {
            "search_length": 45,
            "out_degree": 50,
            "candidate_pool_size": 300,
            "knng": 100,
        },
        "HNSW": {"M": 16, "efConstruction": 200},
        "ANNOY": {"n_trees": 50},
    }[index_type]


class Truth:
    """The exact answers to some queries, for one metric, in double precision."""

    def __init__(
        self, rows: NDArray[np.float32], queries: NDArray[np.float32], metric: str
    ) -> None:
        self._rows, self._queries = rows, queries
        if metric == "COSINE":
            self._rows, self._queries = _normalised(rows), _normalised(queries)
        self._farthest = np.concatenate(
            [
                self._kth(self._queries[start : start + 250])
                for start in range(0, len(queries), 250)
            ]
        )

    def recall(self, found: NDArray[np.int64]) -> float:
        """Return the share of found ids (nq, k) as near as the exact k-th; ties count.

        Ids below 0 stand for none. Answers to more queries than these do not count.
        """
        found = found[: len(self._queries)]
        hits = 0
        for query, ids, far in zip(self._queries, found, self._farthest, strict=False):
            own = np.unique(ids[ids >= 0])
            near = _distances(self._rows[own], query) <= far * (1 + 1e-6) + 1e-9
            hits += min(K, int(near.sum()))
        return hits / (K * len(found))

    def _kth(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        squares = np.einsum("ij,ij->i", self._rows, self._rows)
        scores = squares - 2 * (queries @ self._rows.T)
        width = min(K + 40, scores.shape[1])
        near = np.argpartition(scores, width - 1, axis=1)[:, :width]
        return np.array(
            [
                np.sort(_distances(self._rows[ids], query))[K - 1]
                for query, ids in zip(queries, near, strict=True)
            ]
        )


def _distances(
    rows: NDArray[np.float32], query: NDArray[np.float32]
) -> NDArray[np.float64]:
    return np.linalg.norm(rows.astype(np.float64) - query.astype(np.float64), axis=1)


def _with_copies(vectors: NDArray[np.float32], copies: int) -> NDArray[np.float32]:
    if copies == 1:
        return vectors
    repeated = np.tile(vectors, (copies, 1))
    noise = np.random.default_rng(5).standard_normal(repeated.shape)
    noise[: len(vectors)] = 0
    lengths = np.linalg.norm(repeated, axis=1, keepdims=True)
    scale = PERTURBATION * lengths / np.sqrt(vectors.shape[1])
    return (repeated + noise * scale).astype(np.float32)


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def _read(path: Path) -> NDArray[np.float32]:
    column = duckdb.sql(
        f"SELECT embedding FROM read_parquet('{path}') ORDER BY id"
    ).to_arrow_table()["embedding"]
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.reshape(len(column), -1), dtype=np.float32)


def _arrow(vectors: NDArray[np.float32]) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table({"id": np.arange(len(vectors)), "embedding": lists})
