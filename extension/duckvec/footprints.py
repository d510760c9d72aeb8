"""What a build takes: bytes of files and memory, seconds.

Each index type knows the sizes of its own segments (`IndexType.estimate`); here is what
all builds have in common: reading, the map file, and measuring the search parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import numpy as np
from numpy.typing import NDArray

from duckvec.index_types.base import Estimate, Sketch
from duckvec.metrics import are_bounded, normalize_rows
from duckvec.policy import segment_capacity
from duckvec.reader import BATCH_ROWS, count_rows, usable_condition
from duckvec.sql_text import quote_identifier
from duckvec.writer import Order

# A map file besides row ids and hashes: prefix, header and checksum.
MAP_BYTES = 400
# What a build keeps of each row besides its vector, row ids twice and a hash; and what
# it needs for a moment to write the map file, the whole of it three times.
ROW_BYTES, MAP_ROW_BYTES = 24, 48
# Batches of rows on their way from DuckDB stay allocated; files are read in blocks for
# their checksums, and distances computed in blocks while search parameters are measured
# (how many and how much: measured).
BATCHES, CONSTANT_BYTES, MEASURING_BYTES = 3, 1 << 20, 5 << 20
# To read, hash, write and sync, by component, row and segment; and to measure search
# parameters, by component and segment (measured).
VALUE_SECONDS, ROW_SECONDS, SEGMENT_SECONDS = 1.5e-8, 5e-7, 0.02
MEASURE_SECONDS, MEASURE_SEGMENT_SECONDS = 2e-8, 0.08


@dataclass(frozen=True)
class Rows:
    """The rows of a table that an order would index, read when they are asked for."""

    cursor: duckdb.DuckDBPyConnection
    order: Order
    dimension: int
    count: int

    @functools.cached_property
    def distinct_share(self) -> float:
        """How many of all rows differ; reads all of them."""
        name = quote_identifier(self.order.column.name)
        found = self.cursor.execute(
            f"SELECT count(DISTINCT hash({name})) FROM {self.order.table.path} "
            f"WHERE {name} IS NOT NULL"
        ).fetchall()
        return min(1.0, int(found[0][0]) / self.count)

    def draw(self, rows: int) -> NDArray[np.float32]:
        """Return so many rows (s, d), always the same, prepared as for a build."""
        column = self.order.column
        usable = usable_condition(column, self.dimension, self.order.metric)
        found = self.cursor.execute(
            f"SELECT {quote_identifier(column.name)}::FLOAT[{self.dimension:d}] "
            f"AS vector FROM (FROM {self.order.table.path} WHERE {usable}) "
            f"USING SAMPLE reservoir({rows:d} ROWS) REPEATABLE (1)"
        ).fetchnumpy()
        drawn = np.array([*found["vector"]], dtype=np.float32)
        drawn = drawn[are_bounded(drawn)]
        return normalize_rows(drawn) if self.order.metric.normalizes else drawn


@dataclass(frozen=True)
class Footprint:
    """What a build takes.

    Attributes:
        size_bytes: of all files.
        memory_bytes: at the highest point, with the finished segments still open.
        peak_bytes: the same with the finished segments closed.
        seconds: how long it takes.
    """

    size_bytes: int
    memory_bytes: int
    peak_bytes: int
    seconds: float


def footprint(rows: Rows) -> Footprint:
    """Sum the files of all segments; memory is at its highest in one of them.

    Built segments stay open while the next ones are built.
    """
    order, dimension, count = rows.order, rows.dimension, rows.count
    capacity = min(count, segment_capacity(order.index_file_size, dimension))
    full, rest = divmod(count, capacity)
    size, kept, highest, peak, seconds = 0, 0, 0, 0, 0.0
    matrix = 4 * dimension * (capacity + BATCHES * min(BATCH_ROWS, capacity))
    segment = _segment(rows, capacity)
    measuring = MEASURING_BYTES if _is_measured(order) else 0
    for number in range(full + (rest > 0)):
        own = capacity
        if number == full:
            own, segment = rest, _segment(rows, rest)
        storing = max(measuring, MAP_ROW_BYTES * own)
        working = max(segment.build_bytes, segment.held_bytes + storing)
        highest = max(highest, kept + ROW_BYTES * own + working)
        peak = max(peak, ROW_BYTES * own + working)
        kept += _kept_bytes(order, segment, own, dimension) + 8 * own
        size += segment.file_bytes + MAP_BYTES + 16 * own
        seconds += segment.seconds + SEGMENT_SECONDS
        seconds += MEASURE_SEGMENT_SECONDS if measuring else 0.0
    by_value = VALUE_SECONDS + (MEASURE_SECONDS if measuring else 0.0)
    seconds += count * (ROW_SECONDS + by_value * dimension)
    always = CONSTANT_BYTES + matrix
    return Footprint(size, always + highest, always + peak, seconds)


def peak_bytes(
    cursor: duckdb.DuckDBPyConnection,
    order: Order,
    dimension: int,
    count: int | None = None,
) -> int:
    """Return the memory that the work on the largest segment takes.

    Args:
        cursor: inside a transaction that sees the table.
        order: what to build.
        dimension: length of the vectors.
        count: how many rows; None: all that have a vector.
    """
    if count is None:
        _, count, _ = count_rows(cursor, order.table, order.column)
    rows = Rows(cursor, order, dimension, count)
    return footprint(rows).peak_bytes if count else 0


def _kept_bytes(order: Order, segment: Estimate, rows: int, dimension: int) -> int:
    """Return the memory that a finished segment holds, besides its row ids."""
    kind = order.index_type
    if not kind.maps_files:
        return segment.held_bytes
    params = kind.effective_params(order.params, rows, dimension)
    return kind.opened_bytes(segment.file_bytes, order.metric, rows, dimension, params)


def _segment(rows: Rows, count: int) -> Estimate:
    order = rows.order
    kind = order.index_type
    params: Mapping[str, int] = kind.effective_params(
        order.params, count, rows.dimension
    )
    sketch = Sketch(
        rows=count,
        dimension=rows.dimension,
        metric=order.metric,
        threads=order.threads,
        count_distinct=lambda: max(1, round(count * rows.distinct_share)),
        draw=lambda wanted: rows.draw(min(wanted, count)),
    )
    return kind.estimate(params, sketch)


def _is_measured(order: Order) -> bool:
    """Tell whether the type has search parameters to choose from."""
    kind = order.index_type
    return kind.compressed or any(each.phase == "search" for each in kind.parameters)
