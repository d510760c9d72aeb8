"""What is particular to some index types, and how types are found."""

from __future__ import annotations

import sys

import duckdb
import numpy as np
import pytest

from duckvec.errors import MissingLibraryError, UnknownIndexTypeError
from duckvec.index_types import INDEX_TYPES, get_index_type, ivf_sq8h
from duckvec.index_types.base import IndexType
from duckvec.metrics import METRICS
from tests.data import arrow_table
from tests.index_types import (
    DIMENSION,
    PARAMS,
    QUERIES,
    ROWS,
    K,
    Vectors,
    all_distances,
    as_given,
    build,
    check_shape,
    clustered,
    effective,
    every_metric,
    most_thorough,
    rescored,
)


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    for library in ("hnswlib", "annoy"):
        pytest.importorskip(library)


@every_metric
def test_hnsw_finds_all_where_it_weighs_as_many_rows_as_there_are(
    metric_name: str,
) -> None:
    """The graph itself does not lead to each row, with inner products above all."""
    metric = METRICS[metric_name]
    random = np.random.default_rng(3)
    vectors = random.standard_normal((700, 3)).astype(np.float32)
    vectors = as_given(np.concatenate([vectors, vectors[:50]]), metric)
    kind = get_index_type("HNSW")
    params = {"M": 5, "efConstruction": 100}
    segment = kind.build(vectors, metric, params, threads=2)
    queries = as_given(random.standard_normal((20, 3)).astype(np.float32), metric)
    allowed = random.random(len(vectors)) < 0.5
    for chosen in (None, allowed):
        hits = segment.search(queries, 300, {"ef": 4096}, allowed=chosen)
        truth = all_distances(queries, vectors, metric)
        if chosen is not None:
            truth[:, ~chosen] = np.inf
        for row, ids in enumerate(rescored(hits, truth, 300)):
            found = np.sort(truth[row, ids])
            np.testing.assert_allclose(found, np.sort(truth[row])[:300], atol=1e-5)


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
    _, segment = build("FLAT", metric, vectors)
    query = np.zeros((1, DIMENSION), dtype=np.float32)
    hits = segment.search(query, 5, {})
    assert set(range(50)) <= set(hits.positions[0].tolist())


def test_flat_puts_zero_vectors_last_with_cosine() -> None:
    metric = METRICS["COSINE"]
    vectors = clustered(100)
    vectors[10:20] = 0
    vectors = as_given(vectors, metric)
    _, segment = build("FLAT", metric, vectors)
    queries = as_given(-clustered(3, seed=2), metric)
    hits = segment.search(queries, 95, {})
    check_shape(hits, 3, 100, 95)
    for positions in hits.positions:
        found = positions[positions >= 0]
        assert set(found[:90].tolist()).isdisjoint(range(10, 20))
        assert set(found[90:].tolist()) <= set(range(10, 20))


@every_metric
def test_flat_answers_a_query_of_zeros(metric_name: str) -> None:
    metric = METRICS[metric_name]
    _, segment = build("FLAT", metric, clustered(1000))
    hits = segment.search(np.zeros((2, DIMENSION), dtype=np.float32), K, {})
    check_shape(hits, 2, 1000, K)
    assert hits.positions.shape[1] < 100


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
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingLibraryError) as caught:
        build(name, METRICS["L2"], clustered(10))
    assert str(caught.value) == (
        f"{name} needs {library}, which is not installed: "
        f'pip install "duckvec[{extra}]"'
    )


def test_nsg_returns_no_position_twice() -> None:
    kind, metric = get_index_type("NSG"), METRICS["IP"]
    params = {
        "search_length": 40,
        "out_degree": 20,
        "candidate_pool_size": 60,
        "knng": 30,
    }
    random = np.random.default_rng(2)
    vectors = random.standard_normal((300, 8)).astype(np.float32)
    queries = random.standard_normal((100, 8)).astype(np.float32)
    segment = kind.build(vectors, metric, params, threads=1)
    hits = segment.search(queries, 200, {"search_length": 300})
    for positions in hits.positions:
        found = positions[positions >= 0].tolist()
        assert len(set(found)) == len(found)


@pytest.mark.parametrize("metric_name", list(METRICS))
@pytest.mark.parametrize("name", ["FLAT", "IVF_FLAT"])
def test_masses_of_near_ties_stay_exact(name: str, metric_name: str) -> None:
    """More different rows tie within rounding than a search looks at first."""
    metric = METRICS[metric_name]
    random = np.random.default_rng(5)
    centre = random.standard_normal(32)
    rows = (centre + 1e-7 * random.standard_normal((600, 32))).astype(np.float32)
    queries = random.standard_normal((4, 32)).astype(np.float32)
    kind, segment = build(name, metric, rows)
    settings = most_thorough(kind, len(rows), K)
    hits = segment.search(as_given(queries, metric), K, settings)
    data = arrow_table(rows)
    distance = f"{metric.duckdb_array_function}(vector::FLOAT[32], $query::FLOAT[32])"
    for query, positions in zip(queries, hits.positions, strict=True):
        computed = duckdb.connect().execute(
            f"SELECT {distance} AS distance FROM data ORDER BY id",
            {"query": query.tolist()},
        )
        distances = computed.fetchnumpy()["distance"]
        found = np.sort(distances[positions[positions >= 0]])
        np.testing.assert_array_equal(found[:K], np.sort(distances)[:K])
    del data
