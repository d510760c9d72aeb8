"""Files that are missing, cut, altered or left over: noticed, and mended by a build."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import faiss
import pytest

import duckvec
from duckvec import artifacts, inspection, paths, proving, reader, segments, writer
from duckvec.index_types import get_index_type
from tests.altering import run_altered
from tests.data import (
    EXHAUSTIVE,
    PARAMS,
    Vectors,
    arrow_table,
    assert_same,
    clustered,
    create,
    create_table,
    exact,
    search,
)
from tests.upkeep import eventually


def folder(path: Path) -> Path:
    return path.with_name(path.name + ".duckvec")


def index_state(con: duckdb.DuckDBPyConnection) -> tuple[Any, Any]:
    """Return state and last error of the only index."""
    sql = "SELECT state, last_error FROM vector_indexes()"
    [(state, error)] = con.execute(sql).fetchall()
    return state, error


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def lose(file: Path) -> None:
    file.unlink()


# One for each way to open files; types of one family share it.
OPENED = ("FLAT", "IVF_FLAT", "NSG", "HNSW", "ANNOY")


@pytest.mark.parametrize("harm", [flip, cut, empty, lose])
@pytest.mark.parametrize("ending", ["index", "map"])
@pytest.mark.parametrize("index_type", OPENED)
def test_harmed_artifacts(
    path: Path, vectors: Vectors, index_type: str, ending: str, harm: object
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, index_type)
    con.close()
    for file in folder(path).glob(f"*.{ending}"):
        harm(file)  # type: ignore[operator]
    con = duckdb.connect(str(path))
    handle = duckvec.load(con)
    handle.wait()
    query = vectors.query(0)
    assert_same(search(con, query), exact(con, query))
    state, error = index_state(con)
    assert state == "broken"
    assert error.endswith("again") and "build " in error
    [(state,)] = con.execute("SELECT state FROM vector_index_segments()").fetchall()
    assert state == "broken"
    create(con, index_type)
    state, error = index_state(con)
    assert (state, error) == ("ready", None)
    assert len(list(folder(path).iterdir())) == 2
    con.close()


@pytest.mark.parametrize("index_type", PARAMS)
def test_every_type_is_opened_again(
    path: Path, vectors: Vectors, index_type: str
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, index_type, metric="COSINE")
    wanted = [search(con, vectors.query(n)) for n in range(5)]
    con.close()
    con = duckdb.connect(str(path))
    duckvec.load(con).wait()
    assert [search(con, vectors.query(n)) for n in range(5)] == wanted
    con.close()


def test_a_database_copied_without_its_folder(
    path: Path, tmp_path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.close()
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())
    con = duckvec.connect(str(copy))
    query = vectors.query(0)
    found = search(con, query, params=EXHAUSTIVE["IVF_FLAT"])
    assert_same(found, exact(con, query))
    state, error = index_state(con)
    assert state == "broken"
    assert "missing" in error
    con.close()


def test_a_catalog_that_names_another_path_is_refused(
    path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.execute("UPDATE duckvec.segments SET file = '../../etc/passwd'")
    con.close()
    con = duckvec.connect(str(path))
    duckvec.load(con).wait()
    query = vectors.query(0)
    assert_same(search(con, query), exact(con, query))
    state, error = index_state(con)
    assert state == "broken"
    assert "no name that duckvec gives" in error
    con.close()


def test_leftover_files_are_removed_when_the_database_is_opened(
    path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "FLAT")
    con.close()
    stray = [f"{'a' * 32}.index", f"{'b' * 32}.map.tmp"]
    for name in (*stray, "notes.txt"):
        (folder(path) / name).write_text("left by a process that ended")
    con = duckdb.connect(str(path))
    duckvec.load(con).wait()
    names = {file.name for file in folder(path).iterdir()}
    assert not names & set(stray)
    assert "notes.txt" in names
    assert len(names) == 3
    con.close()


def test_a_build_that_fails_half_way_leaves_no_files(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, clustered(9000, 64))
    write = segments.write_segment
    written = 0

    def fail_at_the_third(*arguments: Any) -> Any:
        nonlocal written
        written += 1
        if written == 3:
            raise OSError("no space left on device")
        return write(*arguments)

    monkeypatch.setattr(writer, "write_segment", fail_at_the_third)
    with pytest.raises(duckdb.Error, match="no space left"):
        create(con, "IVF_FLAT", index_file_size=1)
    assert list(folder(path).iterdir()) == []
    assert con.execute("FROM vector_indexes()").fetchall() == []
    con.close()


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (writer, "calibrate"),
        (segments, "file_checksum"),
        (paths, "publish"),
        (get_index_type("IVF_FLAT"), "open"),
    ],
)
def test_a_build_that_fails_while_its_file_is_finished_leaves_no_files(
    place: object, name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, clustered(500, 8))

    def fail(*arguments: Any, **named: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(place, name, fail)
    with pytest.raises(duckdb.Error, match="no space left"):
        create(con, "IVF_FLAT")
    assert list(folder(path).iterdir()) == []
    assert con.execute("FROM vector_indexes()").fetchall() == []
    con.close()


def test_a_file_that_cannot_be_opened_right_after_it_was_written_is_no_lasting_damage(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")

    def read_index(*arguments: Any) -> None:
        raise RuntimeError("Too many open files")

    data = arrow_table(clustered(5000, 16).rows, 10_000)
    with monkeypatch.context() as patch:
        patch.setattr(faiss, "read_index", read_index)
        with pytest.raises(duckdb.Error, match="cannot be opened: Too many open files"):
            create(con, "IVF_FLAT")
        con.execute("INSERT INTO items SELECT id, 0, vector FROM data")
        eventually(lambda: index_state(con)[1], 20)
    before = data.num_rows + len(vectors.rows)
    assert "cannot be opened: Too many open files" in str(index_state(con)[1])
    indexed = "SELECT indexed_rows = ? AND last_error IS NULL FROM vector_indexes()"
    eventually(lambda: con.execute(indexed, [before]).fetchall()[0][0], 20)
    assert_same(search(con, vectors.query(0)), exact(con, vectors.query(0)))


@pytest.mark.parametrize("index_type", PARAMS)
def test_an_index_holds_no_more_memory_than_one_that_was_opened(
    path: Path, index_type: str
) -> None:
    vectors = clustered(2000, 64)
    held = []
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, index_type)
    for _ in range(2):
        assert len(search(con, vectors.query(0))) == 10
        sql = "SELECT memory_bytes, state FROM vector_indexes()"
        [(memory_bytes, state)] = con.execute(sql).fetchall()
        assert state == "ready"
        held.append(memory_bytes)
        con.close()
        con = duckvec.connect(str(path))
        duckvec.load(con).wait()
    con.close()
    assert held[0] == held[1]
    assert (held[0] >= vectors.rows.nbytes) == (index_type == "HNSW")


def test_a_file_that_goes_while_indexes_are_listed_is_no_error(
    con: duckdb.DuckDBPyConnection,
    path: Path,
    vectors: Vectors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create_table(con, vectors)
    create(con, "FLAT")
    check = segments.Segment.check
    seen: list[segments.Segment] = []

    def check_while_it_is_replaced(self: segments.Segment) -> str | None:
        if not seen:
            seen.append(self)
            other = con.cursor()
            duckvec.load(other)
            create(other, "IVF_FLAT")
            other.close()
        return check(self)

    for listing in ("vector_indexes", "vector_index_segments"):
        with monkeypatch.context() as patch:
            seen.clear()
            patch.setattr(segments.Segment, "check", check_while_it_is_replaced)
            found = con.execute(f"SELECT state FROM {listing}()").fetchall()
        assert (len(seen), found) == (1, [("ready",)])
    # As if it went between a look for it and another one at its size.
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    for file in folder(path).glob("*.index"):
        file.unlink()
    (state,) = con.execute("SELECT state FROM vector_indexes()").fetchall()
    assert state == ("broken",)


def test_artifacts_altered_at_random(tmp_path: Path) -> None:
    counts = run_altered(tmp_path, 1, 4)
    assert counts["altered artifacts"] >= len(PARAMS)
    assert counts["searches compared"] >= len(PARAMS)


def opened(
    path: Path, index_type: str, vectors: Vectors, *, again: bool = True
) -> duckdb.DuckDBPyConnection:
    """Return a connection to a new database whose index was opened from its files.

    Its library maps them, or the database was opened again since they were written.
    """
    con = duckvec.connect(str(path), background=False)
    create_table(con, vectors)
    create(con, index_type)
    if again:
        con.close()
        con = duckvec.connect(str(path), background=False)
        duckvec.load(con).wait()
    search(con, vectors.query(0))
    assert explain(con, vectors.query(0))[0] == "index"
    return con


def explain(con: duckdb.DuckDBPyConnection, query: list[float]) -> tuple[str, str]:
    sql = "SELECT route, reason FROM vector_explain('items', $q)"
    [(route, reason)] = con.execute(sql, {"q": query}).fetchall()
    return route, reason


@pytest.mark.parametrize(
    ("index_type", "again"),
    [(name, True) for name in OPENED]
    + [(name, False) for name in OPENED if get_index_type(name).maps_files],
)
def test_a_file_that_is_written_over_while_it_is_open(
    path: Path, vectors: Vectors, index_type: str, again: bool
) -> None:
    con = opened(path, index_type, vectors, again=again)
    [file] = folder(path).glob("*.index")
    whole = file.read_bytes()
    with file.open("r+b") as out:  # as `cp` does, in place
        out.truncate(len(whole) // 3)
        out.write(b"\xff" * 64)
    query = vectors.query(1)
    assert explain(con, query) == ("exact", "a file of the index is broken")
    assert_same(search(con, query), exact(con, query))
    assert index_state(con)[0] == "broken"
    with file.open("r+b") as out:
        out.write(whole)
    assert explain(con, query)[0] == "index"
    assert index_state(con)[0] == "ready"
    con.close()


@pytest.mark.parametrize("index_type", OPENED)
def test_a_file_that_is_replaced_while_it_is_open(
    path: Path, vectors: Vectors, index_type: str
) -> None:
    con = opened(path, index_type, vectors)
    [file] = folder(path).glob("*.index")
    query = vectors.query(1)
    before = search(con, query)
    other = bytearray(file.read_bytes())
    other[len(other) // 2] ^= 0xFF
    new = file.with_suffix(".new")
    new.write_bytes(bytes(other))
    new.replace(file)
    assert search(con, query) == before  # what is mapped is still the old file
    state, error = index_state(con)
    assert state == "broken"
    assert "cut or altered" in error
    create(con, index_type)
    assert index_state(con) == ("ready", None)
    con.close()


OTHERS: dict[str, Any] = {
    "row_count": 2999,
    "dimension": 8,
    "index_type": "IVF_SQ8",
    "metric": "COSINE",
    "params": '{"nlist": 31}',
    "segment_id": "0" * 32,
}


@pytest.mark.parametrize("name", OTHERS)
def test_whole_files_that_do_not_fit_their_catalog_row(
    path: Path, vectors: Vectors, name: str
) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.execute(f"UPDATE duckvec.segments SET {name} = $value", {"value": OTHERS[name]})
    con.close()
    con = duckvec.connect(str(path))
    duckvec.load(con).wait()
    query = vectors.query(0)
    assert_same(search(con, query), exact(con, query))
    state, error = index_state(con)
    assert state == "broken"
    assert error.endswith("again") and "build " in error
    create(con, "IVF_FLAT")
    assert index_state(con) == ("ready", None)
    con.close()


def test_a_whole_file_of_another_format(path: Path, vectors: Vectors) -> None:
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    [file] = folder(path).glob("*.map")
    body = bytearray(file.read_bytes()[:-16])
    body[8:12] = (artifacts.FORMAT_VERSION + 1).to_bytes(4, "little")
    digest = hashlib.blake2b(body, digest_size=16)
    file.write_bytes(bytes(body) + digest.digest())
    con.execute(
        "UPDATE duckvec.segments SET checksum = $sum", {"sum": digest.hexdigest()}
    )
    con.close()
    con = duckvec.connect(str(path))
    duckvec.load(con).wait()
    query = vectors.query(0)
    assert_same(search(con, query), exact(con, query))
    state, error = index_state(con)
    assert state == "broken"
    assert "format version 2; this duckvec reads 1" in error
    con.close()


def test_a_checksum_is_taken_once_for_each_version_of_a_file(
    path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    checksum = artifacts.file_checksum

    def counted(file: Path, *check: Any) -> str:
        taken.append(file)
        return checksum(file, *check)

    con = duckvec.connect(str(path), background=False)
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.close()
    monkeypatch.setattr(segments, "file_checksum", counted)
    con = duckvec.connect(str(path), background=False)
    duckvec.load(con).wait()
    assert len(taken) == 1  # beside the proof, before a search needs the file
    for number in range(5):
        search(con, vectors.query(number))
        index_state(con)
    assert len(taken) == 1
    [file] = folder(path).glob("*.index")
    flip(file)
    for number in range(5):
        assert_same(
            search(con, vectors.query(number)), exact(con, vectors.query(number))
        )
        assert index_state(con)[0] == "broken"
    assert len(taken) == 2
    con.close()


def test_opening_a_large_index_waits_for_no_row(
    path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is large is not told by rows here: the reading of them is held up."""
    con = duckvec.connect(str(path), background=False)
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.close()
    monkeypatch.setattr(inspection, "FEW_COMPONENTS", 100)
    going_on = threading.Event()
    read = reader.read_vectors

    def held_up(*arguments: Any) -> Any:
        assert going_on.wait(60)
        return read(*arguments)

    monkeypatch.setattr(proving, "read_vectors", held_up)
    con = duckvec.connect(str(path), background=False)
    sql = "SELECT row_count, indexed_rows, unindexed_rows, state FROM vector_indexes()"
    started = time.perf_counter()
    assert con.execute(sql).fetchall() == [(3000, 0, 3000, "stale")]
    assert time.perf_counter() - started < 0.4
    going_on.set()
    duckvec.load(con).wait()
    assert con.execute(sql).fetchall() == [(3000, 3000, 0, "ready")]
    con.close()
