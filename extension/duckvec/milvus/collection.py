"""What a collection is."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from duckvec import catalog
from duckvec.milvus.types import MetricType, Refused, Status
from duckvec.sql_text import quote_path

# The schema that the tables of collections are in.
MAIN = "main"
VECTOR_COLUMN = "vector"
DEFAULT_PARTITION = "_default"


@dataclass(frozen=True)
class Collection:
    """A collection as it was created, and where its table is."""

    name: str
    dimension: int
    index_file_size: int
    metric: MetricType
    database: str

    @property
    def table(self) -> str:
        """The quoted path of its table."""
        return table_path(self.database, self.name)

    def index_type(self, con: duckdb.DuckDBPyConnection) -> str | None:
        """Return its index's type in SQL, by the catalog; None without an index.

        This is quick: `vector_indexes()` counts the rows of all tables.
        """
        return catalog.read_index_type(
            con, self.database, MAIN, self.name, VECTOR_COLUMN
        )

    def check_dimension(self, length: int) -> None:
        """Refuse vectors of another length."""
        if length != self.dimension:
            raise Refused(
                Status.ILLEGAL_DIMENSION,
                f"The vectors have {length} dimensions; collection {self.name} has "
                f"{self.dimension}.",
            )


def table_path(database: str, name: str) -> str:
    """Return the quoted path of the table of a collection."""
    return quote_path((database, MAIN, name))


def not_there(name: str) -> Refused:
    """Return the refusal for a collection that is not there."""
    return Refused(Status.COLLECTION_NOT_EXISTS, f"Collection not exists: {name[:80]}")
