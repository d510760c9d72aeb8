"""IVF_PQ: inverted lists of product-quantised vectors, m bytes each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from duckvec.index_types._faiss import HEADER_BYTES
from duckvec.index_types._ivf import NLIST, IvfType
from duckvec.index_types._ivf_estimate import (
    ROWS_PER_ADD,
    Training,
    residual_bytes,
)
from duckvec.index_types._ivf_segment import NPROBE
from duckvec.index_types.base import Sketch
from duckvec.metrics import Metric
from duckvec.parameters import Parameter

MOST_BITS = 8
LARGEST_TABLE_BYTES = 64 * 2**20
# faiss learns from so many rows for each value of a code, in so many rounds
# (Clustering.h), adds so many rows at once (IndexIVFPQ.cpp), and computes their
# distances to all values first where parts are so long (ProductQuantizer.cpp).
ROWS_PER_VALUE = 256
ROUNDS = 25
TABULATED_LENGTH = 16
# Seconds of one thread to compare a part of a row with one value, and for each
# component of it; for as few components in all parts together as this, faiss takes
# another, slower way, and coding by distances takes as long (measured, faiss 1.15.1).
COMPARE_SECONDS, COMPONENT_SECONDS = 1.7e-10, 1.6e-11
SLOW_SECONDS, SLOW_VALUES = 2.8e-9, 140_000
M = Parameter(
    name="m",
    phase="build",
    minimum=1,
    maximum=96,
    allowed=(96, 64, 56, 48, 40, 32, 28, 24, 20, 16, 12, 8, 4, 3, 2, 1),
    mandatory=True,
    default=None,
    description=(
        "How many bytes a vector is stored in; more give better distances and take "
        "more memory and time. It divides the dimension; typically a quarter to an "
        "eighth of it."
    ),
    divides_dimension=True,
)


class IvfPq(IvfType):
    """A small fraction of the memory of IVF_FLAT; distances are rough.

    The residuals to the centroids are quantised. Segments of fewer than 256 rows
    cannot train 8 bits: they take as many as their rows allow, recorded as "nbits".

    Few distances are off by as much as the worst, and a range search that allowed for
    that would return most of the rows that it looks at: of a range of 100 out of 20,000
    sentence embeddings it returns 1,000 with 97 % covered, and misses 0.4 %.
    """

    name: ClassVar[str] = "IVF_PQ"
    aliases: ClassVar[tuple[str, ...]] = ("IVFPQ",)
    parameters: ClassVar[tuple[Parameter, ...]] = (NLIST, M, NPROBE)
    compressed: ClassVar[bool] = True
    covered: ClassVar[float] = 0.97

    def effective_params(
        self, params: Mapping[str, int], rows: int, dimension: int
    ) -> dict[str, int]:
        """Lower nlist, and the bits of a code, to what the rows can train."""
        clamped = super().effective_params(params, rows, dimension)
        bits = min(MOST_BITS, max(1, rows.bit_length() - 1))
        return {**clamped, "nbits": bits}

    def new_index(
        self, faiss: Any, dimension: int, metric: int, params: Mapping[str, int]
    ) -> Any:
        """Return an untrained IndexIVFPQ."""
        index = faiss.IndexIVFPQ(
            faiss.IndexFlat(dimension, metric),
            dimension,
            params["nlist"],
            params["m"],
            params["nbits"],
            metric,
        )
        index.pq.cp.min_points_per_centroid = 1  # else faiss warns on stderr
        if _table_is_too_large(params):
            index.use_precomputed_table = -1
        return index

    def code_bytes(self, dimension: int, params: Mapping[str, int]) -> int:
        """Return the size of a code, m numbers of 8 bits."""
        return -(-params["m"] * params["nbits"] // 8)

    def training(self, params: Mapping[str, int], sketch: Sketch) -> Training:
        """Return what the values of the codes take, and the table of distances.

        faiss cuts residuals into m parts and learns 2^nbits values for each. Where a
        part has 16 components or more, it computes the distances of the rows of an
        `add` to all values at once: far more memory than the vectors.
        """
        m, values, length = params["m"], 1 << params["nbits"], sketch.vector_bytes
        part = sketch.dimension // m
        learnt = values * length
        trained = min(sketch.rows, ROWS_PER_VALUE * values)
        table = _table_bytes(sketch.metric, params)
        added = min(sketch.rows, ROWS_PER_ADD)
        distances = 4 * added * m * values if part >= TABULATED_LENGTH else 0
        fast = COMPARE_SECONDS + COMPONENT_SECONDS * part
        learning = SLOW_SECONDS if trained * part < SLOW_VALUES else fast
        coding = SLOW_SECONDS if distances else fast
        return Training(
            file_bytes=learnt + HEADER_BYTES,
            held_bytes=learnt + table,
            training_bytes=residual_bytes(sketch, ROWS_PER_VALUE * values)
            + trained * (4 * part + 12)
            + learnt
            + table,
            adding_bytes=added * (length + m) + distances,
            seconds=m * values * (ROUNDS * trained * learning + sketch.rows * coding),
        )

    def opened_bytes(
        self,
        file_bytes: int,
        metric: Metric,
        rows: int,
        dimension: int,
        params: Mapping[str, int],
    ) -> int:
        """Return the size of the table of distances: the lists are mapped."""
        return _table_bytes(metric, params)

    def open_flags(self, faiss: Any, params: Mapping[str, int]) -> int:
        """Leave out the table of distances that faiss computes while opening."""
        if not _table_is_too_large(params):
            return 0
        return int(faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)


def _table_bytes(metric: Metric, params: Mapping[str, int]) -> int:
    """Return the size of the table of distances that faiss computes for L2."""
    unused = metric.is_similarity or _table_is_too_large(params)
    return 0 if unused else _whole_table_bytes(params)


def _table_is_too_large(params: Mapping[str, int]) -> bool:
    """Say whether faiss's table, which speeds up L2 a little, is not worth it.

    It is kept in memory, for each list and each code: it can be far larger than all
    the vectors of the segment.
    """
    return _whole_table_bytes(params) > LARGEST_TABLE_BYTES


def _whole_table_bytes(params: Mapping[str, int]) -> int:
    return 4 * params["nlist"] * params["m"] << params["nbits"]
