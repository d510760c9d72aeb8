"""`duckvec demo`: index types compared on vectors that are made up."""

from __future__ import annotations

import json
import time

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import track

import duckvec
from duckvec.errors import MissingLibraryError
from duckvec.index_types import get_index_type
from duckvec.shell.output import Result, print_box

DIMENSION, CENTRES, QUERIES = 64, 200, 50
TYPES: dict[str, dict[str, int]] = {
    "FLAT": {},
    "IVF_FLAT": {"nlist": 256},
    "IVF_SQ8": {"nlist": 256},
    "IVF_PQ": {"nlist": 256, "m": 8},
    "HNSW": {"M": 16, "efConstruction": 100},
    "ANNOY": {"n_trees": 20},
}
NEXT = """\
Next, in `duckvec my.db`:
  CREATE TABLE items AS SELECT id, embedding::FLOAT[64] AS embedding
    FROM 'items.parquet';
  CALL create_vector_index('items', 'IVF_FLAT', {'nlist': 256});
  FROM vector_search('items', (SELECT embedding FROM items LIMIT 1), 5);
"""


def run_demo(console: Console, rows: int) -> None:
    """Build each type over some clusters, search, and print a table."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((CENTRES, DIMENSION))
    chosen = random.integers(CENTRES, size=rows + QUERIES)
    points = centres[chosen] + random.standard_normal((rows + QUERIES, DIMENSION)) * 0.6
    vectors, queries = np.split(points.astype(np.float32), [rows])
    made_up = pa.table(
        {
            "id": np.arange(rows),
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.ravel()), DIMENSION
            ),
        }
    )
    con = duckvec.connect(background=False)
    con.execute("CREATE TABLE items AS FROM made_up")
    del made_up
    lines = []
    kinds = [name for name in TYPES if _is_installed(name)]
    for name in track(kinds, "building", console=console, transient=True):
        # By SQL: the handle's method would draw a bar of its own.
        [(seconds, size)] = con.execute(
            "SELECT build_seconds, size_bytes "
            "FROM create_vector_index('items', $index_type, $params)",
            {"index_type": name, "params": json.dumps(TYPES[name])},
        ).fetchall()
        measured = con.execute(
            "SELECT recall FROM vector_recall('items', k := 10, sample := 100)"
        ).fetchall()[0][0]
        started = time.perf_counter()
        for query in queries:
            con.execute(
                "SELECT id FROM vector_search('items', ?, 10)", [query.tolist()]
            ).fetchall()
        milliseconds = 1000 * (time.perf_counter() - started) / QUERIES
        lines.append(
            (
                name,
                json.dumps(TYPES[name]),
                round(seconds, 2),
                round(size / 1e6, 1),
                round(measured, 3),
                round(milliseconds, 2),
            )
        )
    con.close()
    console.print(f"{rows:,} x {DIMENSION} made-up vectors", highlight=False)
    names = ("type", "params", "build s", "MB", "recall@10", "ms a query")
    print_box(console, Result(names, lines))
    console.print(NEXT, end="", highlight=False, markup=False)


def _is_installed(name: str) -> bool:
    try:
        get_index_type(name).require_library()
    except MissingLibraryError:
        return False
    return True
