"""What the types built on faiss share: threads, selectors, files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duckvec.errors import ArtifactError, MissingLibraryError

HEADER_BYTES = 64  # what faiss writes of an index besides its arrays, roughly


def load_faiss(index_type: str) -> Any:
    """Import faiss, which takes a third of a second the first time."""
    try:
        import faiss
    except ImportError as error:
        raise MissingLibraryError(index_type, None, "faiss-cpu") from error
    return faiss


@contextmanager
def faiss_threads(faiss: Any, threads: int) -> Iterator[None]:
    """Let faiss use this many threads for the calls made inside.

    GNU OpenMP keeps the number for each calling thread; where a runtime keeps one for
    the process, the calls of others get another number of threads, and the same answer.
    """
    before = faiss.omp_get_max_threads()
    if before == threads:
        yield
        return
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def multiplied_from(faiss: Any, dimension: int) -> int:
    """Return from how many queries on an IndexFlat multiplies matrices.

    faiss 1.15 counts the components of all queries, older ones the queries.
    """
    threshold = int(faiss.cvar.distance_compute_blas_threshold)
    return -(-threshold // dimension) if threshold > 1000 else threshold


def selector(faiss: Any, allowed: NDArray[np.bool_] | None) -> Any:
    """Return a faiss selector of the allowed positions, None for all."""
    if allowed is None:
        return None
    return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def positions_within(
    range_search: Callable[[NDArray[np.float32], float], Any],
    queries: NDArray[np.float32],
    keys: NDArray[np.float64],
    everything: NDArray[np.int64],
    *,
    is_similarity: bool,
) -> list[NDArray[np.int64]]:
    """Return the positions whose key is at most that of each query.

    A key is a squared distance, or an inner product with its sign turned. faiss takes
    one radius for all queries, a float, which is not within itself; where only what
    overflows may be outside, all positions are.

    Args:
        range_search: faiss's, given queries and a radius.
        queries: (nq, d).
        keys: (nq,).
        everything: all positions that can be found.
        is_similarity: whether the index gives inner products.
    """
    most = float(np.finfo(np.float32).max)
    found = [everything if key >= most else everything[:0] for key in keys]
    asked = np.flatnonzero((keys > -np.inf) & (keys < most))
    if len(asked) == 0 or len(everything) == 0:
        return found
    edges = np.nextafter(np.maximum(keys[asked], -most).astype(np.float32), most)
    radius = float(edges.max())
    lims, raw, ids = range_search(queries[asked], -radius if is_similarity else radius)
    values = -raw if is_similarity else raw
    for row, edge, start, stop in zip(asked, edges, lims[:-1], lims[1:], strict=True):
        mine = slice(int(start), int(stop))
        found[row] = ids[mine][values[mine] < edge]
    return found


def write_index(faiss: Any, index: Any, path: Path) -> None:
    """Write the index to one file, whole.

    faiss's own writer does not tell of what is lost when it closes the file, which is
    where a disk often turns out to be full.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def map_index(faiss: Any, path: Path, rows: int, dimension: int, flags: int = 0) -> Any:
    """Open a faiss file by memory map, or raise ArtifactError.

    The flag maps all large arrays. It came with faiss 1.11: IO_FLAG_MMAP maps nothing
    but inverted lists, and needs threads for each search of them.
    """
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | flags)
    except (RuntimeError, MemoryError) as error:
        raise ArtifactError(f"faiss cannot read {path.name}; rebuild it") from error
    if index.d != dimension or index.ntotal > rows:
        raise ArtifactError(
            f"{path.name} holds {index.ntotal} vectors of length {index.d}, "
            f"not {rows} of length {dimension}; rebuild it"
        )
    return index


def note(faiss: Any) -> str:
    """Return what is kept in the catalog about the library: 'faiss 1.15.1'."""
    return f"faiss {faiss.__version__}"
