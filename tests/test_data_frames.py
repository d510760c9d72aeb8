"""Data frames and Arrow tables: into tables, searched where they are, and out again."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

import duckvec
from tests.data import (
    Vectors,
    arrow_table,
    assert_same,
    create,
    create_table,
    exact,
    search,
)

pytestmark = pytest.mark.core

# Libraries, and the column that DuckDB makes of their vectors.
KINDS = {"pandas": "FLOAT[]", "polars": "FLOAT[16]", "arrow": "FLOAT[16]"}


def make_frame(kind: str, vectors: Vectors) -> Any:
    """The vectors with their ids, as the library holds them."""
    if kind == "arrow":
        return arrow_table(vectors.rows)
    library = pytest.importorskip(kind)
    rows = list(vectors.rows) if kind == "pandas" else vectors.rows
    return library.DataFrame({"id": range(len(vectors.rows)), "vector": rows})


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_becomes_a_table_that_can_be_indexed(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors, kind: str
) -> None:
    frame = make_frame(kind, vectors)
    memory.execute("CREATE TABLE items AS FROM frame")
    del frame
    assert memory.execute("DESCRIBE items").fetchall()[1][1] == KINDS[kind]
    create(memory, "IVF_FLAT")
    found = search(memory, vectors.query(0), params={"nprobe": 32})
    assert_same(found, exact(memory, vectors.query(0), column="vector"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_itself_is_searched_exactly_where_its_column_is_named(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors, kind: str
) -> None:
    frame = make_frame(kind, vectors)
    sql = "FROM vector_search('frame', ?, 5, column_name := 'vector'{})"
    found = memory.execute(sql.format(""), [vectors.query(0)]).fetchall()
    memory.register("registered", frame)
    wanted = exact(memory, vectors.query(0), 5, source="registered", column="vector")
    assert_same([(row[0], row[-1]) for row in found], wanted)
    rows = memory.execute(
        sql.format(", filter := 'id < 10'"), [vectors.query(0)]
    ).fetchall()
    assert len(rows) == 5
    assert all(row[0] < 10 for row in rows)
    del frame


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_column_a_frame_is_refused_with_the_way_out(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors, kind: str
) -> None:
    frame = make_frame(kind, vectors)
    with pytest.raises(
        duckdb.InvalidInputException, match=r"a DataFrame, .* needs column_name"
    ):
        memory.execute("FROM vector_search('frame', ?, 5)", [vectors.query(0)])
    with pytest.raises(
        duckdb.InvalidInputException, match=r"a DataFrame, .* cannot be indexed"
    ):
        memory.execute("CALL create_vector_index('frame', 'FLAT')")
    del frame


def test_a_registered_frame_is_searched_like_one_of_the_caller(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    memory.register("registered", arrow_table(vectors.rows))
    found = search(
        memory, vectors.query(0), 5, collection="registered", column_name="vector"
    )
    wanted = exact(memory, vectors.query(0), 5, source="registered", column="vector")
    assert_same(found, wanted)


def test_duckdb_reads_no_float16_from_arrow_and_a_cast_in_arrow_helps(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    halves = pa.array(vectors.rows.astype(np.float16).ravel())
    column = pa.FixedSizeListArray.from_arrays(halves, vectors.dimension)
    frame = pa.table({"id": range(len(column)), "vector": column})
    with pytest.raises(duckdb.NotImplementedException, match="Arrow Type e"):
        memory.execute("CREATE TABLE items AS FROM frame")
    singles = column.cast(pa.list_(pa.float32(), vectors.dimension))
    frame = frame.set_column(1, "vector", singles)
    memory.execute("CREATE TABLE items AS FROM frame")
    create(memory, "FLAT")
    assert_same(
        search(memory, vectors.query(0)),
        exact(memory, vectors.query(0), column="vector"),
    )
    del frame


@pytest.mark.parametrize("kind", KINDS)
def test_results_come_out_as_frames(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors, kind: str
) -> None:
    rows = arrow_table(vectors.rows)
    memory.execute("CREATE TABLE items AS FROM rows")
    del rows
    create(memory, "IVF_FLAT")
    indexes = duckvec.load(memory)
    relations = [
        indexes.search("items", vectors.queries[0], 5, params={"nprobe": 32}),
        memory.sql(
            "FROM vector_search('items', ?, 5, params := {'nprobe': 32})",
            params=[vectors.query(0)],
        ),
    ]
    wanted = exact(memory, vectors.query(0), 5, column="vector")
    for relation in relations:
        if kind == "arrow":
            distances = relation.to_arrow_table()["distance"].to_pylist()
        else:
            pytest.importorskip(kind)
            frame: Any = relation.df() if kind == "pandas" else relation.pl()
            assert list(frame.columns) == ["id", "vector", "distance"]
            distances = frame["distance"].to_list()
        np.testing.assert_allclose(distances, wanted, rtol=1e-4)


def test_a_join_with_a_frame_of_queries_answers_all_of_them(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    pandas = pytest.importorskip("pandas")
    rows = arrow_table(vectors.rows)
    memory.execute("CREATE TABLE items AS FROM rows")
    create(memory, "IVF_FLAT")
    questions = pandas.DataFrame({"q": range(3), "asked": list(vectors.queries[:3])})
    found = memory.sql(
        "SELECT q, hit.distance FROM questions, "
        "vector_search('items', asked, 4, params := {'nprobe': 32}) AS hit "
        "ORDER BY q, hit.distance"
    ).df()
    del rows, questions
    wanted = [
        distance
        for number in range(3)
        for distance in exact(memory, vectors.query(number), 4, column="vector")
    ]
    np.testing.assert_allclose(found["distance"], wanted, rtol=1e-4)


def test_a_table_of_any_name_does_not_take_the_place_of_the_queries(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(memory, vectors)
    for name in ("duckvec_queries", "vectors", "query", "hits"):
        memory.execute(
            f"CREATE TABLE {name} AS "
            "SELECT 7 AS query_index, embedding AS query_vector FROM items LIMIT 0"
        )
    found = duckvec.load(memory).search("items", vectors.rows[:4], 1)
    ids = found.order("query_index").project("query_index, id").fetchall()
    assert ids == [(0, 0), (1, 1), (2, 2), (3, 3)]
