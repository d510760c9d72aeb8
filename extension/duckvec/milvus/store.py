"""Collections as tables of a DuckDB database.

A collection `test01` is the table `main.test01 (id BIGINT, vector FLOAT[n],
partition_tag VARCHAR)`, which SQL sees like any other; what the table does not say is
in the schema `milvus` beside it (sql/milvus.sql).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from duckvec.indexes import VectorIndexes
from duckvec.milvus.checks import check_index
from duckvec.milvus.collection import (
    DEFAULT_PARTITION,
    VECTOR_COLUMN,
    Collection,
    not_there,
    table_path,
)
from duckvec.milvus.ids import NEW_IDS
from duckvec.milvus.results import TopKQueryResult
from duckvec.milvus.searching import search
from duckvec.milvus.staging import registered
from duckvec.milvus.transactions import in_transaction
from duckvec.milvus.types import IndexType, MetricType, Refused, Status
from duckvec.sql_text import quote_path, read_sql

SCHEMA = "milvus"
# A collection whose table was dropped in SQL is none any more.
IS_A_TABLE = (
    "EXISTS (SELECT 1 FROM duckdb_tables() WHERE database_name = $database "
    "AND schema_name = 'main' AND lower(table_name) = lower(collection_name))"
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

    def find(self, name: str) -> Collection:
        """Return a collection.

        Raises:
            Refused: there is none of that name, or its table was dropped in SQL.
        """
        found = self._find(name)
        if found is None:
            raise not_there(name)
        return found

    def has(self, name: str) -> bool:
        """Tell whether there is a collection of that name."""
        return self._find(name) is not None

    def names(self) -> list[str]:
        """Return the names of all collections, in the order of the alphabet."""
        try:
            rows = self._con.execute(
                f"SELECT collection_name FROM {self._schema}.collections "
                f"WHERE {IS_A_TABLE} ORDER BY 1",
                {"database": self._database},
            ).fetchall()
        except duckdb.CatalogException:
            return []  # no collection was ever created
        return [name for (name,) in rows]

    def create(
        self, name: str, dimension: int, index_file_size: int, metric: MetricType
    ) -> None:
        """Create a collection and its table.

        Raises:
            Refused: there is a table or view of that name.
        """
        path = table_path(self._database, name)

        def work() -> None:
            if self._is_taken(name):
                raise Refused(
                    Status.ILLEGAL_COLLECTION_NAME, f"Collection already exists: {name}"
                )
            self._con.execute(
                read_sql("milvus").format(schema=self._schema)
                + f"CREATE TABLE {path} (id BIGINT NOT NULL, "
                f"vector FLOAT[{dimension:d}] NOT NULL, partition_tag VARCHAR NOT NULL)"
            )
            self._forget(name)  # a collection whose table was dropped in SQL
            self._con.execute(
                f"INSERT INTO {self._schema}.collections VALUES (?, ?, ?, ?, NULL)",
                [name, dimension, index_file_size, metric.name],
            )

        in_transaction(self._con, work)

    def drop(self, collection: Collection) -> None:
        """Drop a collection with its table and its index."""
        self._handle.drop(collection.table)

        def work() -> None:
            self._con.execute(f"DROP TABLE {collection.table}")
            self._forget(collection.name)

        in_transaction(self._con, work)

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
        given = ids is not None
        numbers = list(ids) if ids is not None else NEW_IDS.take(len(vectors))
        flat = pa.array(np.ascontiguousarray(vectors).ravel())
        records = pa.table(
            {
                "id": pa.array(numbers, pa.int64()),
                "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            }
        )

        def work() -> None:
            if tag is not None:
                self._require_partition(collection, tag)
            self._settle_ids(collection, given)
            self._con.execute(
                f"INSERT INTO {collection.table} (id, vector, partition_tag) "
                f"SELECT id, vector, ? FROM {rows}",
                [tag or DEFAULT_PARTITION],
            )

        with registered(self._con, records) as rows:
            in_transaction(self._con, work)
        return numbers

    def entities(
        self, collection: Collection, ids: Sequence[int], tag: str | None
    ) -> list[list[float]]:
        """Return the vector of each id, an empty list for an unknown one."""
        with registered(self._con, _id_table(ids)) as wanted:
            rows = self._con.execute(
                f"SELECT t.id, t.vector FROM {collection.table} AS t "
                f"SEMI JOIN {wanted} AS wanted USING (id) "
                "WHERE $tag IS NULL OR t.partition_tag = $tag",
                {"tag": tag},
            ).fetchall()
        found = {number: list(vector) for number, vector in rows}
        return [found.get(number, []) for number in ids]

    def delete(
        self, collection: Collection, ids: Sequence[int], tag: str | None
    ) -> None:
        """Delete entities; unknown ids are skipped."""

        def work() -> None:
            self._con.execute(
                f"DELETE FROM {collection.table} "
                f"WHERE id IN (SELECT id FROM {unwanted}) "
                "AND ($tag IS NULL OR partition_tag = $tag)",
                {"tag": tag},
            )

        with registered(self._con, _id_table(ids)) as unwanted:
            in_transaction(self._con, work)

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
            column_name=VECTOR_COLUMN,
            metric=collection.metric.name,
            index_file_size=collection.index_file_size,
        )

    def drop_index(self, collection: Collection) -> None:
        """Go back to FLAT."""
        self._handle.drop(collection.table, column_name=VECTOR_COLUMN)

    def compact(self, collection: Collection) -> None:
        """Give back the space of deleted entities in the index, where there is one."""
        if self._index_row(collection) is None:
            return  # nor is there one of a table that was dropped in SQL
        if collection.index_type(self._con) is not None:
            self._handle.compact(collection.table, column_name=VECTOR_COLUMN)

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

        Raises:
            Refused: another dimension, or an unknown partition.
        """
        collection.check_dimension(queries.shape[1])
        for tag in tags or ():
            self._require_partition(collection, tag)
        return search(self._con, collection, queries, top_k, params, tags)

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

        def work() -> None:
            if tag in self.partitions(collection):
                raise Refused(
                    Status.ILLEGAL_COLLECTION_NAME,
                    f"Partition already exists: {tag[:80]}",
                )
            self._con.execute(
                f"INSERT INTO {self._schema}.partitions VALUES (?, ?)",
                [collection.name, tag],
            )

        in_transaction(self._con, work)

    def drop_partition(self, collection: Collection, tag: str) -> None:
        """Drop a partition with its entities."""
        if tag == DEFAULT_PARTITION:
            raise Refused(
                Status.ILLEGAL_ARGUMENT, "The default partition cannot be dropped."
            )

        def work() -> None:
            self._require_partition(collection, tag)
            self._con.execute(
                f"DELETE FROM {collection.table} WHERE partition_tag = ?", [tag]
            )
            self._con.execute(
                f"DELETE FROM {self._schema}.partitions "
                "WHERE collection_name = ? AND partition_tag = ?",
                [collection.name, tag],
            )

        in_transaction(self._con, work)

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
        try:
            rows = self._con.execute(
                "SELECT dimension, index_file_size, metric_type "
                f"FROM {self._schema}.collections "
                f"WHERE collection_name = $name AND {IS_A_TABLE}",
                {"name": name, "database": self._database},
            ).fetchall()
        except duckdb.CatalogException:
            return None  # no collection was ever created
        if not rows:
            return None
        [(dimension, size, metric)] = rows
        return Collection(name, dimension, size, MetricType[metric], self._database)

    def _is_taken(self, name: str) -> bool:
        """Tell whether a table or a view has that name, in capitals or not."""
        rows = self._con.execute(
            "SELECT 1 FROM information_schema.tables WHERE table_catalog = ? "
            "AND table_schema = 'main' AND lower(table_name) = lower(?)",
            [self._database, name],
        ).fetchall()
        return bool(rows)

    def _index_row(self, collection: Collection) -> tuple[str, str, int] | None:
        rows = self._con.execute(
            "SELECT index_type, params, size_bytes FROM vector_indexes() "
            "WHERE database_name = ? AND schema_name = 'main' AND collection = ? "
            "AND column_name = 'vector'",
            [self._database, collection.name],
        ).fetchall()
        return rows[0] if rows else None

    def _settle_ids(self, collection: Collection, given: bool) -> None:
        """Decide with the first insert whether ids are given; hold later ones to it."""
        rows = self._con.execute(
            f"SELECT ids_are_given FROM {self._schema}.collections "
            "WHERE collection_name = ?",
            [collection.name],
        ).fetchall()
        if not rows:
            raise not_there(collection.name)
        [(are_given,)] = rows
        if are_given is None:
            self._con.execute(
                f"UPDATE {self._schema}.collections SET ids_are_given = ? "
                "WHERE collection_name = ?",
                [given, collection.name],
            )
        elif are_given != given:
            way = "given" if are_given else "generated"
            raise Refused(
                Status.ILLEGAL_VECTOR_ID,
                f"The ids of collection {collection.name} are always {way}.",
            )

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


def _id_table(ids: Sequence[int]) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.int64())})
