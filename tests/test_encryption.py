"""Encrypted databases: their vectors lie in the clear only where somebody said so."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

import duckdb
import numpy as np
import pytest

import duckvec
from tests.data import (
    EXHAUSTIVE,
    Vectors,
    arrow_table,
    assert_same,
    create,
    create_table,
    exact,
    search,
)

pytestmark = pytest.mark.core

REFUSAL = (
    'database "secret" is encrypted and artifacts are not; name a safe place with the '
    r"first load\(con, directory=…\)"
)


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    """A folder that somebody calls safe."""
    return tmp_path / "safe"


def connect(path: Path, safe: Path | None = None) -> duckdb.DuckDBPyConnection:
    """Return a connection whose default database is the encrypted file."""
    con = duckvec.connect(directory=None if safe is None else str(safe))
    with contextlib.suppress(duckdb.CatalogException):
        # Else DuckDB asks for an extension, which only a download gives.
        con.execute("SET force_mbedtls_unsafe = true")
    con.execute(f"ATTACH '{path}' AS secret (ENCRYPTION_KEY 'a key')")
    con.execute("USE secret")
    found = con.execute(
        "SELECT encrypted FROM duckdb_databases() WHERE database_name = 'secret'"
    )
    assert found.fetchall() == [(True,)]
    return con


def insert(con: duckdb.DuckDBPyConnection, vectors: Vectors) -> None:
    data = arrow_table(np.concatenate([vectors.rows, -vectors.rows]), 5000)
    con.execute("INSERT INTO items SELECT id, 0, vector FROM data")
    del data


def last_error(con: duckdb.DuckDBPyConnection) -> str | None:
    ((error,),) = con.execute("SELECT last_error FROM vector_indexes()").fetchall()
    return error if error is None else str(error)


def artifacts(path: Path, safe: Path) -> list[Path]:
    """Return all files of indexes, wherever they are."""
    assert safe.parent == path.parent
    return list(path.parent.rglob("*.duckvec/*"))


def test_an_encrypted_database_is_not_indexed_without_a_safe_place(
    path: Path, safe: Path, vectors: Vectors
) -> None:
    con = connect(path)
    create_table(con, vectors)
    for call in (
        "create_vector_index('items', 'FLAT')",
        "vector_compact('items')",
        "drop_vector_index('items')",
    ):
        with pytest.raises(duckdb.Error, match=REFUSAL):
            con.execute(f"CALL {call}")
    schemas = "SELECT 1 FROM duckdb_schemas() WHERE schema_name = 'duckvec'"
    assert con.execute(schemas).fetchall() == []
    query = vectors.query(0)
    assert_same(search(con, query), exact(con, query))
    con.close()
    assert artifacts(path, safe) == []


def test_an_encrypted_database_is_indexed_in_a_named_place(
    path: Path, safe: Path, vectors: Vectors
) -> None:
    query = vectors.query(0)
    con = connect(path, safe)
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.close()
    con = connect(path, safe)
    insert(con, vectors)
    duckvec.load(con).wait(60)
    listed = "SELECT state, indexed_rows, unindexed_rows FROM vector_indexes()"
    assert con.execute(listed).fetchall() == [("ready", 9000, 0)]
    assert_same(search(con, query, params=EXHAUSTIVE["IVF_FLAT"]), exact(con, query))
    found = artifacts(path, safe)
    assert len(found) == 4 and all(file.is_relative_to(safe) for file in found)
    con.execute("CALL drop_vector_index('items')").fetchall()
    assert artifacts(path, safe) == []
    con.close()


@pytest.mark.parametrize("background", ["waited for", "compacted", "by itself"])
def test_new_rows_of_an_encrypted_database_are_not_written_in_the_clear(
    path: Path, safe: Path, vectors: Vectors, background: str
) -> None:
    con = connect(path, safe)
    con.execute("CREATE TABLE items (id BIGINT, price INTEGER, embedding FLOAT[16])")
    create(con, "FLAT")
    con.close()
    con = connect(path)
    insert(con, vectors)
    handle = duckvec.load(con)
    if background == "compacted":
        with pytest.raises(duckdb.Error, match=REFUSAL):
            handle.compact("items")
    elif background == "by itself":
        until = time.monotonic() + 30
        while last_error(con) is None and time.monotonic() < until:
            time.sleep(0.1)
    else:
        handle.wait(60)
    if background != "compacted":
        assert re.fullmatch(REFUSAL, last_error(con) or "")
    assert_same(search(con, vectors.query(0)), exact(con, vectors.query(0)))
    con.close()
    assert artifacts(path, safe) == []
