"""Collections as tables of a DuckDB database.

A collection `test01` is the table `main.test01 (id BIGINT, vector FLOAT[n],
partition_tag VARCHAR)`, which SQL sees like any other; what the table does not say is
in the schema `milvus` beside it (sql/milvus.sql).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from duckvec.indexes import VectorIndexes
from duckvec.milvus.checks import check_index, search_params
from duckvec.milvus.results import RowQueryResult, TopKQueryResult
from duckvec.milvus.types import IndexType, MetricType, Refused, Status
from duckvec.sql_text import quote_literal, quote_path, read_sql

SCHEMA = "milvus"
DEFAULT_PARTITION = "_default"


@dataclass(frozen=True)
class Collection:
    """A collection as it was created, and where its table is."""

    name: str
    dimension: int
    index_file_size: int
    metric: MetricType
    ids_are_given: bool | None
    table: str

    def check_dimension(self, length: int) -> None:
        """Refuse vectors of another length."""
        if length != self.dimension:
            raise Refused(
                Status.ILLEGAL_DIMENSION,
                f"The vectors have {length} dimensions; collection {self.name} has "
                f"{self.dimension}.",
            )


class Collections:
    """The collections of one database, through one connection.

    Not for several threads at once: the client lets one call in at a time.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, handle: VectorIndexes) -> None:
        self._con = con
        self._handle = handle
        [(self._database,)] = con.execute("SELECT current_database()").fetchall()
        self._schema = quote_path((self._database, SCHEMA))
        self._last_id = 0

    def find(self, name: str) -> Collection:
        """Return a collection.

        Raises:
            Refused: there is none of that name, or its table was dropped in SQL.
        """
        found = self._find(name)
        if found is None:
            raise Refused(
                Status.COLLECTION_NOT_EXISTS, f"Collection not exists: {name[:80]}"
            )
        return found

    def has(self, name: str) -> bool:
        """Tell whether there is a collection of that name."""
        return self._find(name) is not None

    def names(self) -> list[str]:
        """Return the names of all collections, in the order of the alphabet."""
        if not self._is_ready():
            return []
        rows = self._con.execute(
            f"SELECT collection_name FROM {self._schema}.collections ORDER BY 1"
        ).fetchall()
        return [name for (name,) in rows if self._has_table(name)]

    def create(
        self, name: str, dimension: int, index_file_size: int, metric: MetricType
    ) -> None:
        """Create a collection and its table.

        Raises:
            Refused: there is a table or view of that name.
        """
        if self._has_table(name):
            raise Refused(
                Status.ILLEGAL_COLLECTION_NAME, f"Collection already exists: {name}"
            )
        with self._transaction():
            self._con.execute(
                read_sql("milvus").format(schema=self._schema)
                + f"CREATE TABLE {self._table(name)} (id BIGINT NOT NULL, "
                f"vector FLOAT[{dimension:d}] NOT NULL, partition_tag VARCHAR NOT NULL)"
            )
            self._forget(name)  # a collection whose table was dropped in SQL
            self._con.execute(
                f"INSERT INTO {self._schema}.collections VALUES (?, ?, ?, ?, NULL)",
                [name, dimension, index_file_size, metric.name],
            )

    def drop(self, collection: Collection) -> None:
        """Drop a collection with its table and its index."""
        self._handle.drop(collection.table)
        with self._transaction():
            self._con.execute(f"DROP TABLE {collection.table}")
            self._forget(collection.name)

    def count(self, collection: Collection) -> int:
        """Return how many entities a collection holds."""
        rows = self._con.execute(f"SELECT count(*) FROM {collection.table}").fetchall()
        return int(rows[0][0])

    def insert(
        self,
        collection: Collection,
        vectors: NDArray[np.float32],
        ids: Sequence[int] | None,
        tag: str | None,
    ) -> list[int]:
        """Add entities; return their ids.

        Raises:
            Refused: another dimension, an unknown partition, or ids given to a
                collection that generates them, or the other way round.
        """
        collection.check_dimension(vectors.shape[1])
        if tag is not None:
            self._require_partition(collection, tag)
        given = ids is not None
        if collection.ids_are_given not in (None, given):
            way = "given" if collection.ids_are_given else "generated"
            raise Refused(
                Status.ILLEGAL_VECTOR_ID,
                f"The ids of collection {collection.name} are always {way}.",
            )
        numbers = list(ids) if ids is not None else self._new_ids(len(vectors))
        flat = pa.array(np.ascontiguousarray(vectors).ravel())
        milvus_records = pa.table(
            {
                "id": pa.array(numbers, pa.int64()),
                "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            }
        )
        with self._transaction():
            if collection.ids_are_given is None:
                self._con.execute(
                    f"UPDATE {self._schema}.collections SET ids_are_given = ? "
                    "WHERE collection_name = ?",
                    [given, collection.name],
                )
            self._con.execute(
                f"INSERT INTO {collection.table} (id, vector, partition_tag) "
                "SELECT id, vector, ? FROM milvus_records",
                [tag or DEFAULT_PARTITION],
            )
        del milvus_records
        return numbers

    def entities(
        self, collection: Collection, ids: Sequence[int], tag: str | None
    ) -> list[list[float]]:
        """Return the vector of each id, an empty list for an unknown one."""
        milvus_ids = pa.table({"id": pa.array(ids, pa.int64())})
        rows = self._con.execute(
            f"SELECT t.id, t.vector FROM {collection.table} AS t "
            "SEMI JOIN milvus_ids USING (id) "
            "WHERE $tag IS NULL OR t.partition_tag = $tag",
            {"tag": tag},
        ).fetchall()
        del milvus_ids
        found = {number: list(vector) for number, vector in rows}
        return [found.get(number, []) for number in ids]

    def delete(
        self, collection: Collection, ids: Sequence[int], tag: str | None
    ) -> None:
        """Delete entities; unknown ids are skipped."""
        milvus_ids = pa.table({"id": pa.array(ids, pa.int64())})
        self._con.execute(
            f"DELETE FROM {collection.table} WHERE id IN (SELECT id FROM milvus_ids) "
            "AND ($tag IS NULL OR partition_tag = $tag)",
            {"tag": tag},
        )
        del milvus_ids

    def ids_of(self, collection: Collection, tag: str) -> list[int]:
        """Return the ids of the entities in one partition."""
        self._require_partition(collection, tag)
        rows = self._con.execute(
            f"SELECT id FROM {collection.table} WHERE partition_tag = ?", [tag]
        ).fetchall()
        return [number for (number,) in rows]

    def create_index(
        self, collection: Collection, index_type: IndexType, params: Mapping[str, Any]
    ) -> None:
        """Build an index in place of the one there is."""
        checked = check_index(index_type, params, collection.dimension)
        self._handle.create(
            collection.table,
            index_type.sql_name,
            checked,
            column_name="vector",
            metric=collection.metric.name,
            index_file_size=collection.index_file_size,
        )

    def drop_index(self, collection: Collection) -> None:
        """Go back to FLAT."""
        self._handle.drop(collection.table, column_name="vector")

    def compact(self, collection: Collection) -> None:
        """Give back the space of deleted entities in the index."""
        if self._index_row(collection) is not None:
            self._handle.compact(collection.table, column_name="vector")

    def index_of(self, collection: Collection) -> tuple[IndexType, dict[str, int], int]:
        """Return type, build parameters and bytes of a collection's index."""
        row = self._index_row(collection)
        if row is None:
            return IndexType.FLAT, {}, 0
        name, params, size = row
        return IndexType.of_sql(name), json.loads(params), size

    def search(
        self,
        collection: Collection,
        queries: NDArray[np.float32],
        top_k: int,
        params: Mapping[str, Any],
        tags: Sequence[str] | None,
    ) -> TopKQueryResult:
        """Search for the nearest entities of each query (nq, d).

        L2 distances are squared, and IP is the product itself, larger first: as Milvus
        has them.
        """
        collection.check_dimension(queries.shape[1])
        for tag in tags or ():
            self._require_partition(collection, tag)
        index_type, _, _ = self.index_of(collection)
        condition = None
        if tags:
            listed = ", ".join(quote_literal(tag) for tag in tags)
            condition = f"partition_tag IN ({listed})"
        found = (
            self._handle.search(
                collection.table,
                queries,
                top_k,
                params=search_params(index_type, params) or None,
                filter=condition,
                column_name="vector",
                metric=collection.metric.name,
            )
            .project("query_index, id, distance::DOUBLE AS distance")
            .fetchnumpy()
        )
        distances = found["distance"]
        distances = distances**2 if collection.metric is MetricType.L2 else -distances
        ends = np.searchsorted(found["query_index"], np.arange(len(queries) + 1))
        rows = [
            RowQueryResult(
                found["id"][start:end].tolist(), distances[start:end].tolist()
            )
            for start, end in pairwise(ends)
        ]
        return TopKQueryResult(rows, top_k)

    def partitions(self, collection: Collection) -> list[str]:
        """Return the tags of all partitions, the default one first."""
        rows = self._con.execute(
            f"SELECT partition_tag FROM {self._schema}.partitions "
            "WHERE collection_name = ? ORDER BY 1",
            [collection.name],
        ).fetchall()
        return [DEFAULT_PARTITION, *(tag for (tag,) in rows)]

    def create_partition(self, collection: Collection, tag: str) -> None:
        """Add a partition without entities."""
        if tag in self.partitions(collection):
            raise Refused(
                Status.ILLEGAL_COLLECTION_NAME, f"Partition already exists: {tag[:80]}"
            )
        self._con.execute(
            f"INSERT INTO {self._schema}.partitions VALUES (?, ?)",
            [collection.name, tag],
        )

    def drop_partition(self, collection: Collection, tag: str) -> None:
        """Drop a partition with its entities."""
        if tag == DEFAULT_PARTITION:
            raise Refused(
                Status.ILLEGAL_ARGUMENT, "The default partition cannot be dropped."
            )
        self._require_partition(collection, tag)
        with self._transaction():
            self._con.execute(
                f"DELETE FROM {collection.table} WHERE partition_tag = ?", [tag]
            )
            self._con.execute(
                f"DELETE FROM {self._schema}.partitions "
                "WHERE collection_name = ? AND partition_tag = ?",
                [collection.name, tag],
            )

    def stats(self, collection: Collection) -> dict[str, Any]:
        """Return rows and bytes by partition; each counts as one segment here."""
        counts = dict(
            self._con.execute(
                f"SELECT partition_tag, count(*) FROM {collection.table} GROUP BY ALL"
            ).fetchall()
        )
        total = sum(counts.values())
        index_type, _, size = self.index_of(collection)
        size = size or 4 * collection.dimension * total
        partitions = [
            {
                "tag": tag,
                "row_count": counts.get(tag, 0),
                "segments": [
                    {
                        "name": tag,
                        "row_count": counts[tag],
                        "index_name": index_type.name,
                        "data_size": size * counts[tag] // total,
                    }
                ]
                if tag in counts
                else [],
            }
            for tag in self.partitions(collection)
        ]
        return {"partitions": partitions, "row_count": total}

    def _find(self, name: str) -> Collection | None:
        if not self._is_ready() or not self._has_table(name):
            return None
        rows = self._con.execute(
            f"FROM {self._schema}.collections WHERE collection_name = ?", [name]
        ).fetchall()
        if not rows:
            return None
        [(_, dimension, size, metric, given)] = rows
        return Collection(
            name, dimension, size, MetricType[metric], given, self._table(name)
        )

    def _is_ready(self) -> bool:
        """Tell whether a collection was ever created."""
        return bool(self._tables(SCHEMA, "collections"))

    def _has_table(self, name: str) -> bool:
        return bool(self._tables("main", name))

    def _tables(self, schema: str, name: str) -> list[Any]:
        return self._con.execute(
            "SELECT 1 FROM information_schema.tables WHERE table_catalog = ? "
            "AND table_schema = ? AND lower(table_name) = lower(?)",
            [self._database, schema, name],
        ).fetchall()

    def _table(self, name: str) -> str:
        return quote_path((self._database, "main", name))

    def _index_row(self, collection: Collection) -> tuple[str, str, int] | None:
        rows = self._con.execute(
            "SELECT index_type, params, size_bytes FROM vector_indexes() "
            "WHERE database_name = ? AND schema_name = 'main' AND collection = ? "
            "AND column_name = 'vector'",
            [self._database, collection.name],
        ).fetchall()
        return rows[0] if rows else None

    def _require_partition(self, collection: Collection, tag: str) -> None:
        if tag not in self.partitions(collection):
            raise Refused(
                Status.COLLECTION_NOT_EXISTS,
                f"Collection {collection.name} has no partition {tag[:80]}",
            )

    def _forget(self, name: str) -> None:
        for table in ("collections", "partitions"):
            self._con.execute(
                f"DELETE FROM {self._schema}.{table} WHERE collection_name = ?", [name]
            )

    def _new_ids(self, count: int) -> list[int]:
        """Return new ids, from the clock, larger than all of this client before."""
        first = max(time.time_ns(), self._last_id + 1)
        self._last_id = first + count - 1
        return list(range(first, first + count))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._con.execute("BEGIN")
        try:
            yield
            self._con.execute("COMMIT")
        except BaseException:
            self._con.execute("ROLLBACK")
            raise
