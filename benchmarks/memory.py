"""The memory of one large join, in a process of its own that is watched from outside.

Run as `python -m benchmarks.memory`, this is that process: see `benchmarks.watched`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.builds import warm
from benchmarks.data import Dataset, K, Truth, build_params, clustered, create_database
from benchmarks.searches import (
    SINGLE,
    by_query,
    create_index,
    join_sql,
    open_database,
)
from benchmarks.watched import ready, run_watched

INDEX_TYPE = "IVF_FLAT"
DIMENSION = 128
JUDGED = 1000
COUNTED = f"""
SELECT count(*), sum(h.id)
FROM queries AS q, vector_search('items', q.embedding, {K}) AS h
"""


def measure_memory(folder: Path, rows: int, queries: int) -> dict[str, Any]:
    """Return the peak memory, the seconds and the recall of a join of so many queries.

    Args:
        folder: where the database file goes.
        rows: how many are indexed.
        queries: how many are joined.
    """
    path = folder / "memory.db"
    data = _data(rows, queries)
    create_database(path, data)
    with open_database(path) as con:
        create_index(con, INDEX_TYPE, build_params(INDEX_TYPE, rows, DIMENSION))
    joined = run_watched("benchmarks.memory", {"database": str(path)}, "VmRSS")
    some = min(JUDGED, queries)
    with open_database(path) as con:
        answer = con.sql(join_sql(some)).to_arrow_table()
    truth = Truth(data.rows, data.batch[:some], "L2")
    return {
        "data": data.title,
        "index_type": INDEX_TYPE,
        "queries": len(data.batch),
        "vector_bytes": queries * DIMENSION * 4,
        "recall": truth.recall(by_query(answer, some)),
        "per_second": len(data.batch) / joined["seconds"],
        **joined,
    }


def _data(rows: int, queries: int) -> Dataset:
    points = clustered(rows + queries, DIMENSION).rows
    title = f"{rows:,} x {DIMENSION} synthetic vectors in 1,000 clusters"
    return Dataset(title, points[:rows], points[rows:], None, batch_size=queries)


def main() -> None:
    """Do what the standard input says."""
    order = json.loads(sys.stdin.readline())
    con = open_database(Path(order["database"]))
    for table in ("items", "queries"):
        warm(con, table)
    query = con.execute("SELECT embedding FROM queries LIMIT 1").fetchall()[0][0]
    con.execute(SINGLE, [list(query)]).fetchall()
    ready()
    started = time.perf_counter()
    count, _ = con.execute(COUNTED).fetchall()[0]
    seconds = time.perf_counter() - started
    con.close()
    print(json.dumps({"seconds": seconds, "result_rows": count}), flush=True)


if __name__ == "__main__":
    main()
