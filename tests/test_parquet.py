"""Vectors in Parquet files, as Arrow, pandas, Polars and DuckDB write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tests.data import arrow_table, assert_same, clustered, exact, search

pytestmark = pytest.mark.core

VECTORS = clustered(300, 8)
Write = Callable[[NDArray[Any], Path], None]
# Numbers, and the column that DuckDB makes of them: it reads float16 as FLOAT.
COLUMNS = {"float16": "FLOAT[]", "float32": "FLOAT[]", "float64": "DOUBLE[]"}


def by_arrow(kind: str) -> Write:
    def write(rows: NDArray[Any], path: Path) -> None:
        flat = pa.array(rows.ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
        if kind != "fixed":
            column = column.cast(getattr(pa, kind)(flat.type))
        pq.write_table(pa.table({"id": range(len(rows)), "embedding": column}), path)

    return write


def by_pandas(rows: NDArray[Any], path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"id": range(len(rows)), "embedding": list(rows)})
    frame.to_parquet(path)


def by_polars(kind: str) -> Write:
    def write(rows: NDArray[Any], path: Path) -> None:
        polars = pytest.importorskip("polars")
        name = rows.dtype.name.replace("float", "Float")
        if not hasattr(polars, name):
            pytest.skip(f"this Polars has no {name}")
        number = getattr(polars, name)
        fixed = polars.Array(number, rows.shape[1])
        column = polars.Series(
            rows.tolist(), dtype=fixed if kind == "array" else polars.List(number)
        )
        frame = polars.DataFrame({"id": range(len(rows)), "embedding": column})
        frame.write_parquet(path)

    return write


WRITERS: dict[str, Write] = {
    "arrow fixed": by_arrow("fixed"),
    "arrow list": by_arrow("list_"),
    "arrow large list": by_arrow("large_list"),
    "pandas": by_pandas,
    "polars array": by_polars("array"),
    "polars list": by_polars("list"),
}


@pytest.mark.parametrize("number", COLUMNS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_table_of_a_parquet_file_can_be_indexed_as_it_is(
    memory: duckdb.DuckDBPyConnection, tmp_path: Path, writer: str, number: str
) -> None:
    path = tmp_path / "items.parquet"
    WRITERS[writer](VECTORS.rows.astype(number), path)
    memory.execute(f"CREATE TABLE items AS FROM '{path}'")
    described = memory.execute("DESCRIBE items").fetchall()
    assert described[1][:2] == ("embedding", COLUMNS[number])
    memory.execute("CALL create_vector_index('items', 'IVF_FLAT', {'nlist': 8})")
    found = search(memory, VECTORS.query(0), params={"nprobe": 8})
    wanted = exact(memory, VECTORS.query(0))
    np.testing.assert_allclose([d for _, d in found], wanted, rtol=1e-4)


def test_duckdb_writes_arrays_as_lists_and_a_cast_brings_them_back(
    memory: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    path = tmp_path / "items.parquet"
    memory.register("rows", arrow_table(VECTORS.rows))
    assert memory.execute("DESCRIBE rows").fetchall()[1][1] == "FLOAT[8]"
    memory.execute(f"COPY (FROM rows) TO '{path}'")
    assert memory.execute(f"DESCRIBE FROM '{path}'").fetchall()[1][1] == "FLOAT[]"
    memory.execute(
        f"CREATE TABLE items AS SELECT id, vector::FLOAT[8] AS vector FROM '{path}'"
    )
    memory.execute("CALL create_vector_index('items', 'FLAT')")
    assert_same(search(memory, VECTORS.query(0)), exact_of(memory))


@pytest.mark.parametrize("kind", ["fixed", "list_"])
def test_vectors_of_whole_numbers_need_a_cast(
    memory: duckdb.DuckDBPyConnection, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "items.parquet"
    by_arrow(kind)(np.round(VECTORS.rows * 10).astype(np.int8), path)
    memory.execute(f"CREATE TABLE bytes AS FROM '{path}'")
    with pytest.raises(duckdb.InvalidInputException, match="has no vector column"):
        memory.execute("CALL create_vector_index('bytes', 'FLAT')")
    memory.execute(
        "CREATE TABLE items AS SELECT id, embedding::FLOAT[8] AS vector FROM bytes"
    )
    memory.execute("CALL create_vector_index('items', 'FLAT')")
    assert_same(search(memory, VECTORS.query(0)), exact_of(memory))


def test_vectors_written_as_json_text_need_a_cast(
    memory: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    path = tmp_path / "items.parquet"
    texts = [json.dumps(row) for row in VECTORS.rows.tolist()]
    pq.write_table(pa.table({"id": range(len(texts)), "embedding": texts}), path)
    memory.execute(
        f"CREATE TABLE items AS SELECT id, embedding::FLOAT[8] AS vector FROM '{path}'"
    )
    memory.execute("CALL create_vector_index('items', 'FLAT')")
    assert_same(search(memory, VECTORS.query(0)), exact_of(memory))


def exact_of(con: duckdb.DuckDBPyConnection) -> list[float]:
    return exact(con, VECTORS.query(0), column="vector")
