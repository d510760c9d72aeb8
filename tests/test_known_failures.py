"""What the random tests found and is not mended yet, each as small as it could be made.

A test that passes here fails the run: move it to the tests of what it is about, and
take its words from KNOWN in tests/world_parts.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest

import duckvec
from duckvec.index_types import get_index_type
from duckvec.metrics import METRICS

FORCED = """
import duckvec
con = duckvec.connect({path!r})
con.execute("CREATE TABLE t AS SELECT 1 AS id, [1, 2]::FLOAT[2] AS v")
con.execute("CALL create_vector_index('t', 'FLAT')").fetchall()
con.execute({change!r})
con.execute("FORCE CHECKPOINT")
"""


@pytest.mark.core
@pytest.mark.xfail(
    reason="DuckDB waits for the guard, which is older than the change, for ever"
)
@pytest.mark.parametrize(
    "change", ["UPDATE t SET id = 2", "CREATE TABLE u (id INTEGER)"]
)
def test_a_forced_checkpoint_under_the_guard_ends(path: Path, change: str) -> None:
    code = FORCED.format(path=str(path), change=change)
    subprocess.run([sys.executable, "-c", code], timeout=6, check=True)


@pytest.mark.core
@pytest.mark.xfail(
    raises=duckdb.CatalogException,
    reason="the plan reads duckvec.epoch, which that snapshot does not have",
)
def test_a_snapshot_of_an_attached_database_from_before_its_first_index(
    tmp_path: Path,
) -> None:
    con = duckvec.connect()
    con.execute(f"ATTACH '{tmp_path / 'shop.db'}' AS shop")
    con.execute("CREATE TABLE shop.t AS SELECT 1 AS id, [1, 2]::FLOAT[2] AS v")
    old = con.cursor()
    duckvec.load(old)
    old.execute("BEGIN")
    old.execute("FROM shop.t").fetchall()
    con.execute("CALL create_vector_index('shop.t', 'FLAT')").fetchall()
    found = old.execute("SELECT id FROM vector_search('shop.t', [1, 2])").fetchall()
    assert found == [(1,)]


@pytest.mark.core
@pytest.mark.xfail(
    raises=duckdb.InvalidInputException,
    reason="without an index, DuckDB computes the distance before it checks for NULL",
)
def test_vectors_of_nulls_in_a_list_column_are_not_found(
    memory: duckdb.DuckDBPyConnection,
) -> None:
    memory.execute(
        "CREATE TABLE t AS SELECT i AS id, [i, i]::FLOAT[] AS v FROM range(9) r(i)"
    )
    memory.execute("INSERT INTO t VALUES (-1, [NULL, NULL])")
    found = memory.execute("SELECT id FROM vector_search('t', [3, 3], 1)").fetchall()
    assert found == [(3,)]


@pytest.mark.core
@pytest.mark.xfail(reason="faiss gives a position twice where it runs out of others")
def test_nsg_returns_no_position_twice() -> None:
    kind, metric = get_index_type("NSG"), METRICS["IP"]
    params = {
        "search_length": 40,
        "out_degree": 20,
        "candidate_pool_size": 60,
        "knng": 30,
    }
    random = np.random.default_rng(2)
    vectors = random.standard_normal((300, 8)).astype(np.float32)
    queries = random.standard_normal((100, 8)).astype(np.float32)
    segment = kind.build(vectors, metric, params, threads=1)
    hits = segment.search(queries, 200, {"search_length": 300})
    for positions in hits.positions:
        found = positions[positions >= 0].tolist()
        assert len(set(found)) == len(found)
