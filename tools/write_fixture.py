"""Writes the database that later versions of duckvec have to open, once a version.

`python tools/write_fixture.py` writes tests/fixtures/catalog_N, N being the version of
the catalog: a database of the oldest supported DuckDB's storage, with one index of each
type, each on a column of its own. It refuses to write over what was published.
"""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

import duckvec
from duckvec.catalog import CATALOG_VERSION

FOLDER = Path(__file__).parents[1] / "tests" / "fixtures"
STORAGE_VERSION = "v1.5.0"
# The smallest that DuckDB has: a file of a few tables takes kilobytes, not megabytes.
BLOCK_BYTES = 16384
ROWS, DIMENSION = 300, 4
INDEXES = {
    "FLAT": ("L2", "{}"),
    "IVF_FLAT": ("COSINE", '{"nlist": 8}'),
    "IVF_SQ8": ("L2", '{"nlist": 8}'),
    "IVF_SQ8H": ("IP", '{"nlist": 8}'),
    "IVF_PQ": ("L2", '{"nlist": 8, "m": 2}'),
    "NSG": (
        "L2",
        '{"search_length": 40, "out_degree": 10, "candidate_pool_size": 50, '
        '"knng": 10}',
    ),
    "HNSW": ("COSINE", '{"M": 8, "efConstruction": 100}'),
    "ANNOY": ("L2", '{"n_trees": 4}'),
}


def write(folder: Path) -> None:
    """Write the database and its artifacts into a folder that is not there yet."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(2)
    flat = pa.array(rng.standard_normal(ROWS * DIMENSION).astype(np.float32))
    vectors = pa.FixedSizeListArray.from_arrays(flat, DIMENSION)
    data = pa.table({"id": np.arange(ROWS), "v": vectors})
    con = duckvec.connect(background=False)
    con.execute(
        f"ATTACH '{folder / 'fixture.db'}' AS fixture "
        f"(STORAGE_VERSION '{STORAGE_VERSION}', BLOCK_SIZE {BLOCK_BYTES})"
    )
    con.execute("USE fixture")
    columns = ", ".join(f"v AS {name.lower()}" for name in INDEXES)
    con.execute(f"CREATE TABLE items AS SELECT id, {columns} FROM data")
    del data
    for name, (metric, params) in INDEXES.items():
        con.execute(
            "CALL create_vector_index('items', $name, $params, "
            "column_name := lower($name), metric := $metric)",
            {"name": name, "params": params, "metric": metric},
        ).fetchall()
    con.execute("CHECKPOINT")
    con.close()


def main() -> int:
    """Write the fixture of this version."""
    folder = FOLDER / f"catalog_{CATALOG_VERSION}"
    if folder.exists():
        print(f"{folder} is there already; a published one must not change")
        return 1
    write(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size:,} bytes, by DuckDB {duckdb.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
