"""What SQL asks of an index, beside the raw library and beside DuckDB by itself.

Single searches and large joins of a table at rest, filters, range searches, and the
memory of a very large join.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from benchmarks.data import (
    Dataset,
    Truth,
    build_params,
    clustered,
    create_database,
    with_copies,
)
from benchmarks.filters import (
    ExactAnswers,
    measure_filters,
    measure_joins,
    measure_lateral,
    spread_prices,
)
from benchmarks.memory import measure_memory
from benchmarks.ranges import measure_ranges, radii_of
from benchmarks.raw import new_raw
from benchmarks.searches import (
    SINGLE,
    create_index,
    measure_searches,
    open_database,
    rest,
)

PARTS = ("rest", "filters", "ranges", "memory")
ROWS, DIMENSION = 100_000, 128
WIDE_ROWS, WIDE_DIMENSION = 60_000, 384
COPIES = 3
BATCH = 10_000
JUDGED = 1000
REST_TYPES = ("FLAT", "IVF_FLAT", "IVF_SQ8", "HNSW")
WIDE_TYPES = ("FLAT", "IVF_FLAT", "HNSW")


def measure_surface(
    folder: Path,
    packages: Dataset,
    *,
    parts: Collection[str] = PARTS,
    rounds: int,
    most_rows: int | None = None,
    join_queries: int,
) -> dict[str, Any]:
    """Return what the parts asked for measure, by their names.

    Args:
        folder: an empty one, for database files.
        packages: what filters and ranges are measured on, three times over, where it
            is large enough.
        parts: names of PARTS.
        rounds: how often the sides take turns.
        most_rows: of a table, and of the batch; for a trial.
        join_queries: how many queries the join has whose memory is measured.
    """
    rows = min(ROWS, most_rows or ROWS)
    found: dict[str, Any] = {"seconds": {}}

    def noted(name: str, started: float) -> None:
        found["seconds"][name] = time.perf_counter() - started
        print(f"search surface, {name}: {found['seconds'][name]:.0f} s", flush=True)

    if "rest" in parts:
        started = time.perf_counter()
        data = clustered(rows, DIMENSION)
        found["rest"] = _at_rest(folder, data, min(BATCH, most_rows or BATCH), rounds)
        noted("rest", started)
    wide = [part for part in ("filters", "ranges") if part in parts]
    if wide:
        started = time.perf_counter()
        data = _wide_data(packages, min(WIDE_ROWS, most_rows or WIDE_ROWS))
        found |= _on_wide_rows(folder, data, wide, rounds)
        noted(" and ".join(wide), started)
    if "memory" in parts:
        started = time.perf_counter()
        found["memory"] = measure_memory(folder, rows, join_queries)
        noted("memory", started)
    return found


def _at_rest(folder: Path, data: Dataset, batch: int, rounds: int) -> dict[str, Any]:
    data = Dataset(data.title, data.rows, data.queries, None, batch)
    path = folder / "rest.db"
    create_database(path, data)
    truths = {
        "single": Truth(data.rows, data.queries, "L2"),
        "batch": Truth(data.rows, data.batch[:JUDGED], "L2"),
    }
    types: dict[str, Any] = {}
    for index_type in REST_TYPES:
        params = build_params(index_type, len(data.rows), data.dimension)
        raw_file = folder / f"{index_type}.raw"
        with open_database(path) as con:
            threads = _threads(con)
            raw = new_raw(index_type, data.dimension, params, threads)
            raw.build(data.rows)
            raw.save(raw_file)
            del raw
            create_index(con, index_type, params)
            types[index_type] = measure_searches(
                con,
                index_type,
                params,
                raw_file,
                data,
                truths,
                threads,
                rounds,
                to_arrow=True,
            )
        raw_file.unlink()
    return {"data": data.title, "batch": len(data.batch), "types": types}


def _threads(con: duckdb.DuckDBPyConnection) -> int:
    return int(con.execute("SELECT current_setting('threads')").fetchall()[0][0])


def _wide_data(packages: Dataset, rows: int) -> Dataset:
    """Return the packages three times over, or synthetic rows where those are few."""
    if packages.source is None or len(packages.rows) * COPIES < rows:
        return clustered(rows, WIDE_DIMENSION)
    first = packages.rows[: rows // COPIES]
    part = Dataset(packages.title, first, packages.queries, None)
    return with_copies(part, COPIES)


def _on_wide_rows(
    folder: Path, data: Dataset, parts: Collection[str], rounds: int
) -> dict[str, Any]:
    """Measure filters, ranges or both, each index type on the same table."""
    path = folder / "wide.db"
    create_database(path, data)
    found: dict[str, Any] = {part: {"data": data.title, "types": {}} for part in parts}
    with open_database(path) as con:
        spread_prices(con)
        exact = ExactAnswers(con, data) if "filters" in parts else None
        radii = radii_of(con, data) if "ranges" in parts else None
        for index_type in WIDE_TYPES:
            params = build_params(index_type, len(data.rows), data.dimension)
            create_index(con, index_type, params)
            _rest(con, data.queries)
            if exact is not None:
                row = {
                    "single": measure_filters(con, data, exact, rounds),
                    "join": measure_joins(con, exact, rounds),
                }
                if index_type == "FLAT":
                    row["lateral"] = measure_lateral(con, data, exact, rounds)
                found["filters"]["types"][index_type] = row
            if radii is not None:
                row = measure_ranges(con, data, radii, rounds)
                found["ranges"]["types"][index_type] = row
    return found


def _rest(con: duckdb.DuckDBPyConnection, queries: NDArray[np.float32]) -> None:
    first = queries[0].tolist()
    rest(lambda number: con.execute(SINGLE, [first]).fetchall())
