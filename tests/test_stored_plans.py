"""Plans that are kept as macros: used where they can be, and never in the way."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

import duckvec
from duckvec import plan_text
from tests.data import (
    EXHAUSTIVE,
    Vectors,
    assert_same,
    create,
    create_table,
    exact,
    search,
)

pytestmark = pytest.mark.core

PARAMS = EXHAUSTIVE["IVF_FLAT"]


@pytest.fixture
def whole_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the texts of searches by index whose plan was not stored, as they come."""
    texts: list[str] = []

    def noting(*args: object, **values: str) -> str:
        texts.append(plan_text.index_text(*args, **values))  # type: ignore[arg-type]
        return texts[-1]

    monkeypatch.setattr("duckvec.planner.index_text", noting)
    return texts


def check(con: duckdb.DuckDBPyConnection, vectors: Vectors, name: str) -> None:
    query = vectors.query(0)
    found = search(con, query, collection=name, params=PARAMS)
    assert_same(found, exact(con, query, source=name))


def test_built_and_reopened_indexes_have_stored_plans(
    path: Path, vectors: Vectors, whole_texts: list[str]
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    check(con, vectors, "items")
    con.close()
    for read_only in (False, True):
        con = duckdb.connect(str(path), read_only=read_only)
        duckvec.load(con).wait()
        check(con, vectors, "items")
        con.close()
    assert not whole_texts


def test_a_transaction_older_than_the_plan_gets_the_whole_text_or_scans(
    path: Path, vectors: Vectors, whole_texts: list[str]
) -> None:
    con = duckvec.connect(str(path))
    for name in ("items", "others"):
        create_table(con, vectors, name)
    create(con, "IVF_FLAT")
    old = con.cursor()
    duckvec.load(old)
    old.execute("BEGIN")
    check(old, vectors, "items")  # its transaction sees the stored plans of now
    create(con, "IVF_FLAT", "others")
    check(old, vectors, "others")
    check(con, vectors, "others")
    old.execute("COMMIT")
    check(old, vectors, "others")
    assert not whole_texts


def test_altered_and_renamed_tables_get_other_plans(
    path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(path))
    handle = duckvec.load(con)
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    check(con, vectors, "items")
    for change in (
        "ALTER TABLE items ADD COLUMN ticket INTEGER DEFAULT 7",
        "ALTER TABLE items RENAME COLUMN price TO watermark",
        "ALTER TABLE items DROP COLUMN ticket",
    ):
        con.execute(change)
        handle.wait()
        check(con, vectors, "items")
    con.execute("DROP TABLE items")
    create_table(con, vectors)
    check(con, vectors, "items")


@pytest.mark.parametrize("column", ["ticket", "watermark", "vector", "id_", "__query"])
def test_columns_may_be_called_like_the_parameters_of_a_stored_plan(
    path: Path, vectors: Vectors, whole_texts: list[str], column: str
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors, column=column)
    con.execute(f"ALTER TABLE items RENAME COLUMN price TO {column}_2")
    create(con, "IVF_FLAT")
    query = vectors.query(0)
    found = search(con, query, params=PARAMS)
    assert_same(found, exact(con, query, column=column))
    assert not whole_texts


def test_the_hidden_database_is_in_no_list(path: Path, vectors: Vectors) -> None:
    con = duckvec.connect(str(path))
    before = con.execute("SHOW DATABASES").fetchall()
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    check(con, vectors, "items")
    assert con.execute("SHOW DATABASES").fetchall() == before
    shown = con.execute(
        "SELECT database_name FROM duckdb_databases() "
        "UNION SELECT database_name FROM duckdb_views() "
        "UNION SELECT database_name FROM duckdb_functions()"
    ).fetchall()
    assert ("__duckvec",) not in shown


def test_where_a_plan_cannot_be_stored_the_whole_text_serves(
    path: Path, vectors: Vectors, whole_texts: list[str]
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    # DuckDB refuses a macro whose parameter is also a column that it reads.
    con.execute("ALTER TABLE items RENAME COLUMN price TO __watermark")
    create(con, "IVF_FLAT")
    check(con, vectors, "items")
    assert whole_texts
