"""Pictures of what was measured: recall against time, build costs, a map of rows.

Each function draws one result of the handle's, on axes that are given or made, and
returns them; nothing is measured or read here. Needs matplotlib. Types have the same
colours and markers everywhere: they can be told apart in print and by the colour-blind.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from duckvec.errors import MissingLibraryError, ParameterError
from duckvec.projecting import Projection
from duckvec.tuning import Tuning, check_recall

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#2f6db3", "#d9822b", "#8a8a8a"
COLOURS = {
    "FLAT": "#1b4f9c",
    "IVF_FLAT": "#009e73",
    "IVF_SQ8": "#2393c2",
    "IVF_SQ8H": "#5f7fa3",
    "IVF_PQ": "#d55e00",
    "NSG": "#cc79a7",
    "HNSW": "#a6761d",
    "ANNOY": "#7a4fb5",
}
MARKERS = dict(zip(COLOURS, "so^vDPX*", strict=True))
OTHER_COLOUR = "#4d4d4d"  # of a type that another package brings

# Values of a column with colours of their own, the most frequent, which lies under the
# others, pale; the rest of them are grey.
_VALUES = (
    ("#56b4e9", "o"),
    ("#d55e00", "^"),
    ("#009e73", "s"),
    ("#e69f00", "D"),
    ("#cc79a7", "v"),
    ("#0072b2", "P"),
    ("#000000", "X"),
)
REST_COLOUR = "#c4c4c4"
# So much below the recall wanted, curves are of no interest.
_SHOWN_BELOW = 0.2


def recall_curve(
    tunings: Tuning | Sequence[Tuning],
    *,
    recall: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """Draw recall against the time of a query, a line for each tuning.

    The setting that is recommended for the recall wanted is large, and in the legend;
    the exact scan is a dashed line, and settings that come down to it have no point.
    Recalls 0.2 below the one wanted are out of view.

    Args:
        tunings: what `VectorIndexes.tune` returned, once or several times.
        recall: the one wanted.
        ax: where to draw; by default on a new figure.

    Raises:
        MissingLibraryError: matplotlib is not installed.
        ParameterError: there is no tuning, or `recall` is none.
    """
    several = [tunings] if isinstance(tunings, Tuning) else list(tunings)
    if not several:
        raise ParameterError("tunings = [] is empty; give what tune() returned")
    check_recall(recall)
    ax = ax or _new_axes(1, (8.0, 4.4))[0]
    for tuning in several:
        _draw_tuning(ax, tuning, recall, _name_of(tuning, several))
    exact = float(np.median([tuning.exact_ms for tuning in several]))
    ax.axvline(exact, color=GREY, linestyle="--", linewidth=1.2, label="exact scan")
    ax.axhline(recall, color=GREY, linestyle=":", linewidth=1.2)
    ax.set_xscale("log")
    _plain_ticks(ax)
    best = [max(tuning.table["recall"].to_pylist()) for tuning in several]
    lowest = min(recall - _SHOWN_BELOW, min(best) - _SHOWN_BELOW / 4)
    ax.set_ylim(lowest, 1 + 0.04 * (1 - lowest))
    first = several[0]
    ax.set_xlabel("time per query, ms (median; log scale; left is faster)")
    ax.set_ylabel(f"recall@{first.k} (up is better)")
    ax.set_title(f"Recall against time: {first.collection}, {first.metric}")
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    _legend_beside(ax)
    return ax


def build_costs(
    rows: Sequence[Mapping[str, Any]],
    *,
    axes: tuple[Axes, Axes] | None = None,
) -> tuple[Axes, Axes]:
    """Draw how long each index took to build, and how large it is.

    Args:
        rows: what `VectorIndexes.create` returned, for one index after another: what
            counts is index_type, build_seconds, size_bytes and row_count.
        axes: two, where to draw; by default side by side on a new figure.

    Raises:
        MissingLibraryError: matplotlib is not installed.
        ParameterError: there is no row.
    """
    if not rows:
        raise ParameterError("rows = [] is empty; give what create() returned")
    height = 1.4 + 0.36 * len(rows)
    left, right = axes or _new_axes(2, (8.0, height))
    names = _distinct([str(row["index_type"]) for row in rows])
    colours = [_colour(str(row["index_type"])) for row in rows]
    seconds = [float(row["build_seconds"]) for row in rows]
    megabytes = [row["size_bytes"] / 1e6 for row in rows]
    for ax, values, label in (
        (left, seconds, "build time, seconds"),
        (right, megabytes, "size on disk, MB (10⁶ bytes)"),
    ):
        bars = ax.barh(range(len(rows)), values, color=colours)
        ax.bar_label(bars, [f"{value:.3g}" for value in values], padding=3)
        ax.set_yticks(range(len(rows)), names)
        ax.invert_yaxis()
        ax.set_xlim(0, 1.18 * max(max(values), 1e-9))
        ax.set_xlabel(label)
        ax.spines[["top", "right"]].set_visible(False)
    left.set_title(f"{rows[0]['row_count']:,} rows, {rows[0]['metric']}", loc="left")
    return left, right


def collection_map(projection: Projection, *, ax: Axes | None = None) -> Axes:
    """Draw rows as points in the plane, coloured by a column.

    Numbers, dates and times have a scale of colours. Of other columns, and of whole
    numbers with few values, the most frequent values have colours and markers.

    Args:
        projection: what `VectorIndexes.project` returned.
        ax: where to draw; by default on a new figure.

    Raises:
        MissingLibraryError: matplotlib is not installed.
    """
    ax = ax or _new_axes(1, (7.5, 5.2))[0]
    table = projection.table
    x, y = table["x"].to_numpy(), table["y"].to_numpy()
    if projection.color_by is None:
        ax.scatter(x, y, s=9, color=BLUE, alpha=0.6, linewidths=0)
    elif _has_scale(table["value"]):
        _draw_scale(ax, x, y, table["value"], projection.color_by)
    else:
        _draw_values(ax, x, y, table["value"].to_pylist(), projection.color_by)
    for axis, name, share in zip(
        (ax.xaxis, ax.yaxis), ("first", "second"), projection.shares, strict=True
    ):
        axis.set_label_text(f"{name} component ({100 * share:.0f} % of the variance)")
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_title(f"{projection.collection}: {table.num_rows:,} rows")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _new_axes(columns: int, size: tuple[float, float]) -> list[Axes]:
    """Return axes side by side on a new figure of pyplot's, which notebooks show."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingLibraryError("duckvec.plots", "plots", "matplotlib") from error
    _, axes = pyplot.subplots(
        1, columns, figsize=size, layout="constrained", squeeze=False
    )
    return list(axes[0])


def _draw_tuning(ax: Axes, tuning: Tuning, recall: float, name: str) -> None:
    colour = _colour(tuning.index_type)
    marker = MARKERS.get(tuning.index_type, "o")
    best = _recommended(tuning, recall)
    label = f"{name}: below {recall:g}"
    if best is not None:
        given = ", ".join(f"{key} {value}" for key, value in best.items())
        label = f"{name}: {given}" if given else name
    rows = tuning.table.to_pylist()
    # One that scans is far away from the others, and no step of the same curve.
    rows = [row for row in rows if row["route"] != "exact"] or rows
    times = [row["index_ms"] for row in rows]
    recalls = [row["recall"] for row in rows]
    ax.plot(
        times,
        recalls,
        label=label,
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.4,
        zorder=2,
    )
    for row in rows:
        if best is not None and row["params"] == json.dumps(best):
            ax.plot(
                row["index_ms"],
                row["recall"],
                color=colour,
                marker=marker,
                markersize=11,
                markeredgecolor="black",
                zorder=3,
            )


def _recommended(tuning: Tuning, recall: float) -> dict[str, Any] | None:
    """Return what is recommended, None where no setting reached the recall."""
    try:
        return tuning.recommend(recall)
    except ParameterError:
        return None


def _name_of(tuning: Tuning, all_of_them: Sequence[Tuning]) -> str:
    """Return the type of a tuning's index, and what it is on, where types repeat."""
    same = [each for each in all_of_them if each.index_type == tuning.index_type]
    if len(same) == 1:
        return tuning.index_type
    return f"{tuning.index_type} on {tuning.collection}.{tuning.column_name}"


def _distinct(names: Sequence[str]) -> list[str]:
    """Number the names that come several times."""
    total, seen = Counter(names), Counter[str]()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if total[name] == 1 else f"{name} ({seen[name]})")
    return result


def _colour(index_type: str) -> str:
    return COLOURS.get(index_type, OTHER_COLOUR)


def _plain_ticks(ax: Axes) -> None:
    """Write the ticks of a short logarithmic axis as numbers, and not too many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 3, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _has_scale(values: pa.ChunkedArray) -> bool:
    kind = values.type
    if pa.types.is_integer(kind):
        return len(values.unique()) > len(_VALUES)
    return bool(
        pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_date(kind)
        or pa.types.is_timestamp(kind)
    )


def _draw_scale(ax: Axes, x: Any, y: Any, values: pa.ChunkedArray, name: str) -> None:
    """Draw points coloured by numbers or times; those without one are grey."""
    import matplotlib.dates

    dates: Any = matplotlib.dates  # it has few types
    is_time = pa.types.is_temporal(values.type)
    known = np.array([value is not None for value in values.to_pylist()])
    found = [value for value in values.to_pylist() if value is not None]
    numbers = dates.date2num(found) if is_time else np.array(found, dtype=float)
    ax.scatter(x[~known], y[~known], s=7, color=REST_COLOUR, linewidths=0)
    points = ax.scatter(
        x[known], y[known], s=9, c=numbers, cmap="viridis", linewidths=0
    )
    bar = ax.figure.colorbar(points, ax=ax, label=name)
    if is_time:
        bar.ax.yaxis.set_major_formatter(
            dates.ConciseDateFormatter(bar.ax.yaxis.get_major_locator())
        )


def _draw_values(ax: Axes, x: Any, y: Any, values: Sequence[Any], name: str) -> None:
    """Draw points coloured by value, the most frequent values apart from the rest."""
    texts = np.array(["NULL" if value is None else str(value) for value in values])
    counts = Counter(texts.tolist()).most_common()
    most = counts[: len(_VALUES)]
    rest = ~np.isin(texts, [text for text, _ in most])
    if rest.any():
        label = f"{len(counts) - len(most)} more ({int(rest.sum()):,})"
        ax.scatter(x[rest], y[rest], s=7, color=REST_COLOUR, linewidths=0, label=label)
    for (text, count), (colour, marker) in zip(most, _VALUES, strict=False):
        own = texts == text
        shown = text if len(text) <= 24 else text[:23] + "…"
        ax.scatter(
            x[own],
            y[own],
            s=9,
            color=colour,
            marker=marker,
            alpha=0.75,
            linewidths=0,
            label=f"{shown} ({count:,})",
        )
    handles, labels = ax.get_legend_handles_labels()
    if rest.any():  # the rest lies under all others, and comes last in the legend
        handles, labels = handles[1:] + handles[:1], labels[1:] + labels[:1]
    _legend_beside(ax, handles, labels, title=name, markerscale=2)


def _legend_beside(ax: Axes, *entries: Any, **options: Any) -> None:
    """Put the legend where it covers no point."""
    ax.legend(
        *entries,
        fontsize=9,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
        **options,
    )
