"""One segment: an immutable index over some rows, and the file pair that holds it.

The index file is the library's own format. The map file beside it holds what the
library does not: which row each entry came from, a 64-bit hash of each vector, and
checksums of both. hnswlib and annoy refuse files with trailing bytes, hence two.

Layout of a map file, little endian: magic (8 bytes), format version (uint32), length
of the header (uint32), header (JSON), row ids (int64 each), hashes (uint64 each),
BLAKE2b-128 of everything before it (16 bytes).
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from duckvec import paths
from duckvec.errors import ArtifactError
from duckvec.index_types import get_index_type
from duckvec.index_types.base import SegmentIndex
from duckvec.ladders import Ladder, Measured, setting_for
from duckvec.metrics import METRICS

MAGIC = b"DUCKVEC\x00"
FORMAT_VERSION = 1
SAMPLES = 5
_PREFIX = struct.Struct("<8sII")
_DIGEST_BYTES = 16
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class SegmentRow:
    """One row of the catalog's table `segments`.

    `search_params` is the default that was measured on this segment, and `ladder` what
    other settings reached there.
    """

    segment_id: str
    index_id: str
    segment: int
    index_type: str
    metric: str
    dimension: int
    row_count: int
    params: Mapping[str, int]
    search_params: Mapping[str, int]
    file: str
    map_file: str
    size_bytes: int
    checksum: str
    format_version: int
    library: str
    library_version: str
    build_seconds: float
    ladder: Ladder = ()

    def setting(self, recall: float | None) -> Mapping[str, int]:
        """Return the default, or the smallest setting that reached a recall."""
        if recall is None:
            return self.search_params
        return setting_for(self.ladder, recall)


def hash_vectors(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each row of a float32 array (n, d).

    Multilinear hashing (Lemire & Kaser 2014, "Strongly universal string hashing is
    fast") over pairs of components, each mixed by a multiply-xorshift first so that
    components with few significant bits, as integers have, spread over all bits.
    The constants are part of the file format.
    """
    count, dimension = vectors.shape
    width = (dimension + 1) // 2
    weights = np.random.Generator(np.random.PCG64(0xD0C5)).integers(
        0, 1 << 64, size=width + 1, dtype=np.uint64
    ) | np.uint64(1)
    result = np.empty(count, dtype=np.uint64)
    rows = max(1, _BLOCK_BYTES // max(1, 8 * width))
    for start in range(0, count, rows):
        block = vectors[start : start + rows]
        if dimension % 2:
            block = np.pad(block, ((0, 0), (0, 1)))
        words = np.ascontiguousarray(block).view(np.uint64)
        mixed = words * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
        result[start : start + rows] = mixed @ weights[:width] + weights[width]
    result ^= result >> np.uint64(33)
    return result


class Segment:
    """One segment as the searches use it: opened when first needed, then shared.

    Any thread may call any method; opening happens once, under a lock that is never
    held while SQL runs.
    """

    def __init__(
        self, row: SegmentRow, folder: Path, index: SegmentIndex | None = None
    ) -> None:
        self.row = row
        self._folder = folder
        self._lock = threading.Lock()
        self._index = index
        self.error: str | None = None
        self.samples: tuple[tuple[int, int], ...] = ()

    def index(self) -> SegmentIndex:
        """Return the opened index, verifying its file before a library reads it.

        Raises:
            ArtifactError: a file is missing, cut or altered; the sentence also stays
                in `error`.
        """
        if self._index is not None:
            return self._index
        with self._lock:
            if self._index is None:
                try:
                    self._index = self._open()
                except (ArtifactError, OSError, RuntimeError) as error:
                    self.error = str(error)
                    if isinstance(error, ArtifactError):
                        raise
                    raise ArtifactError(
                        f"the artifact {self.row.file} cannot be opened ({error}); "
                        "build the index again"
                    ) from error
            return self._index

    def check(self) -> str | None:
        """Return what is wrong with the files as far as it is known, or None.

        Looks at their names and sizes; contents are verified when they are opened.
        """
        try:
            size = 0
            for path in self.files():
                try:
                    size += path.stat().st_size
                except FileNotFoundError as error:
                    raise _missing(path.name) from error
            if size != self.row.size_bytes:
                raise _altered(self.row.file)
        except ArtifactError as error:
            return str(error)
        return self.error

    def memory_bytes(self) -> int:
        """Return the bytes of memory held; 0 where it is not open."""
        return 0 if self._index is None else self._index.memory_bytes()

    def close(self) -> None:
        """Release the opened index; the next use opens it again."""
        with self._lock:
            if self._index is not None:
                self._index.close()
                self._index = None

    def files(self) -> list[Path]:
        """Return the paths of both files."""
        return [
            paths.artifact_path(self._folder, self.row.file),
            paths.artifact_path(self._folder, self.row.map_file),
        ]

    def read_map(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Return the row ids and hashes of the entries, in entry order.

        Raises:
            ArtifactError: the map file is missing, cut or altered.
        """
        try:
            _, rowids, hashes = self._read_map()
            return rowids, hashes
        except ArtifactError as error:
            self.error = str(error)
            raise

    def keep_samples(self, hashes: NDArray[np.uint64]) -> None:
        """Keep position and hash of a few entries, to know their rows again by."""
        places = np.unique(np.linspace(0, len(hashes) - 1, SAMPLES, dtype=np.int64))
        self.samples = tuple((int(place), int(hashes[place])) for place in places)

    def _open(self) -> SegmentIndex:
        header, _, _ = self._read_map()
        path = paths.artifact_path(self._folder, self.row.file)
        if not path.is_file():
            raise _missing(path.name)
        if file_checksum(path) != header["index_checksum"]:
            raise _altered(path.name)
        return get_index_type(self.row.index_type).open(
            path,
            METRICS[self.row.metric],
            self.row.row_count,
            self.row.dimension,
            self.row.params,
        )

    def _read_map(
        self,
    ) -> tuple[dict[str, object], NDArray[np.int64], NDArray[np.uint64]]:
        row = self.row
        path = paths.artifact_path(self._folder, row.map_file)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"the artifact {row.map_file} is missing or cannot be read "
                f"({error.strerror}); build the index again"
            ) from error
        broken = _altered(path.name)
        if len(data) < _PREFIX.size + _DIGEST_BYTES:
            raise broken
        body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if (
            digest.hex() != row.checksum
            or hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != digest
        ):
            raise broken
        magic, version, length = _PREFIX.unpack_from(body)
        if magic != MAGIC or version != FORMAT_VERSION:
            raise ArtifactError(
                f"the artifact {row.map_file} has format version {version}; this "
                f"duckvec reads {FORMAT_VERSION}: build the index again"
            )
        header = json.loads(body[_PREFIX.size : _PREFIX.size + length])
        count = row.row_count
        start = _PREFIX.size + length
        if header["rows"] != count or len(body) != start + 16 * count:
            raise broken
        rowids = np.frombuffer(body, np.int64, count, start)
        hashes = np.frombuffer(body, np.uint64, count, start + 8 * count)
        self.keep_samples(hashes)
        return header, rowids, hashes


def _missing(name: str) -> ArtifactError:
    return ArtifactError(f"the artifact {name} is missing; build the index again")


def _altered(name: str) -> ArtifactError:
    return ArtifactError(
        f"the artifact {name} was cut or altered: its size or checksum is not the "
        "recorded one; build the index again"
    )


def write_segment(
    row: SegmentRow,
    folder: Path,
    index: SegmentIndex,
    rowids: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    measure: Callable[[], Measured],
) -> Segment:
    """Write both files of a new segment whole and durably; return the segment.

    `row` comes with its names; its size, checksum and measured settings are filled in
    here. `measure` returns those: it is called once the library has saved its file,
    while threads flush that file and take its checksum, and may search the index.
    On failure nothing is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index_path = paths.artifact_path(folder, row.file)
    map_path = paths.artifact_path(folder, row.map_file)
    try:
        saved = paths.temporary_path(index_path)
        index.save(saved)
        with ThreadPoolExecutor(2, "duckvec-writer") as threads:
            checksum = threads.submit(file_checksum, saved)
            flushed = threads.submit(paths.fsync, saved)
            measured = measure()
            flushed.result()
        header = json.dumps(
            {
                "segment_id": row.segment_id,
                "index_type": row.index_type,
                "metric": row.metric,
                "rows": row.row_count,
                "dimension": row.dimension,
                "params": dict(row.params),
                "library": row.library,
                "library_version": row.library_version,
                "index_checksum": checksum.result(),
            }
        ).encode()
        body = b"".join(
            (
                _PREFIX.pack(MAGIC, FORMAT_VERSION, len(header)),
                header,
                np.ascontiguousarray(rowids, dtype=np.int64).tobytes(),
                np.ascontiguousarray(hashes, dtype=np.uint64).tobytes(),
            )
        )
        digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
        paths.temporary_path(map_path).write_bytes(body + digest)
        paths.publish([index_path, map_path])
    except BaseException:
        for path in (index_path, map_path):
            paths.remove(paths.temporary_path(path))
            paths.remove(path)
        raise
    finished = SegmentRow(
        **{
            **row.__dict__,
            "search_params": measured.default,
            "ladder": measured.ladder,
            "size_bytes": index_path.stat().st_size + map_path.stat().st_size,
            "checksum": digest.hex(),
        }
    )
    segment = Segment(finished, folder, index)
    segment.keep_samples(hashes)
    return segment


def file_checksum(path: Path) -> str:
    """Return the BLAKE2b-128 checksum of a file, as hexadecimal text."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
