"""Fixtures: connections with duckvec loaded, and tables of vectors."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

import duckvec
from tests.data import Vectors, clustered

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background so; the tests press Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def memory() -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory database with duckvec loaded."""
    con = duckvec.connect()
    yield con
    con.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test's database file may lie."""
    return tmp_path / "test.db"


@pytest.fixture
def con(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database file with duckvec loaded."""
    connection = duckvec.connect(str(path))
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def vectors() -> Vectors:
    """3,000 clustered vectors of 16 dimensions, and 20 queries."""
    return clustered(3000, 16)
