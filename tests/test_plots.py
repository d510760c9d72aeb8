"""Pictures: what is in their axes, and what is said where they cannot be drawn."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import duckvec
from duckvec.errors import MissingLibraryError, ParameterError
from duckvec.projecting import Projection
from duckvec.tuning import Tuning
from tests.data import PARAMS, Vectors, create_table

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402

from duckvec import plots  # noqa: E402

Setting = tuple[dict[str, int], float, float, str]


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    pyplot.close("all")


def tuning(index_type: str, *settings: Setting, exact_ms: float = 9.0) -> Tuning:
    """A tuning of made-up numbers: params, recall, milliseconds and route of each."""
    table = pa.Table.from_pylist(
        [
            {
                "params": json.dumps(params),
                "recall": recall,
                "index_ms": milliseconds,
                "route": route,
                "is_default": False,
            }
            for params, recall, milliseconds, route in settings
        ]
    )
    return Tuning("items", "v", index_type, "L2", 10, 100, None, exact_ms, table)


IVF = tuning(
    "IVF_SQ8",
    ({"nprobe": 1}, 0.6, 1.0, "index"),
    ({"nprobe": 4}, 0.96, 2.0, "index"),
    ({"nprobe": 9}, 0.99, 3.0, "index"),
    ({"nprobe": 16}, 1.0, 9.5, "exact"),
)
HNSW = tuning("HNSW", ({"ef": 16}, 0.9, 1.5, "index"), ({"ef": 24}, 0.93, 2.5, "index"))
ROWS: list[dict[str, Any]] = [
    {"index_type": "FLAT", "build_seconds": 0.5, "size_bytes": 4_000_000},
    {"index_type": "HNSW", "build_seconds": 12.0, "size_bytes": 5_000_000},
    {"index_type": "HNSW", "build_seconds": 20.0, "size_bytes": 6_500_000},
]
for row in ROWS:
    row.update(row_count=20_000, metric="COSINE")


def projection(values: list[Any] | None, seed: int = 0) -> Projection:
    count = 60 if values is None else len(values)
    points = np.random.default_rng(seed).standard_normal((count, 2))
    columns: dict[str, Any] = {"x": points[:, 0], "y": points[:, 1]}
    if values is not None:
        columns["value"] = pa.array(values)
    shares = (0.25, 0.125)
    named = None if values is None else "kind"
    return Projection("items", "v", named, shares, pa.table(columns))


def legend(ax: Any) -> list[str]:
    found = ax.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def points(ax: Any) -> dict[str, Any]:
    """The points of each group of a map, by its label."""
    return {str(each.get_label()): each.get_offsets() for each in ax.collections}


def test_a_curve_shows_what_was_measured() -> None:
    ax: Any = plots.recall_curve([IVF, HNSW])
    lines = {str(line.get_label()): line for line in ax.lines}
    line = lines["IVF_SQ8: nprobe 4"]
    # The setting that is answered by a scan is none of its points.
    assert line.get_xydata().tolist() == [[1.0, 0.6], [2.0, 0.96], [3.0, 0.99]]
    assert to_hex(line.get_color()) == plots.COLOURS["IVF_SQ8"]
    assert lines["HNSW: below 0.95"].get_xydata().tolist() == [[1.5, 0.9], [2.5, 0.93]]
    assert list(lines["exact scan"].get_xdata()) == [9.0, 9.0]
    (large,) = [each for each in ax.lines if each.get_markersize() > 10]
    assert large.get_xydata().tolist() == [[2.0, 0.96]]
    assert legend(ax) == ["IVF_SQ8: nprobe 4", "HNSW: below 0.95", "exact scan"]
    assert "ms" in ax.get_xlabel() and "recall@10" in ax.get_ylabel()
    assert ax.get_xscale() == "log" and ax.get_ylim()[0] == pytest.approx(0.75)
    names = ("IVF_SQ8: nprobe 4", "HNSW: below 0.95")
    assert len({lines[name].get_marker() for name in names}) == 2


def test_a_curve_of_one_scan_and_of_the_same_type_twice() -> None:
    ax: Any = plots.recall_curve(tuning("FLAT", ({}, 1.0, 5.0, "exact")), recall=1)
    assert legend(ax) == ["FLAT", "exact scan"]
    assert ax.lines[0].get_xydata().tolist() == [[5.0, 1.0]]
    ax = plots.recall_curve([IVF, IVF], recall=0.99)
    assert legend(ax)[0] == "IVF_SQ8 on items.v: nprobe 9"
    low = tuning("MINE", ({"effort": 1}, 0.2, 1.0, "index"))
    ax = plots.recall_curve([low, IVF])
    assert ax.get_ylim()[0] < 0.2
    assert to_hex(ax.lines[0].get_color()) == plots.OTHER_COLOUR


def test_costs_are_bars_with_their_numbers() -> None:
    both: Any = plots.build_costs(ROWS)
    left, right = both
    for ax, values in ((left, [0.5, 12.0, 20.0]), (right, [4.0, 5.0, 6.5])):
        assert [bar.get_width() for bar in ax.patches] == values
        assert [text.get_text() for text in ax.texts] == [f"{v:.3g}" for v in values]
        names = [text.get_text() for text in ax.get_yticklabels()]
        assert names == ["FLAT", "HNSW (1)", "HNSW (2)"]
    assert "seconds" in left.get_xlabel() and "MB" in right.get_xlabel()
    assert left.get_title(loc="left") == "20,000 rows, COSINE"
    assert to_hex(left.patches[1].get_facecolor()) == plots.COLOURS["HNSW"]


def test_a_map_colours_the_most_frequent_values() -> None:
    values = [
        kind for number, kind in enumerate("abcdefghi") for _ in range(number + 1)
    ]
    shown = projection([*values, None])
    ax: Any = plots.collection_map(shown)
    found = points(ax)
    assert next(iter(found)) == "3 more (4)"  # under the others
    assert legend(ax) == [
        *(f"{k} ({n})" for k, n in zip("ihgfedc", range(9, 2, -1), strict=True)),
        "3 more (4)",
    ]
    assert sum(len(each) for each in found.values()) == shown.table.num_rows
    own = np.array([kind == "g" for kind in [*values, None]])
    xy = np.column_stack([shown.table["x"], shown.table["y"]])
    np.testing.assert_array_equal(found["g (7)"], xy[own])
    colours = [to_hex(each.get_facecolor()[0]) for each in ax.collections]
    assert len(set(colours)) == 8
    assert ax.get_xlabel() == "first component (25 % of the variance)"
    assert ax.get_ylabel() == "second component (12 % of the variance)"
    legend_of = ax.get_legend()
    assert legend_of is not None and legend_of.get_title().get_text() == "kind"


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        ([*range(20), None], list(range(20))),
        ([0.5, None, 2.5], [0.5, 2.5]),
        ([Decimal("1.25"), Decimal("2.5")], [1.25, 2.5]),
        ([datetime.date(1970, 1, 2), datetime.date(1970, 1, 11), None], [1, 10]),
        ([datetime.datetime(1970, 1, 1, 12), None], [0.5]),
    ],
)
def test_numbers_and_times_have_a_scale(
    values: list[Any], numbers: list[float]
) -> None:
    ax: Any = plots.collection_map(projection(values))
    grey, coloured = ax.collections
    assert len(grey.get_offsets()) == values.count(None)
    assert list(coloured.get_array()) == numbers
    (bar,) = [each for each in ax.figure.axes if each is not ax]
    assert bar.get_ylabel() == "kind" and not legend(ax)


def test_few_whole_numbers_and_truths_are_values() -> None:
    assert legend(plots.collection_map(projection([1, 2, 2])))[0] == "2 (2)"
    assert (
        legend(plots.collection_map(projection([True, False, True])))[0] == "True (2)"
    )
    ax: Any = plots.collection_map(projection(None))
    assert not legend(ax) and len(ax.collections[0].get_offsets()) == 60


def test_axes_that_are_given_are_drawn_on() -> None:
    figure, (first, second, third, fourth) = pyplot.subplots(1, 4)
    assert plots.recall_curve(IVF, ax=first) is first
    assert plots.collection_map(projection(["a"]), ax=second) is second
    assert plots.build_costs(ROWS, axes=(third, fourth)) == (third, fourth)
    assert pyplot.get_fignums() == [figure.number]


@pytest.mark.core
def test_pictures_of_a_real_index(memory: Any, vectors: Vectors, tmp_path: Any) -> None:
    create_table(memory, vectors)
    handle = duckvec.load(memory)
    made = handle.create("items", "IVF_FLAT", PARAMS["IVF_FLAT"])
    memory.execute("ALTER TABLE items ADD COLUMN code UUID DEFAULT uuid()")
    memory.execute("ALTER TABLE items ADD COLUMN mixed UNION(n INTEGER, t VARCHAR)")
    memory.execute("UPDATE items SET mixed = id::INTEGER WHERE id % 2 = 0")
    memory.execute("UPDATE items SET mixed = 'odd' WHERE id % 2 = 1")
    drawings: Any = enumerate(
        (
            plots.recall_curve(handle.tune("items", sample=3)),
            plots.build_costs([made])[0],
            plots.collection_map(handle.project("items", "price", sample=200)),
            plots.collection_map(handle.project("items", "code", sample=50)),
            plots.collection_map(handle.project("items", "mixed", sample=50)),
        )
    )
    for number, drawn in drawings:
        file = tmp_path / f"{number}.png"
        drawn.figure.savefig(file)
        assert file.read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ParameterError, match="tunings"):
        plots.recall_curve([])
    with pytest.raises(ParameterError, match="rows"):
        plots.build_costs([])
    with pytest.raises(ParameterError, match="outside"):
        plots.recall_curve(IVF, recall=1.5)
    assert not pyplot.get_fignums()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for call in (
        lambda: plots.recall_curve(IVF),
        lambda: plots.build_costs(ROWS),
        lambda: plots.collection_map(projection(None)),
    ):
        with pytest.raises(MissingLibraryError) as caught:
            call()
        assert str(caught.value) == (
            "duckvec.plots needs matplotlib, which is not installed: "
            'pip install "duckvec[plots]"'
        )
