"""One contract for all index types, and what is particular to some of them."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from duckvec.errors import (
    ArtifactError,
    BuildCancelledError,
    MissingLibraryError,
    UnknownIndexTypeError,
)
from duckvec.index_types import INDEX_TYPES, get_index_type, ivf_sq8h
from duckvec.index_types.base import Hits, IndexType, SegmentIndex
from duckvec.metrics import METRICS, Metric, normalize_rows

Vectors = NDArray[np.float32]

ROWS, DIMENSION, QUERIES, K = 3000, 32, 25, 10
PARAMS: dict[str, dict[str, int]] = {
    "FLAT": {},
    "IVF_FLAT": {"nlist": 64},
    "IVF_SQ8": {"nlist": 64},
    "IVF_SQ8H": {"nlist": 64},
    "IVF_PQ": {"nlist": 64, "m": 16},
    "NSG": {
        "search_length": 45,
        "out_degree": 30,
        "candidate_pool_size": 100,
        "knng": 50,
    },
    "HNSW": {"M": 16, "efConstruction": 100},
    "ANNOY": {"n_trees": 8},
}
every_type = pytest.mark.parametrize("name", list(INDEX_TYPES))
every_metric = pytest.mark.parametrize("metric_name", list(METRICS))


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    for library in ("hnswlib", "annoy"):
        pytest.importorskip(library)


def clustered(rows: int, seed: int = 1) -> Vectors:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((40, DIMENSION)) * 2
    noise = random.standard_normal((rows, DIMENSION))
    vectors = centres[random.integers(0, len(centres), rows)] + noise
    return np.ascontiguousarray(vectors, dtype=np.float32)


def as_given(vectors: Vectors, metric: Metric) -> Vectors:
    given = normalize_rows(vectors) if metric.normalizes else vectors.copy()
    given.flags.writeable = False
    return given


def all_distances(queries: Vectors, vectors: Vectors, metric: Metric) -> Vectors:
    left, right = queries.astype(np.float64), vectors.astype(np.float64)
    if metric.is_similarity:
        return np.asarray(metric.offset - left @ right.T, dtype=np.float64)
    differences = left[:, None, :] - right[None, :, :]
    return np.sqrt((differences**2).sum(axis=2))


def build(
    name: str, metric: Metric, vectors: Vectors
) -> tuple[IndexType, SegmentIndex]:
    kind = get_index_type(name)
    params = kind.effective_params(PARAMS[name], *vectors.shape)
    given = as_given(vectors, metric)
    return kind, kind.build(given, metric, params, threads=1)


def effective(kind: IndexType, rows: int) -> dict[str, int]:
    return kind.effective_params(PARAMS[kind.name], rows, DIMENSION)


def most_thorough(kind: IndexType, rows: int, k: int) -> dict[str, int]:
    return kind.search_grid(effective(kind, rows), rows, k)[-1]


def check_shape(hits: Hits, queries: int, rows: int, k: int) -> None:
    assert hits.positions.dtype == np.int64
    assert hits.distances.dtype == np.float32
    assert hits.positions.shape == hits.distances.shape
    assert len(hits.positions) == queries
    for positions, distances in zip(hits.positions, hits.distances, strict=True):
        found = positions[positions >= 0]
        assert len(found) >= min(k, rows)
        assert len(set(found.tolist())) == len(found)
        assert np.all(np.isinf(distances[positions < 0]))
        assert np.all(np.isfinite(distances[positions >= 0]))
        assert np.all(np.diff(distances[positions >= 0]) >= 0)


def rescored(hits: Hits, distances: Vectors, k: int) -> list[NDArray[np.int64]]:
    """The k nearest of each query's hits, by the true distances."""
    nearest = []
    for row, positions in enumerate(hits.positions):
        found = positions[positions >= 0]
        order = np.argsort(distances[row, found], kind="stable")
        nearest.append(found[order[:k]])
    return nearest


def recall(hits: Hits, distances: Vectors, k: int) -> float:
    kth = np.sort(distances, axis=1)[:, k - 1]
    nearest = rescored(hits, distances, k)
    good = [
        np.count_nonzero(distances[row, ids] <= kth[row])
        for row, ids in enumerate(nearest)
    ]
    return float(np.mean(good)) / k


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


@every_metric
@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("name", ["FLAT", "IVF_FLAT"])
def test_exhaustive_searches_agree_with_single_precision_scans(
    name: str, count: int, metric_name: str
) -> None:
    metric = METRICS[metric_name]
    random = np.random.default_rng(5)
    far_from_origin = clustered(ROWS) + 100
    coarse = random.integers(-2, 3, (ROWS, DIMENSION)).astype(np.float32)
    for vectors in (clustered(ROWS), far_from_origin, coarse):
        given = as_given(vectors, metric)
        kind, segment = build(name, metric, given)
        queries = as_given(vectors[random.integers(0, ROWS, count)] + 0.25, metric)
        hits = segment.search(queries, K, most_thorough(kind, ROWS, K))
        assert kind.exhaustive(most_thorough(kind, ROWS, K), effective(kind, ROWS))
        truth = all_distances(queries, given, metric)
        nearest = np.sort(truth, axis=1)[:, :K]
        for row, ids in enumerate(rescored(hits, truth, K)):
            np.testing.assert_array_equal(truth[row, ids], nearest[row])


def test_flat_gives_all_rows_whose_order_is_a_matter_of_rounding() -> None:
    metric = METRICS["L2"]
    random = np.random.default_rng(6)
    near = (np.ones((50, DIMENSION)) + 1e-7 * random.random((50, DIMENSION))) * 3
    vectors = np.vstack([near, clustered(500) + 50]).astype(np.float32)
    kind, segment = build("FLAT", metric, vectors)
    query = np.zeros((1, DIMENSION), dtype=np.float32)
    hits = segment.search(query, 5, {})
    assert set(range(50)) <= set(hits.positions[0].tolist())


def test_flat_puts_zero_vectors_last_with_cosine() -> None:
    metric = METRICS["COSINE"]
    vectors = clustered(100)
    vectors[10:20] = 0
    vectors = as_given(vectors, metric)
    kind, segment = build("FLAT", metric, vectors)
    queries = as_given(-clustered(3, seed=2), metric)
    hits = segment.search(queries, 95, {})
    check_shape(hits, 3, 100, 95)
    for positions in hits.positions:
        found = positions[positions >= 0]
        assert set(found[:90].tolist()).isdisjoint(range(10, 20))
        assert set(found[90:].tolist()) <= set(range(10, 20))


@pytest.mark.parametrize("out_degree", [5, 20])
def test_nsg_builds_end_where_all_rows_are_equally_far(out_degree: int) -> None:
    kind = get_index_type("NSG")
    params = {**PARAMS["NSG"], "out_degree": out_degree}
    segment = kind.build(
        np.eye(400, dtype=np.float32), METRICS["L2"], params, threads=1
    )
    hits = segment.search(np.eye(400, dtype=np.float32)[:5], 1, {"search_length": 300})
    assert hits.positions[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_nlist_is_lowered_to_what_the_rows_can_train() -> None:
    kind = get_index_type("IVF_FLAT")
    assert kind.effective_params({"nlist": 16384}, 3900, 8) == {"nlist": 100}
    assert kind.effective_params({"nlist": 16384}, 5, 8) == {"nlist": 1}
    assert kind.clamp_search_params({"nprobe": 500}, {"nlist": 100}, 10) == {
        "nprobe": 100
    }


def test_pq_codes_get_fewer_bits_in_tiny_segments() -> None:
    kind = get_index_type("IVF_PQ")
    given = {"nlist": 4, "m": 8}
    assert kind.effective_params(given, 256, 32)["nbits"] == 8
    assert kind.effective_params(given, 50, 32)["nbits"] == 5
    assert kind.effective_params(given, 1, 32)["nbits"] == 1


def test_sq8h_compares_centroids_on_the_gpu_for_large_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faiss = pytest.importorskip("faiss")
    batches: list[int] = []

    class Quantizer:
        def __init__(self, quantizer: object) -> None:
            self.quantizer = quantizer

        def search(self, queries: Vectors, nprobe: int) -> object:
            batches.append(len(queries))
            return self.quantizer.search(queries, nprobe)  # type: ignore[attr-defined]

    metric = METRICS["L2"]
    vectors = as_given(clustered(1000), metric)
    queries = as_given(clustered(QUERIES, seed=2), metric)
    _, plain = build("IVF_SQ8H", metric, vectors)
    assert plain.library_note.endswith("(GPU)" if ivf_sq8h.has_gpu(faiss) else "(CPU)")
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(
        faiss, "index_cpu_to_gpu", lambda _, __, index: Quantizer(index), raising=False
    )
    _, segment = build("IVF_SQ8H", metric, vectors)
    assert segment.library_note.endswith("(GPU)")
    few = segment.search(queries[:4], K, {"nprobe": 4, "gpu_search_threshold": 5})
    assert batches == []
    many = segment.search(queries, K, {"nprobe": 4, "gpu_search_threshold": 5})
    assert batches == [QUERIES]
    np.testing.assert_array_equal(many.positions[:4], few.positions)


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
        kind.open(tmp_path / "gone", METRICS["L2"], 300, DIMENSION, {})


@every_type
def test_search_settings_go_from_cheap_to_thorough(name: str) -> None:
    kind = get_index_type(name)
    params = effective(kind, ROWS)
    grid = kind.search_grid(params, ROWS, K)
    for setting in grid:
        assert kind.clamp_search_params(setting, params, K) == setting
    for cheap, thorough in zip(grid, grid[1:], strict=False):
        assert all(cheap[name] < thorough[name] for name in cheap)
    assert len(grid) < 30
    assert set(kind.default_search_params(params, ROWS)) == set(grid[0])


def test_types_are_found_by_name_and_alias_in_any_case() -> None:
    assert list(INDEX_TYPES) == list(PARAMS)
    for kind in INDEX_TYPES.values():
        for name in (kind.name, *kind.aliases):
            assert get_index_type(f" {name.lower()} ") is kind
        assert kind.library_version()
    with pytest.raises(UnknownIndexTypeError) as caught:
        get_index_type("IVF_FLATT")
    assert str(caught.value) == (
        'no index type "IVF_FLATT"; did you mean "IVF_FLAT"? '
        "(known: FLAT, IVF_FLAT, IVF_SQ8, IVF_SQ8H, IVF_PQ, NSG, HNSW, ANNOY)"
    )


def test_another_package_can_add_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "mine"

        def load(self) -> type[IndexType]:
            return type(INDEX_TYPES["FLAT"])

    monkeypatch.setattr(
        "duckvec.index_types.entry_points", lambda group: [Point()], raising=True
    )
    monkeypatch.setattr("duckvec.index_types._BY_NAME", {})
    assert get_index_type("Mine").name == "FLAT"


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [("HNSW", "hnswlib", "hnsw"), ("ANNOY", "annoy", "annoy")],
)
def test_a_missing_library_names_the_extra(
    name: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(MissingLibraryError) as caught:
        build(name, METRICS["L2"], clustered(10))
    assert str(caught.value) == (
        f"{name} needs {library}, which is not installed: "
        f'pip install "duckvec[{extra}]"'
    )
