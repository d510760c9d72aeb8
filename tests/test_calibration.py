"""The default search parameters that a build measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from duckvec import calibration
from duckvec.calibration import TARGET_RECALL, calibrate
from duckvec.index_types import get_index_type
from duckvec.metrics import METRICS
from duckvec.samples import K, draw_sample, exact_neighbours
from tests.index_types import (
    DIMENSION,
    PARAMS,
    ROWS,
    all_distances,
    as_given,
    build,
    clustered,
    effective,
    every_metric,
    every_type,
)

pytest.importorskip("annoy")
pytest.importorskip("hnswlib")


@every_metric
@pytest.mark.parametrize("rows", [11, 300, 5000])
def test_the_exact_neighbours_are_those_of_double_precision(
    rows: int, metric_name: str
) -> None:
    metric = METRICS[metric_name]
    vectors = as_given(clustered(rows), metric)
    queries = vectors[:10] * np.float32(1.01)
    own = np.where(np.arange(10) % 2, np.arange(10), -1)
    distances = all_distances(queries, vectors, metric)
    distances[np.arange(1, 10, 2), own[1::2]] = np.inf
    expected = np.argsort(distances, axis=1)[:, :10]
    found = exact_neighbours(vectors, queries, own, metric, 10)
    assert np.sort(found, axis=1).tolist() == np.sort(expected, axis=1).tolist()


@every_metric
@every_type
def test_the_default_finds_enough_and_is_the_same_whatever_the_time(
    name: str, metric_name: str
) -> None:
    metric = METRICS[metric_name]
    vectors = as_given(clustered(ROWS), metric)
    kind, segment = build(name, metric, vectors)
    params = effective(kind, ROWS)
    chosen, again = (
        dict(
            calibrate(
                kind, segment, vectors, metric, params, threads=1, build_seconds=seconds
            ).default
        )
        for seconds in (0.0, 10.0)
    )
    if not kind.compressed:  # how many are rescored is weighed by the clock
        assert again == chosen
    queries = as_given(clustered(200, seed=9), metric)
    truth = exact_neighbours(vectors, queries, np.full(200, -1), metric, 10)
    width = 10 * chosen.pop("overfetch", 1)
    found = segment.search(queries, width, chosen).positions
    hits = [np.isin(near, row) for near, row in zip(truth, found, strict=True)]
    assert np.mean(hits) >= TARGET_RECALL - 0.02


@pytest.mark.parametrize("name", ["HNSW", "NSG", "ANNOY"])
def test_a_setting_is_given_up_without_searching_every_query(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = METRICS["L2"]
    vectors = as_given(clustered(ROWS), metric)
    _, segment = build(name, metric, vectors)
    kind = get_index_type(name)
    params = effective(kind, ROWS)
    grid = kind.search_grid(params, ROWS, K)
    search, searched = segment.search, 0

    def counted(queries: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal searched
        searched += len(queries)
        return search(queries, *arguments, **named)

    monkeypatch.setattr(segment, "search", counted)
    monkeypatch.setattr(calibration, "LADDER_SECONDS", 0.0)
    measured = calibrate(
        kind, segment, vectors, metric, params, threads=1, build_seconds=0.0
    )
    settings = grid.index(dict(measured.default)) + 1
    assert searched <= 2 * calibration.SEARCHED * (1 + settings / 2)


@pytest.mark.parametrize("name", ["IVF_FLAT", "IVF_SQ8", "IVF_PQ", "HNSW", "ANNOY"])
def test_every_rung_finds_what_it_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = METRICS["L2"]
    values = np.random.default_rng(3).standard_normal((ROWS, DIMENSION))
    vectors = values.astype(np.float32)
    kind, segment = build(name, metric, vectors)
    params = effective(kind, ROWS)
    monkeypatch.setattr(calibration, "LADDER_SECONDS", 60.0)
    ladder = calibrate(
        kind, segment, vectors, metric, params, threads=1, build_seconds=0.0
    ).ladder
    assert len(ladder) >= 3  # which settings are cheapest depends on the machine
    # Graphs and trees are searched with fewer queries, and each only until it is full.
    most, tolerance = (64, 0.01) if name in ("HNSW", "ANNOY") else (100, 0.0)
    for sample in draw_sample(vectors, metric, K).kinds(most):
        for rung in ladder:
            setting = dict(rung.setting)
            width = K * setting.pop("overfetch", 1)
            own = kind.clamp_search_params(setting, params, width + 1)
            hits = segment.search(sample.queries, width + 1, own)
            found = sample.places(hits.positions) < width
            assert found.mean() >= rung.recall - tolerance


@pytest.mark.parametrize("name", ["HNSW", "NSG", "ANNOY", "IVF_SQ8"])
def test_one_of_equal_rows_is_as_good_as_another(name: str) -> None:
    pytest.importorskip({"HNSW": "hnswlib", "ANNOY": "annoy"}.get(name, "faiss"))
    rows = clustered(4000)
    with_equal = rows.copy()
    with_equal[::8] = rows[0]
    kind, segment = build(name, METRICS["L2"], with_equal)
    params = effective(kind, 4000)
    measured = calibrate(
        kind, segment, with_equal, METRICS["L2"], params, threads=1, build_seconds=1.0
    )
    assert measured.ladder[-1].recall >= 0.99
    grid = kind.search_grid(params, 4000, 10)
    own = {name: value for name, value in measured.default.items() if name in grid[0]}
    assert own != grid[-1]


def test_a_recall_of_0_99_is_measured_whatever_the_time() -> None:
    pytest.importorskip("hnswlib")
    pytest.importorskip("annoy")
    rows = clustered(3000)
    for name in PARAMS:
        kind, segment = build(name, METRICS["L2"], rows)
        params = effective(kind, len(rows))
        measured = calibrate(
            kind, segment, rows, METRICS["L2"], params, threads=1, build_seconds=0.0
        )
        assert measured.ladder[-1].recall >= 0.99, name
