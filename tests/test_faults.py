"""Every call on the files of an index fails once: nothing is lost, and it is told."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import duckvec
from duckvec import backoff, builder, paths, steps
from duckvec.index_types import get_index_type
from duckvec.metrics import METRICS
from tests.data import (
    EXHAUSTIVE,
    PARAMS,
    Vectors,
    assert_same,
    clustered,
    create,
    create_table,
    exact,
    search,
)
from tests.fault_cases import (
    CASES,
    Prepared,
    calls_of,
    route,
    run_case,
    small_and_quick,
)
from tests.faults import ERRORS, from_nth, nth, watched
from tests.upkeep import info


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with small_and_quick():
        yield


@pytest.mark.parametrize("name", CASES)
def test_each_call_fails(name: str, prepared: Prepared, tmp_path: Path) -> None:
    """Each call fails, every other one with all that follow it."""
    case = CASES[name]
    source = prepared.make(case)
    calls = calls_of(case, source, tmp_path / "counted")
    assert len(calls) >= 2
    for number, call in enumerate(calls):
        fails = from_nth(number) if number % 2 else nth(number)
        error = ERRORS[number % len(ERRORS)]
        run_case(case, source, tmp_path / "now", fails, error, call)


# A full disk


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
@pytest.mark.parametrize("index_type", PARAMS)
def test_no_library_leaves_a_cut_file_without_an_error(
    index_type: str, tmp_path: Path
) -> None:
    import resource

    data = clustered(400, 16)
    kind = get_index_type(index_type)
    metric = METRICS["L2"]
    params = kind.effective_params(PARAMS[index_type], 400, 16)
    kind.build(data.rows.copy(), metric, params, threads=1).save(tmp_path / "whole")
    size = (tmp_path / "whole").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for missing in (1, size // 2):
        index = kind.build(data.rows.copy(), metric, params, threads=1)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, limits[1]))
            with pytest.raises(OSError):
                index.save(tmp_path / f"{missing} missing")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, where the test may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    with contextlib.suppress(OSError):
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            yield place
            subprocess.run(["umount", "-l", str(place)], check=True)
            return
    pytest.skip("a file system cannot be mounted here")


@pytest.mark.parametrize("index_type", ["FLAT", "IVF_FLAT", "HNSW", "ANNOY"])
def test_a_full_disk(index_type: str, small_disk: Path) -> None:
    """The database lies on it, too, and works on."""
    path = small_disk / "full.db"
    rows = clustered(3000, 16)
    con = duckvec.connect(str(path), background=False)
    create_table(con, rows)
    con.execute("CHECKPOINT")
    create(con, "IVF_SQ8")
    # Less is left than the index takes, and enough for DuckDB's log.
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(b"x" * (free - 120_000))
    with pytest.raises(duckdb.Error, match="cannot be written") as raised:
        create(con, index_type)
    assert str(small_disk) in str(raised.value)
    assert len(list((small_disk / "full.db.duckvec").iterdir())) == 2
    assert (info(con)["index_type"], info(con)["state"]) == ("IVF_SQ8", "ready")
    query = rows.query(0)
    assert_same(search(con, query, params=EXHAUSTIVE["IVF_SQ8"]), exact(con, query))
    con.execute("INSERT INTO items SELECT 9000, 1, embedding FROM items LIMIT 1")
    (small_disk / "ballast").unlink()
    create(con, index_type)
    assert info(con)["state"] == "ready"
    con.close()
    con = duckvec.connect(str(path), background=False)
    duckvec.load(con).wait(60)
    assert con.execute("SELECT count(*) FROM items").fetchall() == [(3001,)]
    assert (info(con)["state"], info(con)["last_error"]) == ("ready", None)
    con.close()


# Opening


def made(path: Path, index_type: str = "FLAT") -> Vectors:
    """Make a closed database with an index."""
    rows = clustered(300, 8)
    con = duckvec.connect(str(path), background=False)
    create_table(con, rows)
    create(con, index_type)
    con.close()
    return rows


@pytest.mark.parametrize("call", ["list", "remove"])
def test_a_folder_that_cannot_be_cleaned_up_when_it_is_opened(
    call: str, path: Path
) -> None:
    rows = made(path)
    folder = path.with_name("test.db.duckvec")
    stray = folder / f"{'a' * 32}.index"
    stray.write_text("left by a process that was killed")
    with watched(folder, lambda number, name: name == call, errno.EACCES):
        con = duckvec.connect(str(path), background=False)
        query = rows.query(0)
        assert_same(search(con, query), exact(con, query))
        assert route(con, query) == "index"
        assert (info(con)["state"], info(con)["last_error"]) == ("ready", None)
    assert stray.exists()
    create(con, "IVF_FLAT")
    duckvec.load(con).wait(60)
    if call == "list":  # it was never seen: the next opening does
        con.close()
        con = duckvec.connect(str(path), background=False)
    assert len(list(folder.iterdir())) == 2
    con.close()


@pytest.mark.parametrize("index_type", ["FLAT", "IVF_FLAT", "HNSW", "ANNOY"])
def test_each_read_fails(
    index_type: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "RETRY_SECONDS", 0.0)
    rows = made(path, index_type)
    query = rows.query(0)
    folder = path.with_name("test.db.duckvec")

    def open_and_search() -> duckdb.DuckDBPyConnection:
        con = duckvec.connect(str(path), background=False)
        params = EXHAUSTIVE.get(index_type, {})
        assert_same(search(con, query, params=params), exact(con, query))
        return con

    with watched(folder) as disk:
        open_and_search().close()
    assert disk.calls.count("open") >= 2
    for number in range(len(disk.calls)):
        with watched(folder, from_nth(number), errno.EIO) as disk:
            con = open_and_search()
            row = info(con)
            # Two threads may each need the map file, and which of them reads it varies.
            if "open" in disk.failed:
                assert row["state"] == "broken"
                assert "cannot be read now (Input/output error)" in row["last_error"]
                assert route(con, query) == "exact"
        search(con, query)
        assert route(con, query) == "index"
        assert (info(con)["state"], info(con)["last_error"]) == ("ready", None)
        con.close()


def test_the_folder_is_removed_while_it_is_open(path: Path) -> None:
    rows = made(path, "IVF_FLAT")
    query = rows.query(0)
    con = duckvec.connect(str(path), background=False)
    search(con, query)
    shutil.rmtree(path.with_name("test.db.duckvec"))
    assert_same(search(con, query, params={"nprobe": 32}), exact(con, query))
    assert info(con)["state"] == "broken"
    assert "is missing; build the index again" in info(con)["last_error"]
    con.execute("CALL vector_compact('items')").fetchall()
    create(con, "IVF_FLAT")
    assert (info(con)["state"], info(con)["last_error"]) == ("ready", None)
    con.close()


def test_a_new_folder_and_its_files_are_flushed_before_the_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = paths.fsync, os.replace
    commit = steps.commit

    def noting_fsync(what: Path) -> None:
        fsync(what)
        events.append(f"flush {what.name if what.is_dir() else what.suffixes[0]}")

    def noting_replace(old: Path, new: Path) -> None:
        replace(old, new)
        events.append(f"rename {new.suffix}")

    def noting_commit(*arguments: Any) -> int:
        events.append("commit")
        return commit(*arguments)

    monkeypatch.setattr(paths, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    monkeypatch.setattr(builder, "commit", noting_commit)
    made(path)
    renamed = [events.index("rename .index"), events.index("rename .map")]
    assert events.index("flush .index") < renamed[0]
    assert events.index("flush .map") < renamed[1]
    assert events.index(f"flush {path.parent.name}") < events.index("commit")
    assert max(renamed) < events.index("flush test.db.duckvec") < events.index("commit")
