"""VectorIndexes.tune and .project: measured on the searches that users make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

import duckvec
from duckvec import tuning
from duckvec.errors import ColumnError, ParameterError, QueryError
from duckvec.measuring import Run, Runner
from duckvec.projecting import principal_components
from duckvec.tuning import Tuning
from tests.data import PARAMS, Vectors, clustered, create, create_table, search
from tests.upkeep import filters_by_index, impatient, insert

COLUMNS = ["params", "recall", "index_ms", "route", "is_default"]


@pytest.fixture
def handle(
    memory: duckdb.DuckDBPyConnection, vectors: Vectors
) -> Iterator[duckvec.VectorIndexes]:
    create_table(memory, vectors)
    with duckvec.load(memory) as handle:
        yield handle


def made_up(*rows: tuple[int, float, float]) -> Tuning:
    """A tuning of made-up numbers: nprobe, recall and milliseconds of each setting."""
    table = pa.Table.from_pylist(
        [
            {
                "params": json.dumps({"nprobe": nprobe}),
                "recall": recall,
                "index_ms": milliseconds,
                "route": "index",
                "is_default": nprobe == 4,
            }
            for nprobe, recall, milliseconds in rows
        ]
    )
    return Tuning("items", "v", "IVF_FLAT", "L2", 10, 100, None, 9.0, table)


@pytest.mark.parametrize(
    "index_type", ["ANNOY", "FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8", "NSG"]
)
def test_a_sweep_goes_from_cheap_to_thorough(
    handle: duckvec.VectorIndexes, index_type: str
) -> None:
    if index_type in ("ANNOY", "HNSW"):
        pytest.importorskip({"ANNOY": "annoy", "HNSW": "hnswlib"}[index_type])
    made = handle.create("items", index_type, PARAMS[index_type])
    found = handle.tune("items", 5, sample=10)
    assert found.table.column_names == COLUMNS
    rows = found.table.to_pylist()
    assert (found.index_type, found.metric) == (made["index_type"], "L2")
    assert (found.k, found.sample, found.collection) == (5, 10, "items")
    assert rows[-1]["recall"] > 0.98
    assert all(row["index_ms"] > 0 for row in rows) and found.exact_ms > 0
    assert [row["is_default"] for row in rows].count(True) == 1
    assert len(rows) <= tuning.MOST_SETTINGS + 1
    if index_type == "FLAT":
        assert [row["params"] for row in rows] == ["{}"]
        return
    values = [next(iter(json.loads(row["params"]).values())) for row in rows]
    assert values == sorted(set(values)) and len(values) > 5
    if index_type == "IVF_FLAT":
        assert (values[0], values[-1]) == (1, 32)
        assert rows[0]["recall"] < 1 and {row["route"] for row in rows} == {"index"}
    best = found.recommend(0.9)
    assert len(handle.search("items", [0.0] * 16, 5, params=best)) == 5


@pytest.mark.core
def test_recall_is_that_of_the_searches(
    handle: duckvec.VectorIndexes, vectors: Vectors
) -> None:
    con = handle._open()
    create(con, "IVF_FLAT", metric="COSINE")
    settings: list[dict[str, Any]] = [{"nprobe": 1}, {"nprobe": 32}, {"recall": 0.9}]
    with filters_by_index():
        found = handle.tune(
            "items",
            7,
            queries=vectors.queries,
            settings=settings,
            column_name="embedding",
            filter="price < 50",
        )
    shares = []
    with filters_by_index():
        for number in range(len(vectors.queries)):
            ids = [
                {
                    row[0]
                    for row in search(
                        con,
                        vectors.query(number),
                        7,
                        params=each,
                        filter="price < 50",
                    )
                }
                for each in settings[:2]
            ]
            shares.append(len(ids[0] & ids[1]) / 7)
    rows = found.table.to_pylist()
    assert rows[0]["recall"] == pytest.approx(np.mean(shares)) and rows[0]["recall"] < 1
    assert rows[1]["recall"] == 1
    assert rows[2]["recall"] > 0.8 and json.loads(rows[2]["params"]) == {"recall": 0.9}
    assert (found.metric, found.filter, found.sample) == ("COSINE", "price < 50", 20)


@pytest.mark.core
def test_the_exact_answers_are_computed_once(
    handle: duckvec.VectorIndexes, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle.create("items", "IVF_FLAT", PARAMS["IVF_FLAT"])
    calls = {"run": 0, "run_exactly": 0}
    for name in calls:
        method = getattr(Runner, name)

        def counted(*arguments: Any, name: str = name, method: Any = method) -> Any:
            calls[name] += 1
            return method(*arguments)

        monkeypatch.setattr(Runner, name, counted)
    found = handle.tune("items", sample=7)
    assert calls == {"run": 1 + 7 * len(found.table), "run_exactly": 7}


@pytest.mark.core
def test_changes_meanwhile_do_not_count_as_misses(
    handle: duckvec.VectorIndexes, monkeypatch: pytest.MonkeyPatch
) -> None:
    con = handle._open()
    create(con, "IVF_FLAT")
    writer, run = con.cursor(), Runner._run

    def delete_after(*arguments: Any) -> Run:
        found = run(*arguments)
        writer.execute(
            "DELETE FROM items WHERE id IN (SELECT id FROM items ORDER BY "
            "list_distance(embedding::DOUBLE[], ?::DOUBLE[]) LIMIT 3)",
            [arguments[-1].tolist()],
        )
        return found

    monkeypatch.setattr(Runner, "_run", delete_after)
    found = handle.tune("items", sample=5, settings=[{"nprobe": 32}] * 3)
    assert found.table["recall"].to_pylist() == [1, 1, 1]


def test_a_long_sweep_is_thinned_out() -> None:
    segment = SimpleNamespace(params={"nlist": 16384}, row_count=1_000_000)
    row = SimpleNamespace(
        index_type="IVF_FLAT",
        params={"nlist": 16384},
        search_params={"nprobe": 77},
    )
    index: Any = SimpleNamespace(row=row, segments=[SimpleNamespace(row=segment)])
    values = [setting["nprobe"] for setting in tuning.sweep(index, 10)]
    assert len(values) == tuning.MOST_SETTINGS + 1
    assert values == sorted(values)
    assert (values[0], values[-1]) == (1, 16384) and 77 in values


@pytest.mark.core
def test_the_default_of_several_segments_and_of_a_large_k(
    handle: duckvec.VectorIndexes, vectors: Vectors
) -> None:
    pytest.importorskip("hnswlib")
    con = handle._open()
    with impatient():
        create(con, "HNSW")
        insert(con, clustered(3000, 16, seed=8), 0, 3000)
        handle.wait()
        found = handle.tune("items", 300, sample=3)
    (default,) = (r for r in found.table.to_pylist() if r["is_default"])
    assert json.loads(default["params"])["ef"] >= 300
    assert found.sample == 3


@pytest.mark.core
def test_without_an_index_there_is_one_way_to_search(
    handle: duckvec.VectorIndexes,
) -> None:
    handle._open().execute("CREATE VIEW seen AS SELECT id, embedding FROM items")
    for collection in ("items", "seen"):
        found = handle.tune(collection, sample=5)
        [row] = found.table.to_pylist()
        assert (row["params"], row["recall"], row["route"]) == ("{}", 1, "exact")
        assert found.index_type == "FLAT" and found.recommend(1) == {}
    handle.create("items", "HNSW", PARAMS["HNSW"])
    handle._open().execute("TRUNCATE items")
    with pytest.raises(QueryError, match="no vector"):
        handle.tune("items")


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"k": 0}, QueryError, "k = 0 is outside"),
        ({"sample": 0}, QueryError, r"sample = 0 is outside \[1, 10000\]"),
        ({"settings": []}, ParameterError, "is empty"),
        ({"settings": [{"ef": 5}]}, ParameterError, '"ef" is no search parameter'),
        ({"settings": [{"nprobe": 33}]}, ParameterError, r"nprobe = 33 is outside"),
        ({"queries": [[1.0, 2.0]]}, QueryError, "2 components, not 16"),
        ({"queries": [1.0, 2.0]}, QueryError, r"shape \(2,\)"),
        ({"queries": [[np.nan] * 16]}, QueryError, "NaN"),
        ({"filter": "id <"}, QueryError, "is not one SQL expression"),
        ({"column_name": "id"}, ColumnError, "is BIGINT"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(
    handle: duckvec.VectorIndexes,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    kind: type[Exception],
    sentence: str,
) -> None:
    handle.create("items", "IVF_FLAT", PARAMS["IVF_FLAT"])
    monkeypatch.setattr(Runner, "run", None)
    with pytest.raises(kind, match=sentence):
        handle.tune("items", **options)


def test_the_quickest_setting_that_finds_enough_is_recommended() -> None:
    found = made_up((1, 0.7, 1.0), (4, 0.96, 3.0), (8, 0.97, 2.5), (16, 0.985, 4.0))
    assert found.recommend(0.5) == {"nprobe": 1}
    assert found.recommend() == {"nprobe": 8}
    assert found.recommend(0.985) == {"nprobe": 16}
    with pytest.raises(ParameterError) as caught:
        found.recommend(0.99)
    assert str(caught.value) == (
        'recall = 0.99 was reached by no setting of IVF_FLAT on "items": 0.9850, with '
        '{"nprobe": 16}, is the best known; ask for less, or build a better index'
    )
    for wrong in (0, 1.5, float("nan")):
        with pytest.raises(ParameterError, match="outside"):
            found.recommend(wrong)
    assert repr(found).splitlines()[3].endswith('3.00  {"nprobe": 4}  (default)')


@pytest.mark.core
def test_the_table_can_be_queried(handle: duckvec.VectorIndexes) -> None:
    handle.create("items", "IVF_FLAT", PARAMS["IVF_FLAT"])
    measured = handle.tune("items", sample=3).table
    rows = duckdb.execute(
        "SELECT max((params->>'nprobe')::INTEGER) FROM measured"
    ).fetchall()
    assert rows == [(32,)]
    del measured


@pytest.mark.core
def test_tuning_sees_tables_as_the_connection_does(
    handle: duckvec.VectorIndexes,
) -> None:
    con = handle._open()
    con.execute("CREATE SCHEMA other; USE other")
    con.execute(
        "CREATE TABLE items AS SELECT [i, -i]::FLOAT[2] AS v FROM range(9) t(i)"
    )
    assert handle.tune("items", 2).column_name == "v"
    assert handle.tune("main.items", 2, sample=2).column_name == "embedding"


# Projections


@pytest.mark.core
def test_a_projection_holds_rows_and_their_values(
    handle: duckvec.VectorIndexes, vectors: Vectors
) -> None:
    con = handle._open()
    con.execute('ALTER TABLE items ADD COLUMN "odd ""name" VARCHAR')
    con.execute('UPDATE items SET "odd ""name" = \'p\' || price')
    found = handle.project("items", 'ODD "NAME', sample=500)
    assert found.color_by == 'odd "name'
    assert found.table.column_names == ["x", "y", "value"]
    assert found.table.num_rows == 500
    assert 1 > found.shares[0] >= found.shares[1] > 0
    again = handle.project("items", 'odd "name', sample=500)
    assert again.table.equals(found.table)
    other = handle.project("items", 'odd "name', sample=500, seed=1)
    assert not other.table.equals(found.table)
    everything = handle.project("items")
    assert everything.table.column_names == ["x", "y"]
    centred = vectors.rows - vectors.rows.mean(axis=0)
    parts = np.linalg.svd(centred.astype(float), compute_uv=False) ** 2
    np.testing.assert_allclose(everything.shares, (parts / parts.sum())[:2], rtol=1e-4)
    points = np.column_stack([everything.table[name] for name in ("x", "y")])
    np.testing.assert_allclose((points**2).sum(axis=0), parts[:2], rtol=1e-4)


@pytest.mark.core
def test_directions_are_projected_where_the_index_compares_them(
    memory: duckdb.DuckDBPyConnection,
) -> None:
    memory.execute(
        "CREATE TABLE items AS SELECT i AS id, "
        "[cos(i) * (1 + i), sin(i) * (1 + i)]::FLOAT[2] AS v FROM range(100) t(i)"
    )
    handle = duckvec.load(memory)
    lengths = []
    for metric in ("L2", "COSINE"):
        handle.create("items", "FLAT", metric=metric)
        found = handle.project("items").table
        points = np.column_stack([found["x"], found["y"]])
        lengths.append(np.linalg.norm(points, axis=1).max())
    assert lengths[0] > 50 and lengths[1] < 1.1


@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (40, 1), (40, 3), (3, 40), (30, 30)])
def test_components_of_few_and_of_many_vectors(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    points, shares = principal_components(vectors)
    assert points.shape == (shape[0], 2)
    centred = vectors - vectors.mean(axis=0, dtype=float)
    parts = np.linalg.svd(centred, compute_uv=False) ** 2
    wanted = np.zeros(2)
    wanted[: min(2, len(parts))] = parts[:2] / max(parts.sum(), 1e-30)
    np.testing.assert_allclose(shares, wanted, atol=1e-6)
    # Mirrored vectors make the same axes, and so mirrored points.
    np.testing.assert_allclose(principal_components(-vectors)[0], -points, atol=1e-6)
    if len(vectors) > 3:
        order = np.random.default_rng(2).permutation(len(vectors))
        moved, _ = principal_components(vectors[order])
        np.testing.assert_allclose(moved, points[order], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"color_by": "prise"}, ColumnError, 'no column "prise"; did you mean "price"'),
        ({"color_by": "zzz"}, ColumnError, "it has id, price, embedding"),
        ({"sample": 10_001}, QueryError, "outside"),
        ({"column_name": "id"}, ColumnError, "is BIGINT"),
    ],
)
def test_errors_of_a_projection(
    handle: duckvec.VectorIndexes,
    options: dict[str, Any],
    kind: type[Exception],
    sentence: str,
) -> None:
    with pytest.raises(kind, match=sentence):
        handle.project("items", **options)
