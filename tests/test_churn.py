"""Recall stays that of a fresh build after half of the rows have changed."""

from __future__ import annotations

import duckdb
import numpy as np
import pytest

import duckvec
from tests.data import PARAMS, Vectors, clustered, create
from tests.upkeep import create_empty, impatient, info, insert, recall, segment_rows

ROWS = 8000
STEP = 500
KEPT_RECALL = 0.02


def churned(con: duckdb.DuckDBPyConnection, vectors: Vectors, way: str) -> None:
    """Delete, insert and update a sixth of the rows each, in steps."""
    handle = duckvec.load(con)
    third = ROWS // 6
    for number, start in enumerate(range(0, third, STEP)):
        stop = min(start + STEP, third)
        con.execute("DELETE FROM items WHERE id >= ? AND id < ?", [start, stop])
        insert(con, vectors, ROWS + start, ROWS + stop)
        con.execute(
            "UPDATE items SET embedding = list_transform(embedding::FLOAT[], "
            "lambda x: x + 0.3)::FLOAT[24] WHERE id >= ? AND id < ?",
            [third + start, third + stop],
        )
        if way == "wait":
            handle.wait()
        elif way == "compact" and number == 1:
            handle.compact("items")
    handle.wait()


@pytest.mark.parametrize("way", ["wait", "background", "compact"])
@pytest.mark.parametrize("index_type", sorted(set(PARAMS) - {"FLAT", "IVF_SQ8H"}))
def test_recall_after_churn(index_type: str, way: str) -> None:
    base = clustered(ROWS + ROWS // 6, 24)
    rng = np.random.default_rng(1)
    held_out = base.rows[rng.integers(0, len(base.rows), 200)]
    noise = rng.standard_normal(held_out.shape) / 2
    vectors = Vectors(base.rows, (held_out + noise).astype(np.float32))
    with impatient(rows=400):
        con = duckvec.connect(background=way == "background")
        create_empty(con, 24)
        insert(con, vectors, 0, ROWS)
        create(con, index_type)
        churned(con, vectors, way)
        assert info(con)["unindexed_rows"] < 400
        many = len(segment_rows(con))
        after = recall(con, vectors)
        create(con, index_type)
        fresh = recall(con, vectors)
        con.close()
    assert after >= fresh - KEPT_RECALL, f"{many} segments: {after}, not {fresh}"
