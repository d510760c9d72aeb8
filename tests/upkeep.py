"""What the tests of background work share: impatient settings, and waiting for it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import numpy as np
import pytest

import duckvec
from duckvec import (
    background,
    backoff,
    held_tails,
    planner,
    policy,
    search,
    selectivity,
)
from tests.data import Vectors, arrow_table

SMALL_SEGMENT = 200
IMPATIENT: list[tuple[Any, str, Any]] = [
    (policy, "MINIMUM_SEGMENT_ROWS", SMALL_SEGMENT),
    (background, "LOOK_SECONDS", 0.02),
    (background, "COUNT_SECONDS", 0.02),
    (background, "FIRST_COUNT_SECONDS", 0.02),
    (background, "MOST_COUNT_SECONDS", 0.1),
    (policy, "MOST_POSTPONED_SECONDS", 0.0),
    (backoff, "RETRY_SECONDS", 0.05),
    (held_tails, "LEAST_ROWS", 2),
    (planner, "SURPLUS_SECONDS", 0.0),
]
"""Module constants with which small tails are held, and sealed, at once."""


@contextmanager
def impatient(rows: int = SMALL_SEGMENT) -> Iterator[None]:
    """Seal tails of so many rows, as soon as they are there."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in IMPATIENT:
            patch.setattr(module, name, value)
        patch.setattr(policy, "MINIMUM_SEGMENT_ROWS", rows)
        yield


@contextmanager
def filters_by_index() -> Iterator[None]:
    """Answer searches with a filter by the index, however few rows pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selectivity, "FEW_SECONDS", -1.0)
        patch.setattr(search, "FEW_SELECTED", 0)
        yield


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def threads() -> set[str]:
    """Return the names of the threads that do background work."""
    names = {thread.name for thread in threading.enumerate()}
    return {name for name in names if name.startswith("duckvec-")}


def wait_for_silence() -> None:
    """Wait until no background work is left, after connections were closed."""
    eventually(lambda: not threads(), 60)


def let_background_end() -> None:
    """Wait a while for work that may have a database file open for a moment."""
    gc.collect()
    began = time.monotonic()
    while left := threads():
        # A watch may be that of a connection that another test left open.
        only_watching = left <= {"duckvec-watch", "duckvec-warden"}
        if time.monotonic() - began > (1 if only_watching else 20):
            break
        time.sleep(0.005)


def info(con: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Return the only row of vector_indexes()."""
    result = con.execute("FROM vector_indexes()")
    names = [column[0] for column in result.description or ()]
    [row] = result.fetchall()
    return dict(zip(names, row, strict=True))


def segment_rows(con: duckdb.DuckDBPyConnection) -> list[int]:
    """Return how many entries each segment has."""
    sql = "SELECT row_count FROM vector_index_segments() ORDER BY segment"
    return [row[0] for row in con.execute(sql).fetchall()]


def create_empty(con: duckdb.DuckDBPyConnection, dimension: int = 16) -> None:
    """Create an empty table of the shape of `create_table`."""
    con.execute(
        f"CREATE TABLE items (id BIGINT, price INTEGER, embedding FLOAT[{dimension}])"
    )


def insert(
    con: duckdb.DuckDBPyConnection, vectors: Vectors, start: int, stop: int
) -> None:
    """Insert some rows, in one transaction."""
    data = arrow_table(vectors.rows[start:stop], start)
    con.execute("INSERT INTO items SELECT id, (id % 100)::INTEGER, vector FROM data")
    del data


def recall(con: duckdb.DuckDBPyConnection, vectors: Vectors) -> float:
    """Return recall@10 of the default settings, over all queries."""
    queries = vectors.queries
    found = duckvec.load(con).search("items", queries, 10)
    ids = found.project("query_index, id").fetchall()
    wanted = con.execute("SELECT id, embedding FROM items").fetchnumpy()
    rows = np.stack(list(wanted["embedding"]))
    hits = 0
    for number, query in enumerate(queries):
        near = np.argsort(((rows - query) ** 2).sum(axis=1), kind="stable")[:10]
        nearest = set(np.asarray(wanted["id"])[near].tolist())
        hits += len(nearest & {id for at, id in ids if at == number})
    return hits / (min(10, len(rows)) * len(queries))
