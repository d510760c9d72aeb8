"""vector_indexes() counts what is indexed, and shows what the background does."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import duckdb
import pytest

import duckvec
from duckvec.writer import SegmentWriter
from tests.data import clustered, create, create_table
from tests.upkeep import (
    create_empty,
    eventually,
    impatient,
    info,
    insert,
    segment_rows,
)

BIG = clustered(20_000, 16)


def counts(con: duckdb.DuckDBPyConnection) -> tuple[int, int, int, int]:
    row = info(con)
    names = ("row_count", "indexed_rows", "unindexed_rows", "deleted_rows")
    return tuple(row[name] for name in names)


@pytest.mark.core
def test_counts_are_true_with_several_segments_and_before_any_look(path: Path) -> None:
    con = duckvec.connect(str(path), background=False)
    create_empty(con)
    create(con, "IVF_FLAT")
    with impatient():
        for start in range(0, 3000, 1000):
            insert(con, BIG, start, start + 1000)
            duckvec.load(con).wait()
    assert len(segment_rows(con)) == 3
    assert counts(con) == (3000, 3000, 0, 0)
    con.execute("DELETE FROM items WHERE id % 100 = 7")
    assert counts(con) == (2970, 2970, 0, 30)
    insert(con, BIG, 3000, 3005)
    con.execute("UPDATE items SET embedding = embedding WHERE id < 7")
    assert counts(con) == (2975, 2963, 12, 37)
    con.close()
    con = duckvec.connect(str(path), background=False)
    assert counts(con) == (2975, 2963, 12, 37)
    con.close()


@pytest.mark.core
def test_zeros_under_cosine_are_skipped_rows(con: duckdb.DuckDBPyConnection) -> None:
    create_table(con, clustered(1000, 16))
    con.execute(
        "INSERT INTO items SELECT -1, 0, [0 FOR x IN range(16)]::FLOAT[16] "
        "FROM range(5)"
    )
    create(con, "FLAT", metric="COSINE")
    assert counts(con) == (1000, 1000, 0, 0)
    assert info(con)["skipped_rows"] == 5


@pytest.mark.parametrize("index_type", ["HNSW", "IVF_FLAT", "ANNOY", "IVF_PQ"])
def test_progress_grows_while_an_index_is_created(path: Path, index_type: str) -> None:
    con = duckvec.connect(str(path))
    create_table(con, BIG)
    other = con.cursor()
    duckvec.load(other)
    thread = threading.Thread(target=create, args=(con, index_type))
    thread.start()
    seen = []
    while thread.is_alive():
        rows = other.execute("SELECT state, progress FROM vector_indexes()").fetchall()
        seen += [progress for state, progress in rows if state == "building"]
    thread.join()
    assert seen == sorted(seen)
    assert len(set(seen)) >= 2
    assert seen[-1] > 0.2
    assert (info(con)["state"], info(con)["progress"]) == ("ready", 1.0)
    con.close()


@pytest.mark.core
def test_progress_grows_while_the_background_seals(path: Path) -> None:
    with impatient(rows=10_000):
        con = duckvec.connect(str(path))
        create_empty(con)
        create(con, "HNSW")
        insert(con, BIG, 0, 20_000)
        seen: list[float] = []

        def sealed() -> bool:
            row = info(con)
            if row["state"] == "building":
                seen.append(row["progress"])
            return bool(row["unindexed_rows"] == 0 and row["state"] == "ready")

        eventually(sealed)
        assert seen == sorted(seen)
        assert len(set(seen)) >= 3
        con.close()


@pytest.mark.core
def test_a_failure_is_shown_logged_and_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with impatient():
        con = duckvec.connect(str(path))
        create_empty(con)
        create(con, "IVF_FLAT")
        write = SegmentWriter.write
        tries = 0

        def fail(self: SegmentWriter, *arguments: object) -> None:
            nonlocal tries
            tries += 1
            if tries < 4:
                raise OSError("no space left on device")
            write(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(SegmentWriter, "write", fail)
        with caplog.at_level(logging.WARNING, "duckvec"):
            insert(con, BIG, 0, 1000)
            eventually(lambda: info(con)["last_error"] == "no space left on device", 20)
        eventually(lambda: info(con)["unindexed_rows"] == 0, 20)
        assert info(con)["last_error"] is None
        assert tries == 4
        assert "no space left on device" in caplog.text
        con.close()
