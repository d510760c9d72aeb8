"""What a world of random tests is made of: tables, indexes, sessions, settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import duckdb

from tests.comparison import Subject

DUCKDB_1 = duckdb.__version__.startswith("1.")
TABLES = ("alpha", "beta", "Odd name")
DIMENSIONS = (3, 4, 8)
SESSIONS = 3
# DuckDB's own refusals: other transactions, keys, dependencies.
REFUSALS = (
    duckdb.TransactionException,
    duckdb.ConstraintException,
    duckdb.DependencyException,
)
# What a refusal that comes as another class says.
REFUSED = re.compile(
    r"write transactions|write-write conflict|has been altered|transaction.local "
    r"changes|transaction conflict|Cannot (drop|alter|change|rename)|"
    r"no table|does not exist|not found in FROM|"
    r"in a transaction that has already modified",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Options:
    """What kind of world it is.

    Attributes:
        place: "file"; "memory"; "small groups", a file attached with row groups of
            2,048 rows, so that few deleted rows are enough to move others; or "used",
            the same as the default database.
        rows: how many a table begins with, about.
        dimensions: lengths of vectors.
        types: index types.
        impatient: whether the background seals and merges small segments at once.
        filters_by_index: whether searches with a filter go by the index, however few
            rows pass.
    """

    place: str
    rows: int
    dimensions: tuple[int, ...]
    types: tuple[str, ...]
    impatient: bool = False
    filters_by_index: bool = False


@dataclass
class TableState:
    """A table as its latest committed definition has it."""

    name: str
    element: str
    is_list: bool
    dimension: int
    keyed: bool
    column: str = "v"
    price: str = "price"
    extras: list[str] = field(default_factory=list)
    other_vectors: int = 0

    @property
    def column_type(self) -> str:
        """The type of its vector column."""
        return f"{self.element}[{'' if self.is_list else self.dimension}]"


@dataclass(frozen=True)
class IndexInfo:
    """An index that was created, or what a dropped one left: FLAT and its metric."""

    index_type: str
    metric: str
    params: dict[str, int]
    dimension: int


@dataclass(frozen=True)
class Prepared:
    """A prepared search: what it was made for."""

    name: str
    table: TableState
    subject: Subject
    index: IndexInfo | None
    k: int


@dataclass
class Session:
    """A connection or cursor; in a transaction, with the tables of its beginning."""

    con: duckdb.DuckDBPyConnection
    tables: dict[str, TableState] | None = None
    wrote: bool = False
    prepared: list[Prepared] = field(default_factory=list)

    @property
    def in_transaction(self) -> bool:
        """Whether it is in a transaction that was begun explicitly."""
        return self.tables is not None


def thorough(index: IndexInfo) -> dict[str, int] | None:
    """Return search parameters that look at every entry; for NSG, at many."""
    if index.index_type.startswith("IVF"):
        return {"nprobe": index.params["nlist"]}
    settings: dict[str, dict[str, int]] = {
        "HNSW": {"ef": 4096},
        "ANNOY": {"search_k": 100_000_000},
        "NSG": {"search_length": 300},
    }
    return settings.get(index.index_type)


def is_exhaustive(index: IndexInfo, rows: int) -> bool:
    """Tell whether thorough settings find all of so many rows, or fewer."""
    if index.index_type == "HNSW":
        return rows < 4096
    return index.index_type != "NSG"


def with_ef(subject: Subject, k: int) -> Subject:
    """Return the subject with an ef that is not below k."""
    if subject.params and "ef" in subject.params:
        return replace(subject, params={"ef": max(4096, k)})
    return subject
