"""The results drawn: recall against time, and the ratios to the raw library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duckvec.plots import BLUE, GREY, ORANGE


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write a PNG; where matplotlib is not installed, say so.

    Without types there is nothing to draw.
    """
    if not results["types"]:
        return
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no drawing")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
    _draw_recall(axes[0], results)
    _draw_bars(axes[1], results, "join_ratio", "kNN join, queries/s: SQL / raw", 0.5)
    _draw_bars(
        axes[2], results, "whole_build_ratio", "build, seconds: SQL / by hand", 1.3
    )
    figure.suptitle(results["data"], fontsize=10)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _draw_recall(axis: Any, results: Mapping[str, Any]) -> None:
    sides = (("raw", BLUE, "o", "raw library"), ("sql", ORANGE, "s", "duckvec, SQL"))
    for side, colour, marker, label in sides:
        rows = results["types"].values()
        axis.scatter(
            [row[f"{side}_ms"] for row in rows],
            [row[f"{side}_recall"] for row in rows],
            color=colour,
            marker=marker,
            label=label,
            zorder=3,
        )
    apart, height = 0.035 * _spread(results), float("inf")
    nearest_first = sorted(
        results["types"].items(), key=lambda item: -item[1]["raw_recall"]
    )
    for name, row in nearest_first:
        axis.plot(
            [row["raw_ms"], row["sql_ms"]],
            [row["raw_recall"], row["sql_recall"]],
            color=GREY,
            linewidth=0.7,
        )
        height = min(height - apart, row["raw_recall"])
        axis.annotate(
            name,
            (row["raw_ms"], row["raw_recall"]),
            xytext=(row["raw_ms"] / 1.25, height),
            fontsize=7,
            horizontalalignment="right",
            verticalalignment="center",
        )
    plain = results["duckdb"]
    axis.scatter(
        plain["scan_ms"], plain["scan_recall"], color=GREY, marker="^", label="scan"
    )
    axis.axhline(0.95, color=GREY, linewidth=0.7, linestyle="--")
    axis.set_xscale("log")
    axis.margins(x=0.3)
    axis.set_xlabel("one query, ms (log)")
    axis.set_title("recall@10 against time, L2", fontsize=10)
    axis.legend(fontsize=7, loc="lower right")


def _spread(results: Mapping[str, Any]) -> float:
    recalls = [row["raw_recall"] for row in results["types"].values()]
    return max(0.02, max(recalls) - min(recalls))


def _draw_bars(
    axis: Any, results: Mapping[str, Any], name: str, title: str, mark: float
) -> None:
    types = list(results["types"])
    values = [results["types"][kind][name] for kind in types]
    bars = axis.barh(types, values, color=ORANGE)
    axis.bar_label(bars, [f"{value:.2f}" for value in values], fontsize=7, padding=2)
    axis.axvline(1, color=BLUE, linewidth=0.8)
    axis.axvline(mark, color=GREY, linewidth=0.8, linestyle="--")
    axis.invert_yaxis()
    axis.margins(x=0.15)
    if max(values) > 10 * min(values):
        axis.set_xscale("log")
        axis.set_xlim(right=max(values) * 2)
    axis.tick_params(labelsize=8)
    axis.set_title(f"{title} (mark {mark})", fontsize=10)
