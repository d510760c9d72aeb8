"""`python -m benchmarks`: measure every index type, and write the results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import duckdb

from benchmarks import report, summary
from benchmarks.builds import run_build
from benchmarks.changes import measure_changes
from benchmarks.data import (
    REPOSITORY,
    Dataset,
    K,
    Truth,
    build_params,
    clustered,
    create_database,
    load_packages,
)
from benchmarks.opening import measure_opening
from benchmarks.searches import (
    measure_duckdb,
    measure_reading,
    measure_searches,
    open_database,
    recall_of,
)
from benchmarks.surface import PARTS, measure_surface
from tools import write_docs

TYPES = ("FLAT", "IVF_FLAT", "IVF_SQ8", "IVF_SQ8H", "IVF_PQ", "NSG", "HNSW", "ANNOY")
PACKAGES = ("duckdb", "faiss-cpu", "hnswlib", "annoy", "numpy", "pyarrow")
RESULTS = REPOSITORY / "benchmarks" / "results"


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    data = (
        clustered(options.rows, options.dim)
        if options.rows
        else load_packages(options.data)
    )
    with tempfile.TemporaryDirectory(prefix="duckvec-bench-") as folder:
        results = _measure(data, options, Path(folder))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report.write(results, options.output)
    report.show(results)
    if options.docs:
        report.put_into(results, REPOSITORY / "docs" / "performance.md")
        summary.put_into(results, REPOSITORY / "README.md")
        write_docs.write()


def _measure(
    data: Dataset, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    print(data.title, flush=True)
    started = time.perf_counter()
    database = folder / "bench.db"
    create_database(database.with_suffix(".new"), data)
    _renew(database)
    truths = {
        "single": Truth(data.rows, data.queries, "L2"),
        "batch": Truth(data.rows, data.batch, "L2"),
        "COSINE": Truth(data.rows, data.queries, "COSINE"),
    }
    with open_database(database) as con:
        threads = con.execute("SELECT current_setting('threads')").fetchall()[0][0]
        plain = measure_duckdb(con, data, truths["single"], options.rounds)
        plain["read_seconds"] = measure_reading(con, options.rounds)
    results: dict[str, Any] = {
        "data": data.title,
        "rows": len(data.rows),
        "dimension": data.dimension,
        "vector_bytes": data.rows.nbytes,
        "batch": len(data.batch),
        "k": K,
        "date": str(date.today()),
        "threads": threads,
        "cpus": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "duckdb": plain,
        "types": {},
    }
    for index_type in options.types:
        params = build_params(index_type, len(data.rows), data.dimension)
        found = _measure_builds(index_type, params, database, threads, options)
        raw_file = folder / f"{index_type}.raw"
        with open_database(database) as con:
            found |= _size(con)
            found |= measure_searches(
                con, index_type, params, raw_file, data, truths, threads, options.rounds
            )
            _create_cosine(con, index_type, params)
            found["cosine_recall"] = recall_of(con, data, truths["COSINE"])
        found["raw_bytes"] = raw_file.stat().st_size
        raw_file.unlink()
        results["types"][index_type] = {"params": params, **found}
        print(
            f"{index_type}: build {found['whole_build_ratio']:.2f}x, one query "
            f"{found['sql_ms']:.2f} ms, batch {found['join_ratio']:.2f}x, recall "
            f"{found['sql_recall']:.3f}",
            flush=True,
        )
    if options.changes:
        (folder / "changes").mkdir()
        results["changes"] = measure_changes(folder / "changes")
    if options.surface:
        (folder / "surface").mkdir()
        results["surface"] = measure_surface(
            folder / "surface",
            data,
            parts=options.surface_parts,
            rounds=options.rounds,
            most_rows=options.surface_rows,
            join_queries=options.join_queries,
        )
    if options.opening:
        (folder / "opening").mkdir()
        results["opening"] = measure_opening(folder / "opening", options.segments)
    results["seconds"] = time.perf_counter() - started
    return results


def _measure_builds(
    index_type: str,
    params: dict[str, int],
    database: Path,
    threads: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    order = {
        "index_type": index_type,
        "params": params,
        "threads": threads,
        "file": str(database.parent / f"{index_type}.raw"),
        "database": str(database),
    }
    sides: dict[str, list[dict[str, Any]]] = {"raw": [], "duckvec": []}
    started = time.perf_counter()
    while len(sides["raw"]) < 2 or (
        len(sides["raw"]) < options.build_rounds
        and time.perf_counter() - started < options.build_seconds
    ):
        _renew(database)
        for side, builds in sides.items():
            builds.append(run_build({**order, "side": side}))
    raw, own = sides["raw"], sides["duckvec"]
    pairs = list(zip(raw, own, strict=True))
    return {
        "builds": len(raw),
        "raw_read_seconds": median(build["read_seconds"] for build in raw),
        "raw_build_seconds": median(build["seconds"] for build in raw),
        "raw_save_seconds": median(build["save_seconds"] for build in raw),
        "build_seconds": median(build["seconds"] for build in own),
        "build_ratio": median(two["seconds"] / one["seconds"] for one, two in pairs),
        "whole_build_ratio": median(two["seconds"] / _whole(one) for one, two in pairs),
        "raw_peak_bytes": _median(raw, "peak_bytes"),
        "peak_bytes": _median(own, "peak_bytes"),
    }


def _whole(raw: dict[str, Any]) -> float:
    """Return what it takes without duckvec to read, build, and keep the index."""
    return float(raw["read_seconds"] + raw["seconds"] + raw["save_seconds"])


def _renew(database: Path) -> None:
    """Start again from the database without an index or artifacts."""
    shutil.rmtree(f"{database}.duckvec", ignore_errors=True)
    Path(f"{database}.wal").unlink(missing_ok=True)
    shutil.copyfile(database.with_suffix(".new"), database)


def _median(builds: list[dict[str, Any]], name: str) -> float | None:
    values = [build[name] for build in builds]
    return None if None in values else median(values)


def _size(con: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    size, state = con.execute(
        "SELECT size_bytes, state FROM vector_indexes()"
    ).fetchall()[0]
    if state != "ready":
        raise SystemExit(f"the index is not ready but {state}")
    return {"bytes": size}


def _create_cosine(
    con: duckdb.DuckDBPyConnection, index_type: str, params: dict[str, int]
) -> None:
    con.execute(
        "CALL create_vector_index('items', $index_type, $params, metric := 'COSINE')",
        {"index_type": index_type, "params": json.dumps(params)},
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of packages.parquet and queries.parquet (default: ../shared/data "
        "beside the checkout where it is there, else examples/data)",
    )
    parser.add_argument(
        "--rows", type=int, help="search so many synthetic rows instead"
    )
    parser.add_argument("--dim", type=int, default=128, help="their length (128)")
    parser.add_argument(
        "--types", nargs="*", default=TYPES, type=str.upper, choices=TYPES
    )
    parser.add_argument(
        "--changes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure searches and writes while a table changes, too",
    )
    parser.add_argument(
        "--opening",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the opening of a database with many segments, too",
    )
    parser.add_argument(
        "--segments", type=int, default=20, help="so many, of 50,000 rows (20)"
    )
    parser.add_argument(
        "--surface",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the search surface, too",
    )
    parser.add_argument(
        "--surface-parts",
        nargs="*",
        default=PARTS,
        choices=PARTS,
        help=f"parts of it ({' '.join(PARTS)})",
    )
    parser.add_argument(
        "--surface-rows",
        type=int,
        help="no more rows in its tables: for a trial, 5,000 or more",
    )
    parser.add_argument(
        "--join-queries",
        type=int,
        default=1_000_000,
        help="queries of the join whose memory is measured (1,000,000)",
    )
    parser.add_argument("--rounds", type=int, default=8, help="turns of searches (8)")
    parser.add_argument("--build-rounds", type=int, default=5, help="most builds (5)")
    parser.add_argument(
        "--build-seconds",
        type=float,
        default=20,
        help="no further builds of a type after so many seconds; two at least (20)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=RESULTS / "latest",
        help="path of the .json, .md and .png, without the ending",
    )
    parser.add_argument(
        "--docs",
        action="store_true",
        help="put the tables into docs/ and README.md, too",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
