"""Small and much-deleted segments become one, and each row is written a few times."""

from __future__ import annotations

import math

import duckdb
import numpy as np
import pytest

import duckvec
from duckvec import policy
from duckvec.policy import Size, choose_compaction, choose_merge, rows_to_seal
from tests.data import EXHAUSTIVE, assert_same, clustered, create, exact, search
from tests.upkeep import create_empty, impatient, info, insert, segment_rows

BIG = clustered(8000, 16)


def clean(*rows: int) -> list[Size]:
    return [Size(each, each) for each in rows]


@pytest.mark.parametrize("capacity", [40_000, 1_000_000])
@pytest.mark.parametrize("seed", range(3))
def test_a_row_is_written_once_for_each_tier(capacity: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    segments: list[int] = []
    total = written = most = 0
    while total < 3_000_000:
        rows = min(capacity, int(rng.integers(4096, 20_000)))
        segments.append(rows)
        total += rows
        written += rows
        while chosen := choose_merge(clean(*segments), capacity):
            merged = sum(segments[number] for number in chosen)
            assert len(chosen) > 1
            assert merged <= capacity
            segments = [s for n, s in enumerate(segments) if n not in chosen]
            segments.append(merged)
            written += merged
        most = max(most, len([s for s in segments if 2 * s <= capacity]))
    tiers = math.ceil(math.log(capacity / 4096, policy.FANOUT)) + 1
    assert written <= (1 + tiers) * total
    assert most <= policy.FANOUT * tiers


def test_a_much_deleted_segment_is_written_anew_alone() -> None:
    assert choose_merge([Size(10_000, 6000), Size(9000, 4000)], 10**6) == [1]
    assert choose_merge([Size(10_000, 5000)], 10**6) == []
    assert choose_merge([Size(10_000, 0)], 10**6) == [0]


def test_full_segments_are_left_alone() -> None:
    assert choose_merge(clean(6000, 6000, 6000, 6000, 6000), 10_000) == []
    assert choose_merge(clean(5000, 5000, 5000, 5000, 5000), 10_000) == [0, 1]


def test_a_compaction_keeps_full_clean_segments() -> None:
    sizes = [Size(100, 100), Size(100, 99), Size(40, 40)]
    assert choose_compaction(sizes, 100, 0) == [1, 2]
    assert choose_compaction(clean(100, 40), 100, 0) == []
    assert choose_compaction(clean(100, 40), 100, 1) == [1]


def test_when_a_tail_is_sealed() -> None:
    def limit(dimension: int, entries: int, proven: bool = True) -> int:
        return rows_to_seal(dimension, 10**9, entries, proven)

    assert limit(16, 0) == 4096
    assert limit(16, 320_000) == 20_000
    assert 25_000 < limit(16, 10**9) < 50_000  # scanning more takes 1 ms
    assert limit(1000, 10**9) == 4096
    assert limit(16, 800_000, proven=False) == 100_000
    assert rows_to_seal(16, 1000, 10**9, True) == 1000


@pytest.mark.core
def test_small_segments_become_one(con: duckdb.DuckDBPyConnection) -> None:
    create_empty(con)
    create(con, "IVF_FLAT")
    query = BIG.query(0)
    with impatient():
        for start in range(0, 8000, 250):
            insert(con, BIG, start, start + 250)
            duckvec.load(con).wait()
            found = search(con, query, params=EXHAUSTIVE["IVF_FLAT"])
            assert_same(found, exact(con, query))
            assert len(segment_rows(con)) <= 9
    assert sum(segment_rows(con)) == 8000 == info(con)["indexed_rows"]


@pytest.mark.core
def test_deleted_rows_leave_the_files(con: duckdb.DuckDBPyConnection) -> None:
    create_empty(con)
    insert(con, BIG, 0, 8000)
    create(con, "IVF_FLAT")
    con.execute("DELETE FROM items WHERE id % 10 < 4")
    duckvec.load(con).wait()
    assert segment_rows(con) == [8000]
    con.execute("DELETE FROM items WHERE id % 10 < 8")
    duckvec.load(con).wait()
    assert segment_rows(con) == [1600]
    assert info(con)["deleted_rows"] == 0
    con.execute("DELETE FROM items")
    duckvec.load(con).wait()
    assert segment_rows(con) == []
    assert search(con, BIG.query(0)) == []
    insert(con, BIG, 0, 5000)
    duckvec.load(con).wait()
    assert segment_rows(con) == [5000]
    found = search(con, BIG.query(0), params=EXHAUSTIVE["IVF_FLAT"])
    assert_same(found, exact(con, BIG.query(0)))
