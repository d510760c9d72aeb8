"""Each segment is searched with the default that was measured on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import duckvec
from duckvec.metrics import METRICS
from duckvec.search import Wanted, search_generation
from tests.data import PARAMS, Vectors, arrow_table, clustered, create
from tests.upkeep import create_empty, info, insert, recall


def uneven(seed: int = 3) -> Vectors:
    """Rows of which the first 5,000 are easily told apart and the rest are not."""
    rng = np.random.default_rng(seed)
    easy = clustered(5000, 16, seed).rows
    hard = rng.standard_normal((10_000, 16)).astype(np.float32)
    queries = rng.standard_normal((50, 16)).astype(np.float32)
    return Vectors(np.concatenate([easy, hard]), queries)


@pytest.mark.core
@pytest.mark.parametrize("index_type", ["IVF_FLAT", "IVF_SQ8"])
def test_segments_have_defaults_of_their_own(path: Path, index_type: str) -> None:
    vectors = uneven()
    con = duckvec.connect(str(path), background=False)
    create_empty(con)
    insert(con, vectors, 0, 5000)
    create(con, index_type, params={"nlist": 64})
    insert(con, vectors, 5000, 15_000)
    duckvec.load(con).wait()
    stored = con.execute("SELECT search_params FROM duckvec.segments").fetchall()
    defaults = [json.loads(text) for (text,) in stored]
    assert len({each["nprobe"] for each in defaults}) == 2
    shown = json.loads(info(con)["search_params"])
    assert shown["nprobe"] == max(each["nprobe"] for each in defaults)
    assert recall(con, vectors) > 0.94
    con.close()


def test_a_value_of_the_caller_counts_for_all_segments(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = uneven()
    create_empty(con)
    insert(con, vectors, 0, 5000)
    create(con, "IVF_SQ8", params={"nlist": 64})
    insert(con, vectors, 5000, 15_000)
    duckvec.load(con).wait()
    (index,) = next(
        state.indexes.values()
        for state in duckvec.load(con)._instance.databases.values()
        if state.indexes
    )
    generation = index.generation
    assert generation is not None and len(generation.segments) == 2
    seen: list[dict[str, int]] = []
    for part in generation.segments:
        with part.segment.use() as inner:
            pass
        search = inner.search

        def spy(*arguments: Any, search: Any = search, **options: Any) -> Any:
            seen.append(dict(arguments[2]))
            return search(*arguments, **options)

        monkeypatch.setattr(inner, "search", spy)
    for given, wanted in (({}, None), ({"nprobe": 3}, 3)):
        seen.clear()
        search_generation(
            generation,
            Wanted(METRICS["L2"], vectors.queries[:2], 10, given, threads=1),
            generation.covered_rows,
        )
        own = [part.segment.row.search_params["nprobe"] for part in generation.segments]
        assert [each["nprobe"] for each in seen] == [wanted or value for value in own]


@pytest.mark.parametrize("rows", [1, 2, 11, 300])
@pytest.mark.parametrize("index_type", sorted(PARAMS))
def test_tiny_segments_have_a_default_too(
    con: duckdb.DuckDBPyConnection, index_type: str, rows: int
) -> None:
    vectors = clustered(rows, 16)
    data = arrow_table(vectors.rows)
    con.execute("CREATE TABLE items AS SELECT id, vector AS embedding FROM data")
    del data
    create(con, index_type)
    assert recall(con, vectors) > 0.9
