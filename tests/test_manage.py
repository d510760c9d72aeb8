"""Creating, replacing and dropping indexes, and what the catalog says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

import duckvec
from tests.data import PARAMS, Vectors, clustered, create, create_table, search

pytestmark = pytest.mark.core

ALIASES = {
    "ivflat": "IVF_FLAT",
    "IVFSQ8": "IVF_SQ8",
    "SQ8": "IVF_SQ8",
    "IVFSQ8H": "IVF_SQ8H",
    "Sq8h": "IVF_SQ8H",
    "IVFPQ": "IVF_PQ",
    "RNSG": "NSG",
    "hnsw": "HNSW",
}


def rows(con: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    """Return the rows of a query by column name."""
    result = con.execute(sql)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def artifacts(path: Path) -> list[str]:
    """Return the names of the files in the artifact folder of a database."""
    folder = path.with_name(path.name + ".duckvec")
    return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("metric", ["L2", "ip", "Cosine"])
@pytest.mark.parametrize("index_type", PARAMS)
def test_every_type_and_metric(
    con: duckdb.DuckDBPyConnection,
    path: Path,
    vectors: Vectors,
    index_type: str,
    metric: str,
) -> None:
    create_table(con, vectors)
    made = create(con, index_type, metric=metric)
    assert made["collection"] == "items"
    assert made["column_name"] == "embedding"
    assert made["index_type"] == index_type
    assert made["metric"] == metric.upper()
    assert json.loads(made["params"]) == PARAMS[index_type]
    assert made["dimension"] == 16
    assert made["row_count"] == 3000
    assert made["segment_count"] == 1
    assert made["size_bytes"] > 0
    assert made["build_seconds"] > 0
    [index] = rows(con, "FROM vector_indexes()")
    assert index["state"] == "ready"
    assert index["indexed_rows"] == index["row_count"] == 3000
    assert index["unindexed_rows"] == index["deleted_rows"] == 0
    assert index["size_bytes"] == made["size_bytes"]
    [segment] = rows(con, "FROM vector_index_segments()")
    assert segment["index_type"] == index_type
    assert segment["library_version"]
    files = artifacts(path)
    assert len(files) == 2
    assert segment["file"] in files
    found = search(con, vectors.query(0))
    assert len(found) == 10


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors, alias: str
) -> None:
    create_table(memory, vectors)
    made = create(memory, alias, params=PARAMS[ALIASES[alias]])
    assert made["index_type"] == ALIASES[alias]


@pytest.mark.parametrize(
    "params",
    [
        """'{"nlist": 20}'""",
        "{'nlist': 20}",
        "MAP {'nlist': 20}",
        """'<"nlist":20>'""",
        "'{\"nlist\": 20}'::JSON",
        "params := {'nlist': 20}",
        "params => '{\"nlist\": 20}', metric := 'L2', index_file_size := 64",
    ],
)
@pytest.mark.parametrize(
    "form", ["CALL {}", "FROM {}", "SELECT {}", "SELECT * FROM {}"]
)
def test_spellings_of_a_call(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors, form: str, params: str
) -> None:
    create_table(memory, vectors)
    call = f"create_vector_index('items', 'IVF_FLAT', {params})"
    made = memory.execute(form.format(call)).fetchall()
    [index] = rows(memory, "FROM vector_indexes()")
    assert json.loads(index["params"]) == {"nlist": 20}
    assert len(made) == 1
    memory.execute(form.format("drop_vector_index('items')")).fetchall()
    [index] = rows(memory, "FROM vector_indexes()")
    assert (index["index_type"], index["segment_count"]) == ("FLAT", 0)


def test_replacing_and_dropping_delete_the_old_artifacts(
    con: duckdb.DuckDBPyConnection, path: Path, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT", metric="COSINE")
    first = artifacts(path)
    create(con, "IVF_SQ8", metric="COSINE")
    second = artifacts(path)
    assert len(second) == 2
    assert not set(first) & set(second)
    [dropped] = rows(con, "FROM drop_vector_index('items')")
    assert dropped["index_type"] == "FLAT"
    assert dropped["metric"] == "COSINE"
    assert artifacts(path) == []
    [index] = rows(con, "FROM vector_indexes()")
    assert (index["index_type"], index["metric"]) == ("FLAT", "COSINE")
    assert len(search(con, vectors.query(0))) == 10
    [again] = rows(con, "FROM drop_vector_index('items')")
    assert again["index_type"] == "FLAT"


def test_a_drop_that_may_mean_two_indexes_drops_none(
    con: duckdb.DuckDBPyConnection,
) -> None:
    con.execute(
        "CREATE TABLE two AS SELECT i AS id, [i, i]::FLOAT[2] AS a, "
        "[i, -i]::FLOAT[2] AS b FROM range(100) t(i)"
    )
    for column in ("a", "b"):
        con.execute(
            "CALL create_vector_index('two', 'FLAT', column_name := ?)", [column]
        )
    before = con.execute("SELECT column_name, state FROM vector_indexes()").fetchall()
    for drop in ("drop_vector_index('two')", "drop_vector_index('two', 'c')"):
        with pytest.raises(duckdb.Error, match='"a"'):
            con.execute(f"CALL {drop}")
    found = con.execute("SELECT column_name, state FROM vector_indexes()").fetchall()
    assert found == before and len(found) == 2
    con.execute("ALTER TABLE two DROP COLUMN a")
    con.execute("CALL drop_vector_index('two', 'a')")
    con.execute("CALL drop_vector_index('two')")


def test_dropping_where_nothing_is(
    con: duckdb.DuckDBPyConnection, path: Path, vectors: Vectors
) -> None:
    create_table(con, vectors)
    [dropped] = rows(con, "CALL drop_vector_index('items')")
    assert dropped["index_type"] == "FLAT"
    assert rows(con, "FROM duckdb_schemas() WHERE schema_name = 'duckvec'") == []
    assert not path.with_name(path.name + ".duckvec").exists()


def test_index_file_size_makes_segments(
    con: duckdb.DuckDBPyConnection, path: Path
) -> None:
    big = clustered(9000, 64)
    create_table(con, big)
    made = create(con, "IVF_FLAT", index_file_size=1)
    assert made["segment_count"] == 3
    assert made["row_count"] == 9000
    assert len(artifacts(path)) == 6
    found = search(con, big.query(0), 20, params={"nprobe": 32})
    wanted = con.execute(
        "SELECT array_distance(embedding, ?::FLOAT[64]) AS d FROM items "
        "ORDER BY d LIMIT 20",
        [big.query(0)],
    ).fetchall()
    assert [distance for _, distance in found] == [row[0] for row in wanted]


def test_too_large_an_nlist_is_clamped_and_recorded(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    made = create(con, "IVF_FLAT", params={"nlist": 16384})
    assert json.loads(made["params"]) == {"nlist": 16384}
    [segment] = rows(con, "FROM vector_index_segments()")
    assert 1 <= json.loads(segment["params"])["nlist"] < 3000
    assert len(search(con, vectors.query(0), params={"nprobe": 16384})) == 10


@pytest.mark.parametrize("index_type", PARAMS)
@pytest.mark.parametrize("count", [1, 2, 7, 60])
def test_tiny_tables(
    memory: duckdb.DuckDBPyConnection, index_type: str, count: int
) -> None:
    few = clustered(count, 16)
    create_table(memory, few)
    assert create(memory, index_type)["row_count"] == count
    assert len(search(memory, few.query(0), 5)) == min(5, count)


def test_the_catalog_lies_in_plain_tables(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    create(con, "IVF_PQ")
    indexes = rows(con, "FROM duckvec.indexes")
    segments = rows(con, "FROM duckvec.segments")
    assert len(indexes) == len(segments) == 1
    assert indexes[0]["index_type"] == segments[0]["index_type"] == "IVF_PQ"
    assert segments[0]["index_id"] == indexes[0]["index_id"]
    assert len(segments[0]["checksum"]) == 32


def test_the_types_are_listed_from_their_declarations(
    memory: duckdb.DuckDBPyConnection,
) -> None:
    listed = rows(memory, "FROM vector_index_types()")
    build = {
        (row["index_type"], row["parameter"]): (row["minimum"], row["maximum"])
        for row in listed
        if row["phase"] == "build" and row["allowed"] is None
    }
    assert build == {
        ("IVF_FLAT", "nlist"): ("1", "999999"),
        ("IVF_SQ8", "nlist"): ("1", "999999"),
        ("IVF_SQ8H", "nlist"): ("1", "999999"),
        ("IVF_PQ", "nlist"): ("1", "999999"),
        ("NSG", "search_length"): ("10", "300"),
        ("NSG", "out_degree"): ("5", "300"),
        ("NSG", "candidate_pool_size"): ("50", "1000"),
        ("NSG", "knng"): ("5", "300"),
        ("HNSW", "M"): ("5", "48"),
        ("HNSW", "efConstruction"): ("100", "500"),
        ("ANNOY", "n_trees"): ("1", "1024"),
    }
    [m] = [row for row in listed if row["parameter"] == "m"]
    assert m["allowed"] == [96, 64, 56, 48, 40, 32, 28, 24, 20, 16, 12, 8, 4, 3, 2, 1]
    assert {row["index_type"] for row in listed} == set(PARAMS)
    [flat] = [row for row in listed if row["index_type"] == "FLAT"]
    assert flat["parameter"] is None
    assert all(row["metrics"] == ["L2", "IP", "COSINE"] for row in listed)


def test_an_in_memory_database_keeps_its_artifacts_in_a_temporary_folder(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(memory, vectors)
    create(memory, "FLAT")
    assert len(search(memory, vectors.query(0))) == 10


def test_a_directory_for_the_artifacts(tmp_path: Path, vectors: Vectors) -> None:
    place = tmp_path / "elsewhere"
    con = duckvec.connect(str(tmp_path / "a.db"), directory=str(place))
    create_table(con, vectors)
    create(con, "FLAT")
    assert len(list(place.glob("a.db.*.duckvec/*"))) == 2
    assert not (tmp_path / "a.db.duckvec").exists()
    con.close()


def test_creating_inside_a_transaction(
    con: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(con, vectors)
    con.execute("BEGIN")
    con.execute("DELETE FROM items WHERE id < 10")
    con.execute("INSERT INTO items VALUES (-1, 0, ?)", [vectors.query(0)])
    made = create(con, "FLAT")
    assert made["row_count"] == 3000
    assert search(con, vectors.query(0), 1) == [(-1, 0.0)]
    con.execute("ROLLBACK")
    [index] = rows(con, "FROM vector_indexes()")
    assert index["indexed_rows"] == 3000
    assert search(con, vectors.query(0), 1)[0][0] >= 0
    con.execute("CHECKPOINT")
    assert len(search(con, vectors.query(0), 3000)) == 3000
