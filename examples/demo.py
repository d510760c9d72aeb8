"""`make demo`: find packages that are like another, and compare the index types.

Loads 6,000 package summaries with their embeddings into a DuckDB file, builds an index
of seven types over them one after the other, and leaves the database and a picture of
the comparison in examples/output/.
"""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb

import duckvec
from duckvec import plots

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from tqdm import tqdm
except ImportError as error:
    raise SystemExit(
        f'the demo needs {error.name}: pip install ".[all,demo]", or run `make demo`'
    ) from None

HERE = Path(__file__).parent
DATA = HERE / "data"
OUTPUT = HERE / "output"
DATABASE = OUTPUT / "packages.duckdb"
PICTURE = OUTPUT / "comparison.png"

TYPES: dict[str, dict[str, int]] = {
    "FLAT": {},
    "IVF_FLAT": {"nlist": 128},
    "IVF_SQ8": {"nlist": 128},
    "IVF_PQ": {"nlist": 128, "m": 16},
    "NSG": {
        "search_length": 60,
        "out_degree": 40,
        "candidate_pool_size": 200,
        "knng": 60,
    },
    "HNSW": {"M": 16, "efConstruction": 200},
    "ANNOY": {"n_trees": 50},
}
COLOURS = {"plain scan": "#4d4d4d", **plots.COLOURS}
LIKE_THESE = ("django-core", "ec2ssh")

SIMILAR = """
SELECT
    name,
    CASE WHEN n_chars > 34 THEN summary[:33] || '…' ELSE summary END AS summary,
    category,
    distance
FROM vector_search(
    'packages',
    (SELECT embedding FROM packages WHERE name = $name),
    6
)
WHERE name <> $name
ORDER BY distance
"""
ONE_SEARCH = """
FROM vector_search('packages', (SELECT embedding FROM queries WHERE id = $query), 10)
SELECT id, distance
"""
ALL_SEARCHES = """
SELECT queries.id AS query, hit.id, hit.distance
FROM queries, vector_search('packages', queries.embedding, 10) AS hit
"""
RECALL = f"""
WITH farthest AS (SELECT query, max(distance) AS distance FROM exact GROUP BY query)
SELECT count(*) / (SELECT count(*) FROM exact)
FROM ({ALL_SEARCHES}) AS found
JOIN farthest USING (query)
WHERE found.distance <= farthest.distance + 1e-6
"""

NEXT_LINES = (
    "CALL create_vector_index('packages', 'HNSW', "
    """'{"M": 16, "efConstruction": 200}');""",
    "SELECT name, summary, distance FROM vector_search('packages', "
    "(SELECT embedding FROM queries WHERE name = 'logguard'), 5);",
    "CALL drop_vector_index('packages');",
)


@dataclass(frozen=True)
class Measured:
    """What one way to search costs, and what it finds."""

    name: str
    params: str
    build_seconds: float
    size_bytes: int
    recall: float
    one_ms: float
    joined_ms: float


def main() -> None:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    con = open_database()
    console = Console()
    console.print(
        f"{count(con, 'packages'):,} packages and {count(con, 'queries')} queries are "
        f"in {shown(DATABASE)}.\n"
    )
    measured = measure_all(con)
    for name in LIKE_THESE:
        console.print(similar_table(con, name))
        console.print()
    console.print(comparison_table(measured))
    draw(measured)
    con.close()
    print(f"\nThe same as a picture: {shown(PICTURE)}")
    print("\nTo go on from here, in Python:\n")
    print(f'import duckvec; con = duckvec.connect("{shown(DATABASE)}")')
    print("\nand then, each with con.sql(…):\n")
    print("\n".join(NEXT_LINES))


def open_database() -> duckdb.DuckDBPyConnection:
    """Return a new database file with the packages and the queries in it."""
    OUTPUT.mkdir(exist_ok=True)
    DATABASE.unlink(missing_ok=True)
    DATABASE.with_name(DATABASE.name + ".wal").unlink(missing_ok=True)
    shutil.rmtree(DATABASE.with_name(DATABASE.name + ".duckvec"), ignore_errors=True)
    con = duckvec.connect(str(DATABASE))
    for table in ("packages", "queries"):
        file = str(DATA / f"{table}.parquet").replace("'", "''")
        con.execute(
            f"CREATE TABLE {table} AS "
            f"SELECT * REPLACE (embedding::FLOAT[384] AS embedding) FROM '{file}'"
        )
    return con


def count(con: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(con.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


def shown(path: Path) -> str:
    """Return the path as seen from the current folder, where it lies in it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


# Measuring


def measure_all(con: duckdb.DuckDBPyConnection) -> list[Measured]:
    """Measure the plain scan, then build and measure each index type."""
    steps = tqdm(total=1 + len(TYPES), unit="type", desc="plain scan", leave=False)
    with steps:
        con.execute(f"CREATE TABLE exact AS {ALL_SEARCHES}")
        results = [measure(con, "plain scan", "", 0.0, 0)]
        for index_type, params in TYPES.items():
            steps.update()
            steps.set_description(f"{index_type:8}")
            _, _, _, _, used, _, _, _, size, seconds = con.execute(
                "FROM create_vector_index('packages', $index_type, $params)",
                {"index_type": index_type, "params": json.dumps(params)},
            ).fetchall()[0]
            results.append(measure(con, index_type, used, seconds, size))
        steps.update()
    return results


def measure(
    con: duckdb.DuckDBPyConnection, name: str, params: str, seconds: float, size: int
) -> Measured:
    queries = count(con, "queries")
    recall = con.execute(RECALL).fetchall()[0][0]
    started = time.perf_counter()
    con.execute(ALL_SEARCHES).fetchall()
    joined = (time.perf_counter() - started) / queries
    times = []
    for query in range(queries):
        started = time.perf_counter()
        con.execute(ONE_SEARCH, {"query": query}).fetchall()
        times.append(time.perf_counter() - started)
    one = statistics.median(times)
    return Measured(name, params, seconds, size, recall, one * 1000, joined * 1000)


# Tables


def similar_table(con: duckdb.DuckDBPyConnection, name: str) -> Table:
    summary = con.execute(
        "SELECT summary FROM packages WHERE name = $name", {"name": name}
    ).fetchall()[0][0]
    table = Table(
        title=f"Packages like [bold]{name}[/bold]: {summary}",
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("name", style="bold", no_wrap=True, max_width=20)
    table.add_column("summary", no_wrap=True, min_width=34)
    table.add_column("category", no_wrap=True, min_width=8)
    table.add_column("distance", justify="right", no_wrap=True, min_width=8)
    for found, text, category, distance in con.execute(
        SIMILAR, {"name": name}
    ).fetchall():
        table.add_row(found, text, category, f"{distance:.3f}")
    return table


def comparison_table(results: list[Measured]) -> Table:
    table = Table(
        title="The index types, with their default search parameters",
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        caption="one query ms: the median of 50 statements, most of it DuckDB's own\n"
        "work for a statement; joined ms: for each of 50 queries in one kNN join.\n"
        "6,000 rows are soon scanned; with more rows the scan takes longer.",
        caption_justify="left",
    )
    table.add_column("type", style="bold", no_wrap=True)
    for heading in ("build s", "size MB", "recall@10", "one query ms", "joined ms"):
        table.add_column(heading, justify="right")
    for one in results:
        built = one.size_bytes > 0
        table.add_row(
            one.name,
            f"{one.build_seconds:.1f}" if built else "-",
            f"{one.size_bytes / 1e6:.1f}" if built else "-",
            f"{one.recall:.3f}",
            f"{one.one_ms:.1f}",
            f"{one.joined_ms:.2f}",
        )
    return table


# The picture


def draw(results: list[Measured]) -> None:
    """Save recall against time, and what each index costs, as a picture."""
    figure = Figure(figsize=(12, 5.6), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(
        1, 3, gridspec_kw={"width_ratios": [2.4, 1, 1]}
    )
    draw_recall(left, results)
    built = [one for one in results if one.size_bytes][::-1]
    draw_bars(middle, built, [one.build_seconds for one in built], "build time, s")
    draw_bars(right, built, [one.size_bytes / 1e6 for one in built], "size, MB")
    right.set_yticklabels([])
    figure.suptitle("6,000 packages, 384 dimensions, 50 queries, k = 10")
    figure.draw_without_rendering()
    place_labels(left, results)
    figure.savefig(PICTURE)


def draw_recall(axes: Axes, results: list[Measured]) -> None:
    for one in results:
        axes.scatter(one.one_ms, one.recall, s=70, color=COLOURS[one.name], zorder=3)
    lowest = min(one.recall for one in results)
    axes.set_ylim(min(0.94, lowest - 0.02), 1.012)
    axes.set_xlim(0, 1.15 * max(one.one_ms for one in results))
    axes.set_xlabel("ms per query, median of 50 (left is faster)")
    axes.set_ylabel("recall@10 (up is better)")
    axes.set_title("What a search finds, and how fast")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def draw_bars(
    axes: Axes, built: list[Measured], values: list[float], title: str
) -> None:
    names = [one.name for one in built]
    bars = axes.barh(names, values, color=[COLOURS[name] for name in names])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.margins(x=0.2)
    axes.set_title(title)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def place_labels(axes: Axes, results: list[Measured]) -> None:
    """Write each name next to its point, where it covers no point and no other name."""
    to_pixels = axes.transData.transform
    points = [to_pixels((one.one_ms, one.recall)) for one in results]
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in points]
    for one in sorted(results, key=lambda one: one.one_ms):
        for distance, side in [(d, s) for d in range(9, 150, 6) for s in range(8)]:
            across = (1, -1, 0, 0, 1, 1, -1, -1)[side] * distance
            up = (0, 0, 1, -1, 1, -1, 1, -1)[side] * distance
            label = axes.annotate(
                one.name,
                (one.one_ms, one.recall),
                (across, up),
                textcoords="offset points",
                ha=("left", "right", "center")[0 if across > 0 else 1 if across else 2],
                va="center",
                color=COLOURS[one.name],
                fontweight="bold",
                arrowprops={"arrowstyle": "-", "color": "#999999"}
                if distance > 20
                else None,
            )
            space = label.get_window_extent()
            inside = axes.bbox.contains(space.x0, space.y0) and axes.bbox.contains(
                space.x1, space.y1
            )
            if inside and not any(space.overlaps(other) for other in taken):
                taken.append(space)
                break
            label.remove()


if __name__ == "__main__":
    main()
