"""A search that asks for a recall instead of a setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import duckvec
from duckvec import calibration, climbing
from duckvec.ladders import Ladder, Rung, decode_ladder, encode_ladder, setting_for
from tests.data import (
    PARAMS,
    Vectors,
    assert_same,
    clustered,
    create,
    create_table,
    exact,
    search,
)
from tests.upkeep import create_empty, insert

pytest.importorskip("annoy")
pytest.importorskip("hnswlib")

TARGETS = (0.8, 0.9, 0.99)
every_type = pytest.mark.parametrize("index_type", sorted(PARAMS))


@pytest.fixture
def enough_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ladders go as far as they can, however busy the machine is."""
    monkeypatch.setattr(calibration, "LADDER_SECONDS", 60.0)


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ladders hold the default alone, and what is known without a search."""
    monkeypatch.setattr(calibration, "LADDER_SECONDS", 0.0)
    monkeypatch.setattr(calibration, "LADDER_SHARE", 0.0)
    for module in (calibration, climbing):
        monkeypatch.setattr(module, "ENOUGH", calibration.TARGET_RECALL)


def held_out(rows: int = 5000, dimension: int = 32, queries: int = 200) -> Vectors:
    points = clustered(rows + queries, dimension).rows
    return Vectors(points[:rows], points[rows:])


def hard(rows: int = 3000, dimension: int = 32) -> Vectors:
    """Rows without any structure, of which a graph with few links misses some."""
    points = np.random.default_rng(5).standard_normal((rows + 50, dimension))
    return Vectors(*np.split(points.astype(np.float32), [rows]))


def measure(con: duckdb.DuckDBPyConnection, vectors: Vectors, target: float) -> float:
    """Return the recall@10 of all queries that ask for a target."""
    found = duckvec.load(con).search(
        "items", vectors.queries, 10, params={"recall": target}
    )
    ids = found.project("query_index, id").fetchnumpy()
    hits = 0
    for number, query in enumerate(vectors.queries):
        near = np.argsort(((vectors.rows - query) ** 2).sum(axis=1))[:10]
        hits += np.isin(ids["id"][ids["query_index"] == number], near).sum()
    return float(hits) / (10 * len(vectors.queries))


def ladders(con: duckdb.DuckDBPyConnection) -> list[Ladder]:
    stored = con.execute("SELECT ladder FROM duckvec.segments ORDER BY segment")
    return [decode_ladder(text) for (text,) in stored.fetchall()]


def refusal(con: duckdb.DuckDBPyConnection, params: Any) -> str:
    with pytest.raises(duckdb.Error) as caught:
        con.execute(
            "FROM vector_search('items', [1, 2], params := $params)", {"params": params}
        )
    text, _, _ = str(caught.value).partition(": ")[2].partition("\n\nLINE 1: ")
    assert "\n" not in text and len(text) < 300
    return text


@pytest.mark.usefixtures("enough_time")
@every_type
def test_a_target_is_reached_with_the_smallest_setting(
    con: duckdb.DuckDBPyConnection, index_type: str
) -> None:
    vectors = held_out()
    create_table(con, vectors)
    create(con, index_type)
    for target in TARGETS:
        assert measure(con, vectors, target) >= target - 0.03
    (ladder,) = ladders(con)
    assert [rung.recall for rung in ladder] == sorted({rung.recall for rung in ladder})
    for name in set(ladder[0].setting) - {"overfetch"}:
        values = [rung.setting[name] for rung in ladder]
        assert values == sorted(values)
    (default,) = con.execute("SELECT search_params FROM vector_indexes()").fetchall()[0]
    assert json.loads(default) in [rung.setting for rung in ladder]


@pytest.mark.usefixtures("enough_time")
@pytest.mark.parametrize("rescoring", [1e-9, 1.0])
def test_targets_are_reached_whatever_rescoring_takes(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, rescoring: float
) -> None:
    monkeypatch.setattr(calibration, "RESCORE_SECONDS", rescoring)
    vectors = held_out()
    create_table(con, vectors)
    create(con, "IVF_PQ")
    for target in TARGETS:
        assert measure(con, vectors, target) >= target - 0.03


@pytest.mark.usefixtures("enough_time")
@pytest.mark.parametrize("index_type", ["IVF_FLAT", "HNSW", "NSG", "ANNOY"])
def test_a_lower_target_takes_less(
    con: duckdb.DuckDBPyConnection, index_type: str
) -> None:
    create_table(con, hard())
    create(con, index_type)
    (ladder,) = ladders(con)
    (name,) = ladder[0].setting
    low, high = (setting_for(ladder, target)[name] for target in (0.8, 0.96))
    (default,) = con.execute("SELECT search_params FROM vector_indexes()").fetchall()[0]
    assert low < high == json.loads(default)[name]


@pytest.mark.core
@pytest.mark.usefixtures("no_time")
@pytest.mark.parametrize(
    ("index_type", "name"), [("HNSW", "ef"), ("NSG", "search_length")]
)
def test_what_was_not_measured_is_refused_with_the_best_known_number(
    con: duckdb.DuckDBPyConnection, index_type: str, name: str
) -> None:
    vectors = hard()
    create_table(con, vectors)
    create(con, index_type)
    ((rung,),) = ladders(con)
    assert refusal(con, '{"recall": 0.9999}') == (
        f"recall = 0.9999 is beyond what was measured for {index_type} on "
        f'"items"."embedding": {rung.recall:g} is the best known; ask for that, '
        f"or give {name}"
    )
    assert measure(con, vectors, rung.recall) >= 0.9
    assert measure(con, vectors, 0.1) >= 0.9


@pytest.mark.usefixtures("no_time")
def test_a_compressed_type_can_always_look_at_every_row(
    con: duckdb.DuckDBPyConnection,
) -> None:
    vectors = hard()
    create_table(con, vectors)
    create(con, "IVF_PQ")
    assert refusal(con, {"recall": 0.99999}).endswith(
        " is the best known; ask for that, or for 1, or give nprobe"
    )
    assert measure(con, vectors, 1) == 1


@pytest.mark.core
@pytest.mark.usefixtures("enough_time")
@pytest.mark.parametrize(
    "params",
    [
        "'{\"recall\": 0.9}'",
        "'<\"recall\": 0.9>'",
        "{'recall': 0.9}",
        "MAP {'recall': 0.9}",
        "{'recall': 0.9::FLOAT}",
        "{'recall': 1}",
    ],
)
def test_a_recall_comes_in_every_spelling(
    con: duckdb.DuckDBPyConnection, params: str
) -> None:
    vectors = held_out(1000, 8)
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    text = f"{vectors.query(0)}::FLOAT[8]"
    sql = f"FROM vector_search('items', {text}, 10, params := {params})"
    assert len(con.execute(sql).fetchall()) == 10


@every_type
def test_a_wrong_recall_is_one_sentence(
    con: duckdb.DuckDBPyConnection, index_type: str
) -> None:
    create_table(con, held_out(100, 32))
    create(con, index_type)
    assert refusal(con, '{"recall": 0}') == (
        f"recall = 0 is outside (0, 1] for {index_type}"
    )
    for value in ('"0.9"', "true", "null", "[0.9]"):
        assert refusal(con, f'{{"recall": {value}}}') == (
            f"recall = {value} is no number for {index_type}; give one in (0, 1]"
        )
    with pytest.raises(duckdb.Error, match='"recall" is a search parameter of'):
        create(con, index_type, params={**PARAMS[index_type], "recall": 0.9})


@pytest.mark.parametrize("index_type", ["IVF_FLAT", "IVF_SQ8", "FLAT"])
def test_a_recall_of_1_is_exact_where_the_type_can_be(
    con: duckdb.DuckDBPyConnection, index_type: str
) -> None:
    vectors = hard()
    create_table(con, vectors)
    create(con, index_type)
    for number in range(20):
        query = vectors.query(number)
        assert_same(search(con, query, params='{"recall": 1}'), exact(con, query))


def test_without_segments_every_recall_is_met(con: duckdb.DuckDBPyConnection) -> None:
    vectors = held_out(500, 8)
    create_empty(con, 8)
    wanted = '{"recall": 0.9999}'
    assert search(con, vectors.query(0), params=wanted) == []
    create(con, "HNSW")
    assert search(con, vectors.query(0), params=wanted) == []
    insert(con, vectors, 0, 500)
    query = vectors.query(1)
    assert_same(search(con, query, params=wanted), exact(con, query))
    con.execute("CALL drop_vector_index('items')")
    assert_same(search(con, query, params=wanted), exact(con, query))


@pytest.mark.parametrize("rows", [1, 2, 11, 300])
@every_type
def test_tiny_segments_meet_a_recall_too(
    con: duckdb.DuckDBPyConnection, index_type: str, rows: int
) -> None:
    vectors = held_out(rows, 16)
    create_table(con, vectors)
    create(con, index_type)
    query = vectors.query(3)
    found = search(con, query, params='{"recall": 0.9}')
    assert len(found) == min(10, rows)


@pytest.mark.core
@pytest.mark.usefixtures("enough_time")
@pytest.mark.parametrize("index_type", ["IVF_SQ8", "HNSW"])
def test_ladders_are_there_after_reopening(path: Path, index_type: str) -> None:
    vectors = held_out()
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, index_type)
    before = ladders(con)
    con.close()
    con = duckvec.connect(str(path))
    assert ladders(con) == before
    assert measure(con, vectors, 0.99) >= 0.97
    con.close()


@pytest.mark.usefixtures("enough_time")
@pytest.mark.parametrize("index_type", ["IVF_FLAT", "HNSW"])
def test_each_segment_takes_the_setting_that_reached_the_target_there(
    con: duckdb.DuckDBPyConnection,
    monkeypatch: pytest.MonkeyPatch,
    index_type: str,
) -> None:
    easy, difficult = clustered(5000, 16), hard(6000, 16)
    vectors = Vectors(np.concatenate([easy.rows, difficult.rows]), difficult.queries)
    create_empty(con)
    insert(con, vectors, 0, 5000)
    create(con, index_type)
    insert(con, vectors, 5000, len(vectors.rows))
    handle = duckvec.load(con)
    handle.wait()
    assert measure(con, vectors, 0.98) >= 0.95
    (index,) = next(
        state.indexes.values()
        for state in handle._instance.databases.values()
        if state.indexes
    )
    assert len(index.segments) == 2
    seen: list[dict[str, int]] = []
    for part in index.segments:
        with part.use() as inner:
            pass

        def spy(*arguments: Any, inner_search: Any = inner.search, **named: Any) -> Any:
            seen.append(dict(arguments[2]))
            return inner_search(*arguments, **named)

        monkeypatch.setattr(inner, "search", spy)
    search(con, vectors.query(0), params='{"recall": 0.98}')
    wanted = [dict(setting_for(part.row.ladder, 0.98)) for part in index.segments]
    assert sorted(map(str, seen)) == sorted(map(str, wanted))
    assert wanted[0] != wanted[1]


@pytest.mark.usefixtures("no_time")
def test_a_target_has_to_be_known_for_every_segment(
    con: duckdb.DuckDBPyConnection,
) -> None:
    vectors = hard(5000, 32)
    create_empty(con, 32)
    insert(con, vectors, 0, 5)
    create(con, "HNSW")
    assert len(search(con, vectors.query(0), 3, params='{"recall": 0.9999}')) == 3
    insert(con, vectors, 5, 5000)
    duckvec.load(con).wait()
    best = min(ladder[-1].recall for ladder in ladders(con))
    assert len(ladders(con)) == 2 and best < 1
    assert f": {best:g} is the best known" in refusal(con, '{"recall": 0.9999}')


@pytest.mark.core
def test_a_catalog_without_ladders_is_opened_and_gets_them(path: Path) -> None:
    vectors = hard(6000, 16)
    con = duckvec.connect(str(path), background=False)
    create_empty(con)
    insert(con, vectors, 0, 1500)
    create(con, "HNSW")
    con.close()
    with duckdb.connect(str(path)) as plain:
        plain.execute("ALTER TABLE duckvec.segments DROP COLUMN ladder")
        plain.execute("UPDATE duckvec.epoch SET catalog_version = 1")
    for read_only in (True, False):
        con = duckvec.connect(str(path), background=False, read_only=read_only)
        assert len(search(con, vectors.query(0))) == 10
        assert refusal(con, '{"recall": 0.9}') == (
            "recall = 0.9 cannot be met: no recall was measured for HNSW on "
            '"items"."embedding"; build the index again, or give ef'
        )
        if read_only:
            con.close()
    insert(con, vectors, 1500, 6000)
    duckvec.load(con).wait()
    old, new = ladders(con)
    assert old == () and new != ()
    con.close()
    con = duckvec.connect(str(path))
    assert ladders(con) == [old, new]
    create(con, "HNSW")
    assert len(search(con, vectors.query(0), params='{"recall": 0.9}')) == 10
    con.close()


def test_a_ladder_is_read_as_it_was_written() -> None:
    ladder = (Rung(0.9, {"ef": 16}), Rung(0.987, {"ef": 24}))
    assert decode_ladder(encode_ladder(ladder)) == ladder
    assert decode_ladder(None) == ()
    assert setting_for(ladder, 0.9) == {"ef": 16}
    assert setting_for(ladder, 0.91) == setting_for(ladder, 1) == {"ef": 24}
    assert setting_for((), 0.9) == {}
