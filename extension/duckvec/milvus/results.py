"""What a search returns: hits by query, as lists and as objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload


class QueryResult:
    """One hit."""

    def __init__(self, id: int, distance: float) -> None:
        self.id = id
        self.distance = distance

    def __repr__(self) -> str:
        return f"(id={self.id}, distance={self.distance})"


class RowQueryResult(Sequence[QueryResult]):
    """The hits of one query, nearest first."""

    def __init__(self, ids: Sequence[int], distances: Sequence[float]) -> None:
        self._ids = list(ids)
        self._distances = list(distances)

    @property
    def ids(self) -> list[int]:
        """The ids of the hits."""
        return self._ids

    @property
    def distances(self) -> list[float]:
        """The distances of the hits."""
        return self._distances

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, item: int) -> QueryResult: ...

    @overload
    def __getitem__(self, item: slice) -> RowQueryResult: ...

    def __getitem__(self, item: int | slice) -> QueryResult | RowQueryResult:
        if isinstance(item, slice):
            return RowQueryResult(self._ids[item], self._distances[item])
        return QueryResult(self._ids[item], self._distances[item])

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self))}]"


class TopKQueryResult(Sequence[RowQueryResult]):
    """The hits of all queries of a search: `result[i][j].id`, `.distance`.

    Rows are shorter than top_k where fewer entities qualify.
    """

    def __init__(self, rows: Sequence[RowQueryResult], top_k: int) -> None:
        self._rows = list(rows)
        self._top_k = top_k

    @property
    def id_array(self) -> list[list[int]]:
        """The ids (nq lists of top_k at most)."""
        return [row.ids for row in self._rows]

    @property
    def distance_array(self) -> list[list[float]]:
        """The distances (nq lists of top_k at most)."""
        return [row.distances for row in self._rows]

    @property
    def shape(self) -> tuple[int, int]:
        """How many queries, and how many hits were wanted of each."""
        return len(self._rows), self._top_k

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, item: int) -> RowQueryResult: ...

    @overload
    def __getitem__(self, item: slice) -> TopKQueryResult: ...

    def __getitem__(self, item: int | slice) -> RowQueryResult | TopKQueryResult:
        if isinstance(item, slice):
            return TopKQueryResult(self._rows[item], self._top_k)
        return self._rows[item]

    def __iter__(self) -> Iterator[RowQueryResult]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self._rows))}]"
