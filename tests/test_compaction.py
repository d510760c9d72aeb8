"""vector_compact merges segments, indexes the tail and drops deleted rows."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

import duckvec
from tests.data import (
    EXHAUSTIVE,
    assert_same,
    clustered,
    create,
    create_table,
    exact,
    search,
)
from tests.upkeep import create_empty, impatient, info, insert, segment_rows

pytestmark = pytest.mark.core

BIG = clustered(9000, 16)
COLUMNS = [
    "collection",
    "column_name",
    "index_type",
    "metric",
    "params",
    "dimension",
    "row_count",
    "segment_count",
    "size_bytes",
    "build_seconds",
]


@pytest.fixture
def con(path: Path) -> duckdb.DuckDBPyConnection:
    return duckvec.connect(str(path), background=False)


def check(con: duckdb.DuckDBPyConnection) -> None:
    for number in range(3):
        query = BIG.query(number)
        found = search(con, query, 50, params=EXHAUSTIVE["IVF_FLAT"])
        assert_same(found, exact(con, query, 50))


def make_segments(con: duckdb.DuckDBPyConnection) -> None:
    """Make an index of several segments, a tail, and deleted rows."""
    create_empty(con)
    create(con, "IVF_FLAT")
    with impatient():
        for start in range(0, 6000, 2000):
            insert(con, BIG, start, start + 2000)
            duckvec.load(con).wait()
    insert(con, BIG, 6000, 6100)
    con.execute("DELETE FROM items WHERE id % 10 = 3")
    assert len(segment_rows(con)) == 3


def test_one_segment_is_left_and_no_deleted_row(
    con: duckdb.DuckDBPyConnection, path: Path
) -> None:
    make_segments(con)
    row = duckvec.load(con).compact("items")
    assert list(row) == COLUMNS
    assert (row["row_count"], row["segment_count"]) == (5490, 1)
    found = info(con)
    assert (found["indexed_rows"], found["unindexed_rows"]) == (5490, 0)
    assert found["deleted_rows"] == 0
    assert segment_rows(con) == [5490]
    assert len(list(path.with_name(path.name + ".duckvec").iterdir())) == 2
    check(con)
    con.close()


@pytest.mark.parametrize(
    "call",
    [
        "CALL vector_compact('items')",
        "FROM vector_compact('items', column_name := 'embedding')",
        "SELECT unnest(vector_compact(collection := 'items'))",
    ],
)
def test_the_ways_to_call_it(con: duckdb.DuckDBPyConnection, call: str) -> None:
    create_empty(con)
    create(con, "IVF_FLAT")
    insert(con, BIG, 0, 10)
    result = con.execute(call)
    assert [column[0] for column in result.description or ()] == COLUMNS
    assert [row[6:8] for row in result.fetchall()] == [(10, 1)]
    check(con)


def test_segments_of_the_file_size(con: duckdb.DuckDBPyConnection) -> None:
    big = clustered(10_000, 128)
    create_empty(con, 128)
    create(con, "FLAT", index_file_size=1)  # 2,048 rows of 128 dimensions
    for start in range(0, 10_000, 1000):
        insert(con, big, start, start + 1000)
        duckvec.load(con).compact("items")
    assert segment_rows(con) == [2048, 2048, 2048, 2048, 1808]
    con.execute("DELETE FROM items WHERE id < 3000")
    assert duckvec.load(con).compact("items")["segment_count"] == 4
    assert sorted(segment_rows(con)) == [856, 2048, 2048, 2048]
    query = big.query(0)
    assert_same(search(con, query), exact(con, query))


def test_a_second_compaction_has_nothing_to_do(con: duckdb.DuckDBPyConnection) -> None:
    make_segments(con)
    duckvec.load(con).compact("items")
    sql = "SELECT file FROM vector_index_segments()"
    files = con.execute(sql).fetchall()
    duckvec.load(con).compact("items")
    assert con.execute(sql).fetchall() == files


@pytest.mark.parametrize("dropped", [False, True])
def test_without_an_index_the_error_says_the_way_out(
    con: duckdb.DuckDBPyConnection, dropped: bool
) -> None:
    create_table(con, clustered(10, 4))
    if dropped:
        create(con, "FLAT")
        con.execute("CALL drop_vector_index('items')").fetchall()
    with pytest.raises(duckdb.Error, match=r"no index on .* create_vector_index"):
        con.execute("CALL vector_compact('items')").fetchall()
    with pytest.raises(duckdb.Error, match='did you mean "items"'):
        con.execute("CALL vector_compact('itms')").fetchall()


def test_a_read_only_database_is_not_compacted(
    con: duckdb.DuckDBPyConnection, path: Path
) -> None:
    create_table(con, clustered(10, 4))
    create(con, "FLAT")
    con.close()
    con = duckvec.connect(str(path), read_only=True)
    with pytest.raises(duckdb.Error, match="read-only"):
        con.execute("CALL vector_compact('items')").fetchall()
    con.close()


def test_a_compaction_inside_a_transaction_leaves_its_rows_to_the_tail(
    con: duckdb.DuckDBPyConnection,
) -> None:
    make_segments(con)
    con.execute("BEGIN")
    insert(con, BIG, 7000, 7100)
    con.execute("DELETE FROM items WHERE id % 10 = 4")
    con.execute("CALL vector_compact('items')").fetchall()
    check(con)
    con.execute("ROLLBACK")
    check(con)


def test_after_reopening(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    make_segments(con)
    con.close()
    con = duckvec.connect(str(path), background=False)
    assert duckvec.load(con).compact("items")["segment_count"] == 1
    check(con)
    con.close()
    con = duckvec.connect(str(path), background=False)
    check(con)
    assert info(con)["indexed_rows"] == 5490
    con.close()
