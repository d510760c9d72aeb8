"""Collections of any name, beside the names that the client itself uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from duckvec.milvus import IndexType, Milvus, Status
from tests.data import clustered
from tests.test_milvus import DIMENSION, create, filled

# Names that a statement of the client used, or uses, for what it hands over.
OWN_NAMES = [
    "milvus_records",
    "milvus_ids",
    "duckvec_queries",
    "duckvec_milvus_rows",
    "collections",
    "temp",
]


@pytest.mark.core
@pytest.mark.parametrize("name", OWN_NAMES)
def test_a_collection_with_a_name_of_the_client_s_own(path: Path, name: str) -> None:
    vectors = clustered(10, DIMENSION).rows
    with Milvus(uri=str(path)) as client:
        create(client, name)
        assert client.insert(name, vectors[:5], ids=[100, 101, 102, 103, 104])[0].OK()
        create(client)
        assert client.insert("test01", vectors, ids=list(range(100, 110)))[0].OK()
        assert client.count_entities("test01") == (Status(), 10)
        found = client.get_entity_by_id("test01", [109, 1])
        assert found == (Status(), [vectors[9].tolist(), []])
        status, result = client.search("test01", 2, vectors[:3])
        assert status.OK() and [row.ids[0] for row in result] == [100, 101, 102]
        assert client.delete_entity_by_id("test01", [109]).OK()
        assert client.count_entities("test01") == (Status(), 9)
        assert client.count_entities(name) == (Status(), 5)
        status, result = client.search(name, 2, vectors[:3])
        assert status.OK() and [row.ids[0] for row in result] == [100, 101, 102]


def test_no_name_of_the_client_stays_after_a_call(path: Path) -> None:
    con = duckdb.connect(str(path))
    with Milvus(connection=con) as client:
        vectors = filled(client, 10)
        client.search("test01", 1, vectors)
        client.insert("test01", vectors)  # refused: ids are given
        client.get_entity_by_id("test01", [1])
        views = "SELECT view_name FROM duckdb_views() WHERE temporary AND NOT internal"
        assert client._collections._con.execute(views).fetchall() == []
    con.close()


@pytest.mark.core
def test_names_differ_by_more_than_capitals(path: Path) -> None:
    with Milvus(uri=str(path)) as client:
        create(client, "a")
        status = client.create_collection({"collection_name": "A", "dimension": 4})
        assert status == Status.ILLEGAL_COLLECTION_NAME
        assert client.has_collection("A") == (Status(), False)


def test_a_search_looks_at_no_other_index(path: Path) -> None:
    """Test what a search reads: `vector_indexes()` counts the rows of all tables."""
    with Milvus(uri=str(path)) as client:
        vectors = filled(client, 500)
        assert client.create_index("test01", IndexType.IVF_FLAT, {"nlist": 4}).OK()
        seen = Watched(client._collections._con)
        client._collections._con = seen  # type: ignore[assignment]
        status, result = client.search("test01", 1, vectors[:2], params={"nprobe": 4})
        assert status.OK() and result.id_array == [[0], [1]]
        assert seen.statements and not any(
            "vector_indexes" in each for each in seen.statements
        )


@pytest.mark.core
def test_one_query_finds_what_many_find(path: Path) -> None:
    """Test the two statements of a search, with an index, and before and after it."""
    with Milvus(uri=str(path)) as client:
        vectors = filled(client, 600)
        index = (IndexType.IVF_FLAT, {"nlist": 8})
        for step in (None, lambda: client.create_index("test01", *index), None):
            if step is not None:
                assert step().OK()
            status, many = client.search("test01", 5, vectors[:4], params={"nprobe": 8})
            assert status.OK() and many.shape == (4, 5)
            for number in range(4):
                _, one = client.search(
                    "test01", 5, vectors[number : number + 1], params={"nprobe": 8}
                )
                assert one.shape == (1, 5)
                assert one[0].ids == many[number].ids
                assert one[0].distances == many[number].distances
            assert step is None or client.drop_index("test01").OK()


@pytest.mark.core
def test_parameters_after_the_table_was_made_anew_in_sql(path: Path) -> None:
    """Test that an index of a table that is gone does not say what a search takes."""
    with Milvus(uri=str(path)) as client:
        vectors = filled(client, 500)
        assert client.create_index("test01", IndexType.IVF_FLAT, {"nlist": 4}).OK()
        client._collections._con.execute("DROP TABLE test01")
        filled(client, 500)
        for params in ({"nprobe": 4}, {"ef": 50}, {}):
            status, result = client.search("test01", 1, vectors[:2], params=params)
            assert status.OK() and result.id_array == [[0], [1]]


class Watched:
    """A connection that keeps the statements it ran."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self._con = con
        self.statements: list[str] = []

    def execute(self, sql: str, *args: Any) -> Any:
        self.statements.append(sql)
        return self._con.execute(sql, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)
