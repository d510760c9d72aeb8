"""One contract for all index types."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

from duckvec.errors import ArtifactError, BuildCancelledError
from duckvec.index_types import get_index_type
from duckvec.metrics import METRICS
from tests.index_types import (
    DIMENSION,
    QUERIES,
    ROWS,
    K,
    all_distances,
    as_given,
    build,
    check_shape,
    clustered,
    effective,
    every_metric,
    every_type,
    most_thorough,
    recall,
)


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    for library in ("hnswlib", "annoy"):
        pytest.importorskip(library)


@every_metric
@every_type
def test_the_most_thorough_search_finds_the_nearest(
    name: str, metric_name: str, tmp_path: Path
) -> None:
    metric = METRICS[metric_name]
    vectors = as_given(clustered(ROWS), metric)
    queries = as_given(clustered(QUERIES, seed=2), metric)
    before = vectors.tobytes(), queries.tobytes()
    kind, segment = build(name, metric, vectors)
    settings = most_thorough(kind, ROWS, K)
    wanted = 10 * K if kind.compressed else K
    hits = segment.search(queries, wanted, settings)
    check_shape(hits, QUERIES, ROWS, wanted)
    truth = all_distances(queries, vectors, metric)
    assert recall(hits, truth, K) >= 0.95
    if not kind.compressed:
        found = np.take_along_axis(truth, hits.positions[:, :K], axis=1)
        np.testing.assert_allclose(hits.distances[:, :K], found, rtol=1e-3, atol=1e-3)

    path = tmp_path / "segment"
    segment.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["segment"]
    opened = kind.open(path, metric, ROWS, DIMENSION, effective(kind, ROWS))
    assert (opened.rows, opened.dimension) == (ROWS, DIMENSION)
    assert opened.library_note == segment.library_note
    assert opened.library_note.startswith(kind.library)
    for params in (settings, {}):
        again = opened.search(queries, wanted, params)
        first = segment.search(queries, wanted, params)
        np.testing.assert_array_equal(again.positions, first.positions)
        np.testing.assert_array_equal(again.distances, first.distances)
    assert opened.memory_bytes() <= segment.memory_bytes() or name == "ANNOY"
    two = opened.search(queries, wanted, settings, threads=2)
    assert recall(two, truth, K) >= 0.95
    assert (vectors.tobytes(), queries.tobytes()) == before
    opened.close()
    segment.close()


@every_metric
@every_type
def test_the_memory_of_an_open_segment_is_known_before(
    name: str, metric_name: str, tmp_path: Path
) -> None:
    metric = METRICS[metric_name]
    kind, segment = build(name, metric, as_given(clustered(ROWS), metric))
    path = tmp_path / "segment"
    segment.save(path)
    segment.close()
    params = effective(kind, ROWS)
    opened = kind.open(path, metric, ROWS, DIMENSION, params)
    size = path.stat().st_size
    known = kind.opened_bytes(size, metric, ROWS, DIMENSION, params)
    assert opened.memory_bytes() == pytest.approx(known, rel=0.25)
    opened.close()


@every_metric
@every_type
def test_only_allowed_positions_are_returned(name: str, metric_name: str) -> None:
    metric = METRICS[metric_name]
    vectors = as_given(clustered(1000), metric)
    queries = as_given(clustered(QUERIES, seed=2), metric)
    kind, segment = build(name, metric, vectors)
    truth = all_distances(queries, vectors, metric)
    random = np.random.default_rng(3)
    settings = most_thorough(kind, 1000, K)
    for share in (0.5, 0.05):
        allowed = random.random(1000) < share
        wanted = 100 if kind.compressed else K
        hits = segment.search(queries, wanted, settings, allowed=allowed)
        check_shape(hits, QUERIES, int(allowed.sum()), wanted)
        assert allowed[hits.positions[hits.positions >= 0]].all()
        assert recall(hits, np.where(allowed, truth, np.inf), K) >= 0.95
    none = segment.search(queries, K, settings, allowed=np.zeros(1000, dtype=np.bool_))
    assert not (none.positions >= 0).any()


@pytest.mark.parametrize("rows", [1, 2, 5, 50, 300])
@every_type
def test_small_segments_find_every_row(name: str, rows: int, tmp_path: Path) -> None:
    for metric in METRICS.values():
        vectors = as_given(clustered(rows), metric)
        queries = as_given(clustered(3, seed=2), metric)
        kind, segment = build(name, metric, vectors)
        for k in (1, min(rows, 10), rows + 7):
            settings = most_thorough(kind, rows, k)
            check_shape(segment.search(queries, k, settings), 3, rows, k)
            check_shape(segment.search(queries, k, {}), 3, rows, k)
        path = tmp_path / metric.name
        segment.save(path)
        opened = kind.open(path, metric, rows, DIMENSION, effective(kind, rows))
        check_shape(opened.search(queries, rows, {}), 3, rows, rows)


@pytest.mark.parametrize("kinds", [1, 2, 1500])
@every_metric
@every_type
def test_masses_of_duplicates_do_no_harm(
    name: str, metric_name: str, kinds: int, tmp_path: Path
) -> None:
    metric = METRICS[metric_name]
    vectors = clustered(2000)
    vectors[kinds:] = vectors[0]
    vectors = as_given(vectors, metric)
    kind, segment = build(name, metric, vectors)
    queries = vectors[[0, 1]] if kinds > 1 else vectors[[0]]
    path = tmp_path / "segment"
    segment.save(path)
    opened = kind.open(path, metric, 2000, DIMENSION, effective(kind, 2000))
    hits = opened.search(queries, K, most_thorough(kind, 2000, K))
    check_shape(hits, len(queries), 2000, K)
    assert hits.positions.shape[1] < 500
    if not kind.compressed:
        truth = all_distances(queries, vectors, metric)
        found = np.take_along_axis(truth, hits.positions[:, :K], axis=1)
        nearest = np.sort(truth, axis=1)[:, :K]
        share = float(np.mean(found <= nearest[:, -1:] + 1e-4))
        assert share >= 0.95


@every_type
def test_rows_beside_a_mass_of_equal_ones_are_found(name: str) -> None:
    metric = METRICS["L2"]
    vectors = clustered(2000)
    vectors[np.random.default_rng(4).permutation(2000)[:1000]] = vectors[0]
    vectors = as_given(vectors, metric)
    queries = as_given(clustered(QUERIES, seed=2), metric)
    kind, segment = build(name, metric, vectors)
    hits = segment.search(queries, 10 * K, most_thorough(kind, 2000, 10 * K))
    assert recall(hits, all_distances(queries, vectors, metric), K) >= 0.95


@every_type
def test_threads_with_different_settings_do_not_disturb_each_other(name: str) -> None:
    metric = METRICS["L2"]
    vectors = as_given(clustered(1000), metric)
    queries = as_given(clustered(QUERIES, seed=2), metric)
    kind, segment = build(name, metric, vectors)
    grid = kind.search_grid(effective(kind, 1000), 1000, K)
    settings = [grid[0], grid[-1]]
    expected = [segment.search(queries, K, params).positions for params in settings]
    wrong: list[str] = []

    def search_again_and_again(which: int) -> None:
        for _ in range(15):
            hits = segment.search(queries, K, settings[which])
            if not np.array_equal(hits.positions, expected[which]):
                wrong.append(f"settings {settings[which]}")

    threads = [
        threading.Thread(target=search_again_and_again, args=(which,))
        for which in (0, 1, 0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@every_type
def test_a_cancelled_build_stops(name: str) -> None:
    kind = get_index_type(name)
    vectors = clustered(300)
    params = effective(kind, 300)
    with pytest.raises(BuildCancelledError, match="cancelled"):
        kind.build(vectors, METRICS["L2"], params, threads=1, cancelled=lambda: True)
    shares: list[float] = []
    kind.build(
        vectors,
        METRICS["L2"],
        params,
        threads=1,
        progress=shares.append,
        cancelled=lambda: False,
    )
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@every_type
def test_a_file_that_is_cut_or_of_other_rows_is_refused(
    name: str, tmp_path: Path
) -> None:
    kind, segment = build(name, METRICS["L2"], clustered(300))
    path = tmp_path / "segment"
    segment.save(path)
    with pytest.raises(ArtifactError, match="rebuild it"):
        kind.open(path, METRICS["L2"], 299, DIMENSION, effective(kind, 299))
    cut = tmp_path / "cut"
    cut.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="rebuild it"):
        kind.open(cut, METRICS["L2"], 300, DIMENSION, effective(kind, 300))
    with pytest.raises(ArtifactError, match="rebuild it"):
        kind.open(
            tmp_path / "gone", METRICS["L2"], 300, DIMENSION, effective(kind, 300)
        )


@every_type
def test_search_settings_go_from_cheap_to_thorough(name: str) -> None:
    kind = get_index_type(name)
    params = effective(kind, ROWS)
    grid = kind.search_grid(params, ROWS, K)
    for setting in grid:
        assert kind.clamp_search_params(setting, params, K) == setting
    for cheap, thorough in itertools.pairwise(grid):
        assert all(cheap[name] < thorough[name] for name in cheap)
    assert len(grid) < 30
    assert set(kind.default_search_params(params, ROWS)) == set(grid[0])


@every_metric
@every_type
def test_a_known_reach_is_what_a_search_finds(name: str, metric_name: str) -> None:
    metric = METRICS[metric_name]
    vectors = clustered(ROWS)
    _, segment = build(name, metric, vectors)
    queries = as_given(clustered(QUERIES, seed=5), metric)
    positions = np.tile(np.arange(ROWS), (QUERIES, 1))
    known = segment.reach(queries, positions)
    if known is None:
        return
    parameter, least = known
    assert least.min(axis=1).tolist() == [1] * QUERIES
    for value in (1, 3, 7):
        hits = segment.search(queries, K, {parameter: value})
        # Where fewer are within reach, the search looks further.
        for row in np.flatnonzero((least <= value).sum(axis=1) >= K):
            assert least[row, hits.positions[row, :K]].max() <= value
