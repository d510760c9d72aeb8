"""Queries as Python users have them: lists, arrays, and columns of data frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

import duckvec
from duckvec.errors import QueryError, UnknownCollectionError
from tests.data import Vectors, create_table, exact

pytestmark = pytest.mark.core

Array = NDArray[np.float32]
Make = Callable[[Array], Any]


def pandas_column(dtype: str) -> Make:
    def make(vectors: Array) -> Any:
        pandas = pytest.importorskip("pandas")
        rows = vectors.astype(dtype)
        frame = pandas.DataFrame({"v": list(rows) if rows.ndim == 2 else rows})
        return frame["v"]

    return make


def polars_column(dtype: str, fixed: bool = True) -> Make:
    def make(vectors: Array) -> Any:
        polars = pytest.importorskip("polars")
        number = getattr(polars, dtype)
        if vectors.ndim == 1:
            return polars.Series(vectors.tolist(), dtype=number)
        wanted = (
            polars.Array(number, vectors.shape[1]) if fixed else polars.List(number)
        )
        return polars.Series(vectors.tolist(), dtype=wanted)

    return make


def arrow_column(value: pa.DataType, kind: str) -> Make:
    def make(vectors: Array) -> Any:
        if vectors.ndim == 1:
            return pa.array(vectors.astype(value.to_pandas_dtype()))
        flat = pa.array(vectors.ravel().astype(value.to_pandas_dtype()))
        fixed = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        if kind == "fixed":
            return fixed
        if kind == "chunked":
            return pa.chunked_array([fixed[:1], fixed[1:]])
        return fixed.cast(getattr(pa, kind)(value))

    return make


KINDS: dict[str, Make] = {
    "list": lambda v: v.tolist(),
    "tuple": lambda v: tuple(v.tolist()),
    "list of arrays": list,
    "array": lambda v: v,
    "float16 array": lambda v: v.astype(np.float16),
    "pandas": pandas_column("float32"),
    "pandas float64": pandas_column("float64"),
    "pandas float16": pandas_column("float16"),
    "pandas objects": lambda v: pandas_column("float32")(v).to_numpy(),
    "polars array": polars_column("Float32"),
    "polars list": polars_column("Float64", fixed=False),
    "arrow fixed": arrow_column(pa.float32(), "fixed"),
    "arrow chunked": arrow_column(pa.float32(), "chunked"),
    "arrow list": arrow_column(pa.float64(), "list_"),
    "arrow large list": arrow_column(pa.float32(), "large_list"),
    "arrow float16 fixed": arrow_column(pa.float16(), "fixed"),
    "arrow float16 list": arrow_column(pa.float16(), "list_"),
    "arrow float16 large": arrow_column(pa.float16(), "large_list"),
}


@pytest.fixture
def indexes(memory: Any, vectors: Vectors) -> duckvec.VectorIndexes:
    create_table(memory, vectors)
    return duckvec.load(memory)


@pytest.mark.parametrize("kind", KINDS)
def test_one_vector_may_be_of_any_kind(
    indexes: duckvec.VectorIndexes, memory: Any, vectors: Vectors, kind: str
) -> None:
    query = KINDS[kind](vectors.queries[0])
    found = indexes.search("items", query, 5).project("distance").fetchall()
    wanted = exact(memory, vectors.query(0), 5)
    np.testing.assert_allclose([d for (d,) in found], wanted, rtol=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_many_vectors_may_be_of_any_kind(
    indexes: duckvec.VectorIndexes, memory: Any, vectors: Vectors, kind: str
) -> None:
    query = KINDS[kind](vectors.queries[:3])
    found = indexes.search("items", query, 5).project("query_index, distance")
    rows = found.fetchall()
    assert [number for number, _ in rows] == [0] * 5 + [1] * 5 + [2] * 5
    wanted = [d for i in range(3) for d in exact(memory, vectors.query(i), 5)]
    np.testing.assert_allclose([d for _, d in rows], wanted, rtol=5e-3)


def test_a_missing_vector_in_a_column_finds_no_rows(
    indexes: duckvec.VectorIndexes, vectors: Vectors
) -> None:
    rows = vectors.queries[:2].tolist()
    for query in (pa.array([rows[0], None, rows[1]]), pa.array([None, None, None])):
        found = indexes.search("items", query, 2).project("query_index").fetchall()
        assert [number for (number,) in found] in ([0, 0, 2, 2], [])


NONSENSE: dict[str, tuple[Any, str]] = {
    "words": (["a", "b"], "neither a vector of numbers nor a list of vectors"),
    "ragged": ([[1.0, 2.0], [1.0]], "neither a vector of numbers nor a list"),
    "a dict": ({"a": 1}, "neither a vector of numbers nor a list of vectors"),
    "a number": (3, "an array of 0 dimensions; give one vector (1) or many (2)"),
    "a cube": (np.zeros((2, 2, 2)), "an array of 3 dimensions"),
    "a cube of lists": ([[[1.0]]], "an array of 3 dimensions"),
    "a column of words": (pa.array(["a"]), "a column of string; give one of vectors"),
    "a table": (
        pa.table({"v": [[1.0]]}),
        "the query is a Table; give one column of it",
    ),
    "a batch": (
        pa.record_batch({"v": pa.array([[1.0]])}),
        "the query is a RecordBatch",
    ),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_what_is_no_query_is_refused_with_a_sentence(
    indexes: duckvec.VectorIndexes, kind: str
) -> None:
    query, sentence = NONSENSE[kind]
    with pytest.raises(QueryError, match=r"^[^\n]*$") as caught:
        indexes.search("items", query)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_data_frame_is_refused_and_its_column_named_as_the_way_out(
    indexes: duckvec.VectorIndexes, library: str
) -> None:
    frame = pytest.importorskip(library).DataFrame({"v": [[1.0, 2.0]]})
    with pytest.raises(QueryError, match="is a DataFrame; give one column of it"):
        indexes.search("items", frame)
    with pytest.raises(UnknownCollectionError, match="give the column itself"):
        indexes.search("items", "frame")
