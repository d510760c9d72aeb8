"""How large inverted files get, and what building them takes."""

from __future__ import annotations

from dataclasses import dataclass

from duckvec.index_types._faiss import HEADER_BYTES
from duckvec.index_types._quantised import measuring_bytes
from duckvec.index_types.base import Estimate, Sketch

ROWS_PER_ADD = 8192
# faiss trains centroids on so many rows each at most (Clustering.h), in so many rounds
# (IndexIVF.cpp), and compares blocks of rows and centroids (utils/distances.cpp).
MOST_POINTS_PER_CENTROID = 256
TRAINING_ROUNDS = 10
ROWS_PER_PRODUCT, CENTROIDS_PER_PRODUCT = 4096, 1024
# Its lists double their room when they are full: so much is touched on the average,
# the holes that their growth leaves included (measured: 1.1 to 1.4).
LIST_SLACK = 1.25
LIST_BYTES = 64  # what an empty list takes
# Seconds for one component of one comparison in a product of matrices, and to put one
# byte of a row into its list, on one thread (measured).
PRODUCT_SECONDS = 2.5e-11
APPEND_SECONDS = 1e-9
MOST_SCALAR_ROWS = 100_000
SCALAR_SECONDS = 1e-8  # to learn from one component and to code it (measured)


@dataclass(frozen=True)
class Training:
    """What a type adds to an inverted file: learning its codes, and computing them.

    Attributes:
        file_bytes: what it has learnt, in the file.
        held_bytes: the same in memory, with what is computed from it.
        training_bytes: memory while it learns.
        adding_bytes: memory while codes are computed, or their errors measured,
            `held_bytes` not included.
        seconds: of one thread, for both.
    """

    file_bytes: int = 0
    held_bytes: int = 0
    training_bytes: int = 0
    adding_bytes: int = 0
    seconds: float = 0.0


def residual_bytes(sketch: Sketch, most: int) -> int:
    """Return the memory of the residuals that faiss learns codes from.

    Those of so many rows at most; of these it makes a copy first where there are more.
    """
    rows = min(sketch.rows, most)
    return rows * (sketch.vector_bytes + 8) * (2 if rows < sketch.rows else 1)


def scalar_training(sketch: Sketch) -> Training:
    """Return what the range of each component takes, for codes of 8 bits.

    faiss learns it from the residuals of 100,000 rows at most
    (IndexScalarQuantizer.cpp), and codes the rows of an `add` before it appends them.
    """
    ranges = 8 * sketch.dimension
    return Training(
        file_bytes=ranges + HEADER_BYTES,
        held_bytes=ranges,
        training_bytes=residual_bytes(sketch, MOST_SCALAR_ROWS),
        adding_bytes=max(
            min(sketch.rows, ROWS_PER_ADD) * sketch.dimension,
            measuring_bytes(sketch.rows, sketch.dimension),
        ),
        seconds=SCALAR_SECONDS * sketch.values,
    )


def estimate_lists(
    nlist: int, code_bytes: int, own: Training, sketch: Sketch
) -> Estimate:
    """Return the sizes of lists and centroids, and of the largest step of a build.

    The file (index_write.cpp, write_ivf_header and write_InvertedLists) holds the
    centroids, a length for each list, and for each row its code and a number of 8
    bytes. A build trains the centroids, on a copy of some rows where there are more
    than it can use; then the codes; then it adds the rows (IndexIVF.cpp, train and
    add_with_ids). What one step took is given back before the next.
    """
    rows, wide = sketch.rows, sketch.vector_bytes
    trained = min(rows, MOST_POINTS_PER_CENTROID * nlist)
    entries = rows * (code_bytes + 8)
    centroids = nlist * wide
    file_bytes = 3 * HEADER_BYTES + entries + centroids + 8 * nlist + own.file_bytes
    held = int(LIST_SLACK * entries) + centroids + LIST_BYTES * nlist
    held += own.held_bytes
    product = min(rows, ROWS_PER_PRODUCT) * min(nlist, CENTROIDS_PER_PRODUCT) * 4
    kmeans = 2 * centroids + 12 * trained + product
    if trained < rows:
        kmeans += trained * wide
    adding = held + max(product, own.adding_bytes)
    compared = (TRAINING_ROUNDS * trained + rows) * nlist * sketch.dimension
    seconds = PRODUCT_SECONDS * compared + APPEND_SECONDS * entries + own.seconds
    return Estimate(
        file_bytes,
        held,
        max(kmeans, centroids + own.training_bytes, adding),
        seconds / sketch.threads,
    )
