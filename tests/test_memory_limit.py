"""memory_limit: open segments and builds stay below it, and answers stay right."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

import duckvec
from duckvec.errors import ParameterError
from duckvec.segments import Segment
from tests.data import (
    Vectors,
    arrow_table,
    assert_same,
    clustered,
    create,
    create_table,
    exact,
    search,
)

pytestmark = pytest.mark.core

TABLES = ("a", "b", "c")
K = 10
ROWS = 800


def _state(handle: duckvec.VectorIndexes) -> Any:
    (state,) = (s for s in handle._instance.databases.values() if s.indexes)
    return state


def _segments(handle: duckvec.VectorIndexes) -> dict[str, Segment]:
    """Return the one segment of each table's index."""
    return {
        index.row.table_name: index.segments[0]
        for index in _state(handle).indexes.values()
    }


def _held(con: duckdb.DuckDBPyConnection) -> dict[str, int]:
    found = con.execute("SELECT collection, memory_bytes FROM vector_indexes()")
    return dict(found.fetchall())


def _check(con: duckdb.DuckDBPyConnection, vectors: Vectors, table: str) -> None:
    query = vectors.query(3)
    found = search(con, query, K, table, params={"ef": 2000})
    assert_same(found, exact(con, query, K, source=table))


def _route(con: duckdb.DuckDBPyConnection, vectors: Vectors, table: str) -> str:
    found = con.execute(
        f"SELECT route FROM vector_explain('{table}', $query, {K})",
        {"query": vectors.query(0)},
    )
    return str(found.fetchall()[0][0])


@pytest.fixture
def reopened(path: Path, vectors: Vectors) -> duckdb.DuckDBPyConnection:
    """Three tables with an HNSW index each, none of them open now."""
    con = duckvec.connect(str(path))
    for table in TABLES:
        create_table(con, Vectors(vectors.rows[:ROWS], vectors.queries), table)
        create(con, "HNSW", table)
    con.close()
    again = duckvec.connect(str(path))
    handle = duckvec.load(again)
    handle.wait()  # until entries are matched to rows, searches scan
    for segment in _segments(handle).values():
        segment.close()
    return again


def test_least_recently_used_segments_are_closed(
    reopened: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    con = reopened
    _check(con, vectors, "a")
    one = _held(con)["a"]
    assert one > vectors.rows[:ROWS].nbytes
    duckvec.load(con, memory_limit=int(2.5 * one))
    for table in ("b", "a", "c"):
        _check(con, vectors, table)
    held = _held(con)
    assert held["b"] == 0, "it was not used for longest"
    assert held["a"] and held["c"]
    for _ in range(3):
        for table in TABLES:
            _check(con, vectors, table)
            assert sum(_held(con).values()) <= 2.5 * one
            assert _route(con, vectors, table) == "index"
    con.close()


def test_room_is_made_before_a_segment_is_opened(
    reopened: duckdb.DuckDBPyConnection,
    vectors: Vectors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    con = reopened
    handle = duckvec.load(con)
    _check(con, vectors, "a")
    limit = int(1.5 * _held(con)["a"])
    duckvec.load(con, memory_limit=limit)
    memory, others = handle._instance.memory, _segments(handle)
    at_opening = []
    opening = Segment._open

    def spy(segment: Segment) -> Any:
        at_opening.append((memory.held_bytes(), others["a"].memory_bytes()))
        return opening(segment)

    monkeypatch.setattr(Segment, "_open", spy)
    _check(con, vectors, "b")
    ((held, left),) = at_opening
    assert 0 < held <= limit, "what is about to be opened counts"
    assert left == 0, "the other one made room"
    con.close()


def test_a_segment_that_is_used_now_stays_open(
    reopened: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    con = reopened
    handle = duckvec.load(con, memory_limit=1)
    _check(con, vectors, "a")
    with _segments(handle)["a"].use() as index:
        _check(con, vectors, "b")
        assert _held(con)["a"] > 0
        hits = index.search(vectors.queries[:1], K, {"ef": 2000})
        assert (hits.positions >= 0).all()
    assert sum(held > 0 for held in _held(con).values()) == 1, "one more than fits"
    _check(con, vectors, "c")
    held = _held(con)
    assert held["a"] == held["b"] == 0
    con.close()


def test_one_segment_larger_than_the_limit_is_searched_alone(
    reopened: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    con = reopened
    duckvec.load(con, memory_limit="1kB")
    for table in (*TABLES, *TABLES):
        _check(con, vectors, table)
        assert _route(con, vectors, table) == "index"
        assert [name for name, held in _held(con).items() if held] == [table]
    con.close()


def test_searches_side_by_side_are_right_while_segments_come_and_go(
    reopened: duckdb.DuckDBPyConnection, vectors: Vectors
) -> None:
    con = reopened
    duckvec.load(con, memory_limit=1)
    for table in TABLES:
        _check(con, vectors, table)
    cursors = [con.cursor() for _ in range(4)]
    failures: list[BaseException] = []

    def work(number: int, cursor: duckdb.DuckDBPyConnection) -> None:
        try:
            duckvec.load(cursor)
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                number += 1
                _check(cursor, vectors, TABLES[number % 3])
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(number, cursor))
        for number, cursor in enumerate(cursors)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    con.close()


def test_a_build_that_cannot_fit_is_refused_and_changes_nothing(
    path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(path), memory_limit="2MB", background=False)
    create_table(con, clustered(20_000, 64), "items")
    create_table(con, vectors, "small")
    with pytest.raises(duckdb.Error) as caught:
        create(con, "FLAT")
    text = str(caught.value)
    assert "building FLAT on" in text and "memory_limit is 2.00 MB" in text
    assert "index_file_size" in text
    assert con.execute("FROM vector_indexes()").fetchall() == []
    folder = path.with_name(path.name + ".duckvec")
    assert not folder.exists() or not list(folder.iterdir())
    # What the sentence names helps.
    duckvec.load(con, memory_limit="16MB")
    create(con, "IVF_FLAT", index_file_size=1)
    before = con.execute("SELECT * EXCLUDE memory_bytes FROM vector_indexes()")
    row, files = before.fetchall(), sorted(folder.iterdir())
    with pytest.raises(duckdb.Error, match="memory_limit is 16"):
        create(con, "HNSW", index_file_size=8)
    after = con.execute("SELECT * EXCLUDE memory_bytes FROM vector_indexes()")
    assert after.fetchall() == row and sorted(folder.iterdir()) == files
    assert len(search(con, clustered(20_000, 64).query(0))) == K
    duckvec.load(con, memory_limit="none")
    create(con, "FLAT", index_file_size=8)
    con.close()


def test_builds_close_what_is_open_and_count_what_is_reserved(
    memory: duckdb.DuckDBPyConnection,
) -> None:
    handle = duckvec.load(memory)
    create_table(memory, clustered(20_000, 64))
    estimate = memory.execute(
        "SELECT build_memory_bytes FROM vector_index_estimate('items', 'FLAT')"
    ).fetchall()[0][0]
    limit = int(1.2 * estimate)
    duckvec.load(memory, memory_limit=limit)
    create(memory, "HNSW", index_file_size=1)
    assert 0 < handle._instance.memory.held_bytes() <= limit
    create(memory, "FLAT")  # fits once the segments of the first are closed
    with (
        handle._instance.memory.building(limit // 2, "another build"),
        pytest.raises(duckdb.Error, match="in use"),
    ):
        create(memory, "FLAT")
    create(memory, "FLAT")


def test_background_work_that_does_not_fit_shows_and_is_put_off(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    con = duckvec.connect(str(path))
    handle = duckvec.load(con)
    create_table(con, clustered(100, 32))
    create(con, "FLAT")
    duckvec.load(con, memory_limit="100kB")
    tries = []
    building = handle._instance.memory.building

    def spy(wanted: int, name: str) -> Any:
        tries.append(time.monotonic())
        return building(wanted, name)

    monkeypatch.setattr(handle._instance.memory, "building", spy)
    data = arrow_table(clustered(20_000, 32).rows, 100)
    con.execute("INSERT INTO items SELECT id, 0, vector FROM data")
    del data
    until = time.monotonic() + 6
    while len(tries) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    (error,) = con.execute("SELECT last_error FROM vector_indexes()").fetchall()[0]
    assert error and "memory_limit is 100 kB" in error
    assert len(tries) == 2 and tries[1] - tries[0] >= 1.0
    assert len(search(con, clustered(20_000, 32).query(0))) == K
    duckvec.load(con, memory_limit="none")
    handle.wait(30)
    row = con.execute("SELECT last_error, unindexed_rows FROM vector_indexes()")
    assert row.fetchall() == [(None, 0)]
    con.close()


def test_the_last_limit_given_holds_for_all_loads(
    reopened: duckdb.DuckDBPyConnection, path: Path, vectors: Vectors
) -> None:
    con = reopened
    memory = duckvec.load(con)._instance.memory
    assert memory.limit is None
    duckvec.load(con, memory_limit="512MiB")
    assert memory.limit == 512 * 1024 * 1024
    other = duckvec.connect(str(path), memory_limit=1_000_000_000)
    assert memory.limit == 1_000_000_000
    duckvec.load(other)
    assert memory.limit == 1_000_000_000
    wrong: Any
    for wrong in ("much", "-5GB", -2, True, 1.5, b"1GB"):
        with pytest.raises(ParameterError):
            duckvec.load(con, memory_limit=wrong)
    assert memory.limit == 1_000_000_000
    _check(con, vectors, "a")
    assert memory.held_bytes() > 0
    duckvec.load(con, memory_limit=0)
    assert memory.held_bytes() == 0, "what is beyond a new limit is closed at once"
    duckvec.load(con, memory_limit=-1)
    assert memory.limit is None
    other.close()
    con.close()
