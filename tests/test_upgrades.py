"""Catalogs of other versions: older ones are migrated, newer ones are refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

import duckvec
from duckvec import catalog, migrations
from duckvec.migrations import Migration
from tests.data import (
    AS_SCRIPT,
    Vectors,
    assert_same,
    create,
    create_table,
    exact,
    search,
)

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]
FIXTURES = sorted((ROOT / "tests" / "fixtures").glob("catalog_*"))
LIST = "SELECT column_name, index_type, metric, state, row_count FROM vector_indexes()"


def version(con: duckdb.DuckDBPyConnection) -> int:
    found = con.execute("SELECT max(catalog_version) FROM duckvec.epoch").fetchall()
    return int(found[0][0])


def columns(con: duckdb.DuckDBPyConnection) -> list[str]:
    con.execute("FROM duckvec.segments LIMIT 0")
    return [column[0] for column in con.description or ()]


# Databases that earlier versions wrote


def test_there_is_a_database_of_this_version() -> None:
    assert f"catalog_{catalog.CATALOG_VERSION}" in {folder.name for folder in FIXTURES}
    for folder in FIXTURES:
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) < 300_000


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda folder: folder.name)
def test_a_database_of_an_earlier_version_is_opened_and_searched(
    tmp_path: Path, fixture: Path, read_only: bool
) -> None:
    shutil.copytree(fixture, tmp_path / "copy")
    path = str(tmp_path / "copy" / "fixture.db")
    con = duckvec.connect(path, read_only=read_only, background=False)
    duckvec.load(con).wait(60)
    indexes = con.execute(LIST).fetchall()
    assert {index_type for _, index_type, *_ in indexes} >= {"FLAT", "IVF_FLAT", "HNSW"}
    query = [0.1, -0.2, 0.3, 0.4]
    for column, index_type, metric, state, rows in indexes:
        assert (state, rows) == ("ready", 300), index_type
        found = search(con, query, column_name=column, params='{"recall": 0.9}')
        wanted = exact(con, query, metric=metric, column=column)
        right = [distance <= wanted[-1] + 1e-4 for _, distance in found]
        assert len(right) == 10 and sum(right) >= 7, index_type
        # All lists of a compressed type would be an exact scan.
        narrow = '{"nprobe": 4}' if index_type.startswith("IVF") else None
        route = con.execute(
            "SELECT route, segments FROM vector_explain('items', $query, "
            "column_name := $column, params := $params)",
            {"query": query, "column": column, "params": narrow},
        ).fetchall()
        assert route == [("index", 1)], index_type
    if read_only:
        with pytest.raises(duckdb.Error, match="read-only"):
            create(con, "FLAT", params=None, column_name="flat")
    else:
        con.execute(
            "INSERT INTO items SELECT 1000 + id, COLUMNS(* EXCLUDE id) FROM items"
        )
        create(con, "FLAT", params=None, column_name="flat", metric="L2")
        duckvec.load(con).compact("items", column_name="hnsw")
        assert version(con) == catalog.CATALOG_VERSION
        found = search(con, query, column_name="flat")
        assert_same(found, exact(con, query, column="flat"))
    con.close()


# A catalog as the first version wrote it


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, vectors: Vectors) -> Path:
    """A folder with a database whose catalog has version 1."""
    folder = tmp_path_factory.mktemp("kept")
    con = duckvec.connect(str(folder / "test.db"))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.close()
    with duckdb.connect(str(folder / "test.db")) as plain:
        plain.execute("ALTER TABLE duckvec.segments DROP COLUMN ladder")
        plain.execute("UPDATE duckvec.epoch SET catalog_version = 1")
    return folder


@pytest.fixture
def old(path: Path, kept: Path) -> Path:
    """A closed copy of it."""
    shutil.copytree(kept, path.parent, dirs_exist_ok=True)
    return path


@pytest.fixture
def opened(old: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """That database, opened for writing and proven."""
    con = duckvec.connect(str(old), background=False)
    duckvec.load(con).wait(60)
    yield con
    con.close()


def check(con: duckdb.DuckDBPyConnection, vectors: Vectors) -> None:
    query = vectors.query(0)
    found = search(con, query, params={"nprobe": 32})
    assert_same(found, exact(con, query))


def test_an_older_catalog_is_searched_as_it_is(old: Path, vectors: Vectors) -> None:
    for read_only in (True, False):
        con = duckvec.connect(str(old), background=False, read_only=read_only)
        duckvec.load(con).wait(60)
        check(con, vectors)
        assert con.execute(LIST).fetchall()[0][3] == "ready"
        con.close()
    with duckdb.connect(str(old)) as plain:
        assert version(plain) == 1
        assert "ladder" not in columns(plain)
        epochs = plain.execute("SELECT count(*) FROM duckvec.epoch").fetchall()
        assert epochs[0][0] > 1  # the commits of guards did not pretend otherwise


def test_the_first_change_migrates(
    opened: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    create_table(opened, vectors, "others")
    create(opened, "FLAT", "others")
    assert version(opened) == catalog.CATALOG_VERSION
    assert "ladder" in columns(opened)
    check(opened, vectors)
    assert {state for *_, state, _ in opened.execute(LIST).fetchall()} == {"ready"}
    create(opened, "IVF_FLAT")
    check(opened, vectors)


@pytest.mark.parametrize("call", ["drop", "rename"])
def test_other_changes_migrate_too(
    opened: duckdb.DuckDBPyConnection, vectors: Vectors, call: str
) -> None:
    if call == "drop":
        opened.execute("CALL drop_vector_index('items')").fetchall()
    else:
        opened.execute("ALTER TABLE items RENAME TO things")
        assert len(search(opened, vectors.query(0), collection="things")) == 10
        duckvec.load(opened).wait(60)
    assert version(opened) == catalog.CATALOG_VERSION
    assert "ladder" in columns(opened)


def fail(cursor: duckdb.DuckDBPyConnection, schema: str) -> None:
    raise duckdb.IOException("no space left on device")


def test_a_migration_that_fails_half_way_changes_nothing(
    opened: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = opened.execute("FROM duckvec.segments").fetchall()
    with monkeypatch.context() as patch:
        steps = [*migrations.MIGRATIONS, Migration(3, fail)]
        patch.setattr(migrations, "MIGRATIONS", steps)
        with pytest.raises(duckdb.Error, match="no space left"):
            create(opened, "FLAT")
        with pytest.raises(duckdb.Error, match="no space left"):
            opened.execute("CALL drop_vector_index('items')")
    assert version(opened) == 1
    assert "ladder" not in columns(opened)
    assert opened.execute("FROM duckvec.segments").fetchall() == before
    check(opened, vectors)
    assert opened.execute(LIST).fetchall()[0][1:4] == ("IVF_FLAT", "L2", "ready")
    create(opened, "FLAT")
    assert version(opened) == catalog.CATALOG_VERSION
    check_flat = search(opened, vectors.query(0))
    assert_same(check_flat, exact(opened, vectors.query(0)))


CRASH = """
import os, sys
import duckvec
from duckvec import migrations
from duckvec.migrations import Migration
crash = Migration(3, lambda cursor, schema: os._exit(9))
migrations.MIGRATIONS.append(crash)
con = duckvec.connect(sys.argv[1])
con.execute("CALL create_vector_index('items', 'FLAT')").fetchall()
"""


def test_a_crash_in_a_migration_leaves_the_old_catalog(
    old: Path, vectors: Vectors
) -> None:
    code = [sys.executable, "-c", AS_SCRIPT + CRASH, str(old)]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (9, b"")
    with duckdb.connect(str(old)) as plain:
        assert version(plain) == 1
        assert "ladder" not in columns(plain)
    con = duckvec.connect(str(old), background=False)
    duckvec.load(con).wait(60)
    check(con, vectors)
    files = con.execute("SELECT count(*) FROM duckvec.segments").fetchall()[0][0] * 2
    folder = old.with_name(old.name + ".duckvec")
    assert len(list(folder.iterdir())) == files
    create(con, "IVF_FLAT")
    assert version(con) == catalog.CATALOG_VERSION
    check(con, vectors)
    con.close()


def test_a_failed_commit_is_asked_again_whether_it_migrated(
    opened: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    state = next(iter(duckvec.load(opened)._instance.databases.values()))
    create(opened, "IVF_FLAT")
    state.epoch, state.catalog_version = None, 1  # as after a commit that failed late
    opened.execute("INSERT INTO items SELECT -id - 1, price, embedding FROM items")
    check(opened, vectors)
    duckvec.load(opened).wait(60)
    versions = opened.execute("SELECT DISTINCT catalog_version FROM duckvec.epoch")
    assert versions.fetchall() == [(catalog.CATALOG_VERSION,)]


# A catalog of a later version


@pytest.mark.parametrize("read_only", [True, False])
def test_a_newer_catalog_is_refused_and_searches_are_exact(
    path: Path, vectors: Vectors, read_only: bool
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.close()
    newer = catalog.CATALOG_VERSION + 1
    with duckdb.connect(str(path)) as plain:
        plain.execute(f"UPDATE duckvec.epoch SET catalog_version = {newer}")
        plain.execute("ALTER TABLE duckvec.segments RENAME COLUMN file TO place")
        rows = [plain.execute(f"FROM duckvec.{t}").fetchall() for t in TABLES]
    folder = path.with_name(path.name + ".duckvec")
    files = {file: file.read_bytes() for file in folder.iterdir()}
    con = duckvec.connect(str(path), read_only=read_only)
    duckvec.load(con).wait(60)
    query = vectors.query(0)
    assert_same(search(con, query), exact(con, query))
    assert_same(search(con, query, metric="COSINE"), exact(con, query, metric="COSINE"))
    if not read_only:
        sentence = (
            f'the indexes of database "test" have catalog version {newer}; this '
            f"duckvec knows {catalog.CATALOG_VERSION}: install a newer one"
        )
        for call in (
            "create_vector_index('items', 'FLAT')",
            "drop_vector_index('items')",
            "vector_compact('items')",
        ):
            with pytest.raises(duckdb.Error, match=sentence):
                con.execute(f"CALL {call}")
        con.execute("INSERT INTO items SELECT -id - 1, price, embedding FROM items")
        duckvec.load(con).wait(60)
        assert_same(search(con, query), exact(con, query))
    con.close()
    assert {file: file.read_bytes() for file in folder.iterdir()} == files
    with duckdb.connect(str(path)) as plain:
        assert [plain.execute(f"FROM duckvec.{t}").fetchall() for t in TABLES] == rows


TABLES = ("indexes", "segments", "epoch")
