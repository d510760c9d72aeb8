"""New rows become segments in the background, and searches stay right meanwhile."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

import duckvec
from duckvec.chains import current_chain
from duckvec.writer import SegmentWriter
from tests.data import (
    EXHAUSTIVE,
    assert_same,
    clustered,
    create,
    create_table,
    exact,
    search,
)
from tests.upkeep import (
    create_empty,
    eventually,
    impatient,
    info,
    insert,
    segment_rows,
)

pytestmark = pytest.mark.core

BIG = clustered(12_000, 16)


def check(con: duckdb.DuckDBPyConnection, number: int = 0) -> None:
    query = BIG.query(number % 20)
    found = search(con, query, 20, params=EXHAUSTIVE["IVF_FLAT"])
    assert_same(found, exact(con, query, 20))


@pytest.mark.parametrize("where", ["file", "memory"])
def test_small_transactions_into_an_empty_table(path: Path, where: str) -> None:
    with impatient():
        con = duckvec.connect(str(path) if where == "file" else ":memory:")
        create_empty(con)
        create(con, "IVF_FLAT")
        for number, start in enumerate(range(0, 3000, 30)):
            insert(con, BIG, start, start + 30)
            if number % 3 == 0:
                check(con, number)
            if number % 10 == 9:
                con.execute("DELETE FROM items WHERE id % 20 = ?", [number % 20])
        eventually(lambda: info(con)["unindexed_rows"] < 200)
        check(con)
        con.close()


def test_a_tail_of_4096_rows_is_sealed_without_a_word(
    con: duckdb.DuckDBPyConnection,
) -> None:
    create_empty(con)
    create(con, "IVF_FLAT")
    insert(con, BIG, 0, 5000)
    eventually(lambda: info(con)["unindexed_rows"] == 0, 30)
    insert(con, BIG, 5000, 6000)
    check(con)
    assert info(con)["unindexed_rows"] == 1000


def test_a_tail_from_before_the_database_was_opened_is_sealed(path: Path) -> None:
    con = duckvec.connect(str(path), background=False)
    create_empty(con)
    create(con, "IVF_FLAT")
    insert(con, BIG, 0, 5000)
    con.close()
    con = duckvec.connect(str(path))
    eventually(lambda: info(con)["unindexed_rows"] == 0, 30)
    check(con)
    con.close()


def test_without_background_only_wait_and_compact_index_rows(path: Path) -> None:
    with impatient():
        con = duckvec.connect(str(path), background=False)
        create_empty(con)
        create(con, "IVF_FLAT")
        insert(con, BIG, 0, 5000)
        check(con)
        with pytest.raises(AssertionError):
            eventually(lambda: info(con)["unindexed_rows"] == 0, 1)
        duckvec.load(con).wait()
        assert info(con)["unindexed_rows"] == 0
        con.close()


def test_wait_returns_when_all_is_indexed(con: duckdb.DuckDBPyConnection) -> None:
    create_table(con, clustered(1000, 16))
    create(con, "IVF_FLAT")
    for start in (0, 6000):
        insert(con, BIG, start, start + 6000)
        duckvec.load(con).wait()
        assert info(con)["unindexed_rows"] == 0
        assert info(con)["state"] == "ready"
    check(con)


def test_a_large_tail_becomes_segments_of_the_file_size(
    con: duckdb.DuckDBPyConnection,
) -> None:
    big = clustered(40_000, 64)
    create_empty(con, 64)
    create(con, "FLAT", index_file_size=1)  # 4,096 rows of 64 dimensions
    insert(con, big, 0, 40_000)
    duckvec.load(con).wait()
    assert max(segment_rows(con)) == 4096
    assert sum(segment_rows(con)) == 40_000 - info(con)["unindexed_rows"]
    assert info(con)["unindexed_rows"] < 4096


def test_flat_over_an_empty_table_keeps_a_packed_copy_and_a_dropped_one_does_not(
    con: duckdb.DuckDBPyConnection,
) -> None:
    create_empty(con)
    create(con, "FLAT")
    insert(con, BIG, 0, 5000)
    duckvec.load(con).wait()
    assert segment_rows(con) == [5000]
    con.execute("CALL drop_vector_index('items')").fetchall()
    duckvec.load(con).wait()
    assert segment_rows(con) == []


def test_rows_that_change_while_the_library_builds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    con = duckvec.connect(str(path), background=False)
    create_table(con, clustered(1000, 16))
    create(con, "IVF_FLAT")
    other = con.cursor()
    insert(con, BIG, 1000, 7000)
    write = SegmentWriter.write

    def meddle(self: SegmentWriter, *arguments: object) -> None:
        other.execute("DELETE FROM items WHERE id % 3 = 0")
        other.execute(
            "UPDATE items SET embedding = list_transform(embedding::FLOAT[], "
            "lambda x: x * 0.9)::FLOAT[16] WHERE id % 5 = 0"
        )
        insert(other, BIG, 7000, 7100)
        write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SegmentWriter, "write", meddle)
    duckvec.load(con).wait()
    monkeypatch.undo()
    for number in range(5):
        check(con, number)
        found = search(con, BIG.query(number), 500, params=EXHAUSTIVE["IVF_FLAT"])
        assert_same(found, exact(con, BIG.query(number), 500))
    con.close()


def test_rows_that_move_while_they_are_read_are_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    con = duckvec.connect(str(path), background=False)
    create_empty(con)
    create(con, "IVF_FLAT")
    insert(con, BIG, 0, 6000)
    calls = 0

    def moved(*arguments: object) -> int:
        nonlocal calls
        calls += 1
        return -1 if calls == 1 else current_chain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("duckvec.rewriting.current_chain", moved)
    duckvec.load(con).wait()
    assert calls == 2
    assert segment_rows(con) == [6000]
    check(con)
    con.close()


def test_an_index_that_is_replaced_while_a_segment_is_built_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with impatient():
        con = duckvec.connect(str(path))
        create_empty(con)
        create(con, "IVF_FLAT")
        other = con.cursor()
        duckvec.load(other)
        write = SegmentWriter.write
        replaced: list[str] = []

        def meddle(self: SegmentWriter, *arguments: object) -> None:
            if self.task.name.startswith("looking") and not replaced:
                replaced.append(create(other, "FLAT")["index_type"])
            write(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(SegmentWriter, "write", meddle)
        insert(con, BIG, 0, 3000)
        eventually(lambda: bool(replaced), 20)
        eventually(lambda: info(con)["state"] == "ready", 20)
        assert info(con)["index_type"] == "FLAT"
        assert sum(segment_rows(con)) == 3000
        folder = path.with_name(path.name + ".duckvec")
        assert len(list(folder.iterdir())) == 2 * len(segment_rows(con))
        query = BIG.query(1)
        assert_same(search(con, query), exact(con, query))
        con.close()


@pytest.mark.parametrize("background", [-1, "yes", 1.5])
def test_settings_of_the_background_that_are_none(background: object) -> None:
    with pytest.raises(duckvec.VectorIndexError, match="background = "):
        duckvec.connect(background=background)  # type: ignore[arg-type]


@pytest.mark.parametrize(("background", "threads"), [(False, 0), (1, 1), (3, 3)])
def test_a_number_of_build_threads(background: int, threads: int) -> None:
    con = duckvec.connect(background=background)
    assert duckvec.load(con)._instance.build_threads == threads
    con.close()
