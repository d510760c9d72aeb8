"""One contract for the range searches of all index types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import duckdb
import numpy as np
import pytest
from numpy.typing import NDArray

from duckvec.index_types import get_index_type
from duckvec.index_types.base import Hits, InRange, SegmentIndex
from duckvec.metrics import METRICS, Metric
from tests.index_types import (
    DIMENSION,
    K,
    Vectors,
    all_distances,
    as_given,
    build,
    clustered,
    effective,
    every_metric,
    every_type,
    most_thorough,
)

COMPRESSED = ("IVF_SQ8", "IVF_SQ8H", "IVF_PQ")


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    for library in ("hnswlib", "annoy"):
        pytest.importorskip(library)


def settings(name: str, rows: int) -> dict[str, int]:
    """Exhaustive ones where the type is then exact, else thorough ones."""
    kind = get_index_type(name)
    found = most_thorough(kind, rows, K)
    return {"nprobe": max(1, found["nprobe"] // 2)} if kind.compressed else found


def of_each(found: InRange) -> list[NDArray[np.int64]]:
    assert found.positions.dtype == found.offsets.dtype == np.int64
    assert found.offsets[0] == 0
    assert found.offsets[-1] == len(found.positions)
    each = np.split(found.positions, found.offsets[1:-1])
    for positions in each:
        assert len(set(positions.tolist())) == len(positions)
    return each


def measured(
    queries: Vectors, vectors: Vectors, metric: Metric, kind: str = "FLOAT"
) -> NDArray[np.float64]:
    """The distances that DuckDB computes, NaN where it gives none."""
    con = duckdb.connect()
    tables = {"l": queries.astype(np.float64), "r": vectors.astype(np.float64)}
    for table, values in tables.items():
        con.execute(f"CREATE TABLE {table} (i INTEGER, v {kind}[{values.shape[1]}])")
        numbered = [[i, row] for i, row in enumerate(values.tolist())]
        con.executemany(f"INSERT INTO {table} VALUES (?, ?)", numbered)
    rows = con.execute(
        f"SELECT {metric.duckdb_array_function}(l.v, r.v) FROM l, r ORDER BY l.i, r.i"
    ).fetchnumpy()
    con.close()
    (distances,) = rows.values()
    flat = np.ma.filled(np.ma.asarray(distances, dtype=np.float64), np.nan)
    return np.asarray(flat).reshape(len(queries), len(vectors))


def share_found(found: InRange, within: NDArray[np.bool_]) -> float:
    hits = [
        int(within[row, positions].sum())
        for row, positions in enumerate(of_each(found))
    ]
    return sum(hits) / int(within.sum()) if within.any() else 1.0


@every_metric
@every_type
def test_ranges_hold_what_is_within_them(
    name: str, metric_name: str, tmp_path: Path
) -> None:
    metric = METRICS[metric_name]
    vectors, queries = clustered(2000), clustered(30, seed=2)
    given, asked = as_given(vectors, metric), as_given(queries, metric)
    before = given.tobytes(), asked.tobytes()
    kind, segment = build(name, metric, given)
    path = tmp_path / "segment"
    segment.save(path)
    opened = kind.open(path, metric, 2000, DIMENSION, effective(kind, 2000))
    truth = all_distances(asked, given, metric)
    for share in (0.001, 0.02, 0.2):
        radius = float(np.quantile(truth, share))
        for params in (settings(name, 2000), {}):
            found = segment.search_range(asked, radius, params)
            least = 0.95 if params else 0.85
            assert share_found(found, truth <= radius) >= least
            again = opened.search_range(asked, radius, params)
            np.testing.assert_array_equal(again.positions, found.positions)
            np.testing.assert_array_equal(again.offsets, found.offsets)
        two = opened.search_range(asked, radius, settings(name, 2000), threads=2)
        assert share_found(two, truth <= radius) >= 0.95
        if name not in COMPRESSED and share < 0.2:
            assert len(two.positions) <= 1.01 * (truth <= radius).sum() + 5
    assert (given.tobytes(), asked.tobytes()) == before


@every_metric
@pytest.mark.parametrize("column", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("name", ["FLAT", "IVF_FLAT"])
def test_exhaustive_ranges_miss_nothing(
    name: str, column: str, metric_name: str
) -> None:
    metric = METRICS[metric_name]
    random = np.random.default_rng(5)
    rough = random.integers(-2, 3, (400, DIMENSION)).astype(np.float32)
    for vectors in (
        clustered(400),
        clustered(400) + 1000,
        clustered(400) * np.float32(1e-3),
        clustered(400) * random.choice([1e-4, 1.0, 1e4], (400, 1)).astype(np.float32),
        rough,
    ):
        vectors[100:200] = vectors[:100]
        queries = np.vstack([vectors[:20], vectors[200:220] * np.float32(1.01)])
        kind, segment = build(name, metric, as_given(vectors, metric))
        params = most_thorough(kind, 400, K)
        assert kind.exhaustive(params, effective(kind, 400))
        distances = measured(queries, vectors, metric, column)
        asked = as_given(queries, metric)
        for quantile in (0, 0.001, 0.01, 0.3, 1):
            ordered = np.sort(distances[~np.isnan(distances)])
            radius = float(ordered[int(quantile * (len(ordered) - 1))])
            for some in (slice(0, 1), slice(0, 40)):
                found = segment.search_range(asked[some], radius, params)
                within = distances[some] <= radius
                assert share_found(found, within) == 1


@every_metric
@every_type
def test_a_row_is_within_its_own_distance(name: str, metric_name: str) -> None:
    metric = METRICS[metric_name]
    vectors = clustered(1000)
    vectors[500:600] = vectors[0]
    given = as_given(vectors, metric)
    _, segment = build(name, metric, given)
    own = np.arange(30)
    distances = measured(vectors[own], vectors, metric)
    missed = 0
    for row in own:
        radius = float(distances[row, row])
        found = segment.search_range(given[[row]], radius, settings(name, 1000))
        missed += row not in found.positions
        if row == 0:
            assert set(range(500, 600)) <= set(found.positions.tolist())
    # An inner product is no distance: a row may be far behind many longer ones.
    assert missed <= (1 if metric.name == "IP" else 0)


@every_metric
@every_type
def test_only_allowed_rows_are_in_range(name: str, metric_name: str) -> None:
    metric = METRICS[metric_name]
    given = as_given(clustered(1000), metric)
    asked = as_given(clustered(10, seed=2), metric)
    _, segment = build(name, metric, given)
    truth = all_distances(asked, given, metric)
    radius = float(np.quantile(truth, 0.05))
    random = np.random.default_rng(3)
    params = settings(name, 1000)
    for share in (0.5, 0.05):
        allowed = random.random(1000) < share
        found = segment.search_range(asked, radius, params, allowed=allowed)
        assert allowed[found.positions].all()
        assert share_found(found, (truth <= radius) & allowed) >= 0.95
        both = segment.search_range(asked, np.inf, params, allowed=allowed)
        assert both.offsets[-1] == 10 * allowed.sum()
        assert allowed[both.positions].all()
    none = np.zeros(1000, dtype=np.bool_)
    for far in (radius, np.inf):
        nothing = segment.search_range(asked, far, params, allowed=none)
        assert nothing.offsets.tolist() == [0] * 11


@every_metric
@every_type
def test_ranges_of_nothing_and_of_everything(name: str, metric_name: str) -> None:
    metric = METRICS[metric_name]
    given = as_given(clustered(500), metric)
    asked = as_given(clustered(6, seed=2), metric)
    _, segment = build(name, metric, given)
    for radius in (-1e300, -np.inf, *([] if metric.name == "IP" else [-0.5])):
        found = segment.search_range(asked, radius, {})
        assert found.offsets.tolist() == [0] * 7
    for radius in (np.inf, 1e300):
        found = segment.search_range(asked, radius, {})
        for positions in of_each(found):
            assert sorted(positions.tolist()) == list(range(500))
    no_query = segment.search_range(asked[:0], 1.0, {})
    assert no_query.offsets.tolist() == [0]
    zeros = np.zeros((1, DIMENSION), dtype=np.float32)
    of_each(segment.search_range(zeros, 0.5, {}))


@pytest.mark.parametrize("rows", [1, 2, 5, 130])
@every_type
def test_small_segments_have_complete_ranges(
    name: str, rows: int, tmp_path: Path
) -> None:
    for metric in METRICS.values():
        vectors = clustered(rows)
        given = as_given(vectors, metric)
        asked = given[:1]
        kind, segment = build(name, metric, given)
        path = tmp_path / metric.name
        segment.save(path)
        opened = kind.open(path, metric, rows, DIMENSION, effective(kind, rows))
        distances = measured(vectors[:1], vectors, metric)
        for radius in np.sort(distances[0])[[0, rows // 2, rows - 1]]:
            for one in (segment, opened):
                found = one.search_range(asked, float(radius), {})
                assert share_found(found, distances <= radius) >= 0.9
                if rows <= 2 or radius == distances.max():
                    least = (distances <= radius).sum()
                    assert len(found.positions) >= 0.95 * least


@every_metric
@every_type
def test_masses_of_equal_rows_are_all_in_range(name: str, metric_name: str) -> None:
    metric = METRICS[metric_name]
    vectors = clustered(2000)
    vectors[300:] = vectors[0]
    given = as_given(vectors, metric)
    _, segment = build(name, metric, given)
    distances = measured(vectors[:1], vectors, metric)
    radius = float(distances[0, 0])
    found = segment.search_range(given[:1], radius, settings(name, 2000))
    assert {0, *range(300, 2000)} <= set(found.positions.tolist())


@pytest.mark.parametrize("name", ["FLAT", "IVF_FLAT"])
def test_what_overflows_or_underflows_is_a_candidate(name: str) -> None:
    for metric in METRICS.values():
        # faiss's k-means ends the process where squares of components overflow.
        large = (1e18, 1e21, 1e37) if name == "FLAT" else (1e15,)
        for scale in (1e-30, 1e-21, 1e-18, *large):
            vectors = clustered(50) * np.float32(scale)
            kind, segment = build(name, metric, as_given(vectors, metric))
            params = most_thorough(kind, 50, K)
            for column in ("FLOAT", "DOUBLE"):
                distances = measured(vectors[:3], vectors, metric, column)
                for radius in (*distances[0, :4], distances[0].max()):
                    found = segment.search_range(
                        as_given(vectors[:3], metric), float(radius), params
                    )
                    within = distances <= radius
                    assert share_found(found, within) == 1


def test_flat_ranges_reach_rows_of_zeros() -> None:
    metric = METRICS["COSINE"]
    vectors = clustered(100)
    vectors[10:20] = 0
    _, segment = build("FLAT", metric, as_given(vectors, metric))
    asked = as_given(clustered(2, seed=2), metric)
    near = segment.search_range(asked, 0.9, {})
    assert not set(range(10, 20)) & set(near.positions.tolist())
    # DuckDB 1.5 gives them the distance 2.
    assert len(segment.search_range(asked, 2.0, {}).positions) == 200


@pytest.mark.parametrize("name", COMPRESSED)
def test_files_without_measured_errors_give_whole_lists(
    name: str, tmp_path: Path
) -> None:
    metric = METRICS["L2"]
    given = clustered(1000)
    kind, segment = build(name, metric, given)
    path = tmp_path / "segment"
    segment.save(path)
    path.write_bytes(path.read_bytes()[:-32])
    opened = kind.open(path, metric, 1000, DIMENSION, effective(kind, 1000))
    truth = all_distances(given[:20], given, metric)
    radius = float(np.quantile(truth, 0.01))
    allowed = np.arange(1000) % 2 == 0
    for chosen in (None, allowed):
        found = opened.search_range(given[:20], radius, {"nprobe": 15}, allowed=chosen)
        within = (truth <= radius) & (True if chosen is None else chosen)
        assert share_found(found, within) >= 0.95


@every_metric
def test_a_type_without_a_range_search_has_one(metric_name: str) -> None:
    metric = METRICS[metric_name]
    given = as_given(clustered(2000), metric)
    _, flat = build("FLAT", metric, given)
    widths: list[tuple[int, int]] = []

    class Another(SegmentIndex):
        rows, dimension, library_note = 2000, DIMENSION, ""

        def search(
            self,
            queries: Vectors,
            k: int,
            params: Mapping[str, int],
            *,
            threads: int = 1,
            allowed: NDArray[np.bool_] | None = None,
        ) -> Hits:
            widths.append((len(queries), k))
            return flat.search(queries, k, params, threads=threads, allowed=allowed)

        def save(self, path: Path) -> None:
            raise NotImplementedError

        def memory_bytes(self) -> int:
            return 0

        def close(self) -> None:
            pass

    asked = given[:20]
    truth = all_distances(asked, given, metric)
    allowed = np.arange(2000) % 3 == 0
    for quantile in (0.0, 0.005, 0.1, 0.15, 0.9):
        radius = float(np.quantile(truth, quantile))
        found = Another().search_range(asked, radius, {})
        assert share_found(found, truth <= radius) == 1
        some = Another().search_range(asked, radius, {}, allowed=allowed)
        assert share_found(some, (truth <= radius) & allowed) == 1
        assert allowed[some.positions].all()
    assert {width for _, width in widths} == {64, 256}
    assert len(Another().search_range(asked, np.inf, {}).positions) == 40_000
    assert len(Another().search_range(asked, -np.inf, {}).positions) == 0
