"""One segment: an immutable index over some rows, and the file pair that holds it.

The index file is the library's own format. The map file beside it holds what the
library does not (artifacts.py). hnswlib and annoy refuse files with trailing bytes,
hence two.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from duckvec import paths
from duckvec.artifacts import (
    FileSign,
    altered,
    file_checksum,
    file_sign,
    is_same_file,
    missing,
    read_map_file,
    write_map_file,
)
from duckvec.errors import (
    ArtifactError,
    ClosedError,
    StorageError,
    UnreadableArtifactError,
    shorten,
)
from duckvec.index_types import get_index_type
from duckvec.index_types.base import SegmentIndex
from duckvec.ladders import Ladder, Measured, setting_for
from duckvec.leftovers import leftovers
from duckvec.memory import MemoryBudget
from duckvec.metrics import METRICS

SAMPLES = 5
# More threads than this wait for the disk, or for memory, and no longer compute.
_VERIFYING_THREADS = 4


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


class Segment:
    """One segment as the searches use it: opened when first needed, then shared.

    Any thread may call any method; verifying and opening happen once, under a lock that
    is never held while SQL runs. The checksum of the index file is taken once for each
    version of the file that this process sees; a file that is written over in place
    while it is open is not searched any more, because libraries trust what they mapped.
    Where memory is limited it may be closed whenever nobody uses it; the next use opens
    it again.
    """

    def __init__(
        self,
        row: SegmentRow,
        folder: Path,
        memory: MemoryBudget,
        index: SegmentIndex | None = None,
    ) -> None:
        """Take over a segment; `index` where it was just built."""
        self.row = row
        self._folder = folder
        self._memory = memory
        self._lock = threading.RLock()  # a finalizer may close it in between
        self._index = index
        self._users = 0
        self._whole = index is not None
        self._held = 0 if index is None else index.memory_bytes()
        self._verified: FileSign | None = None
        self._opened: FileSign | None = None
        self._checksum: str | None = None
        self._failed: tuple[FileSign | None, ...] | None = None
        self.error: str | None = None
        self._unreadable_map = False
        self.samples: tuple[tuple[int, int], ...] = ()
        if index is not None:
            memory.use(self)

    @contextlib.contextmanager
    def use(self) -> Iterator[SegmentIndex]:
        """Hold the opened index, verifying its file before a library reads it.

        Raises:
            ArtifactError: a file is missing, cut or altered; the sentence also stays
                in `error`.
        """
        with self._lock:
            if self._index is not None and self._is_written_over():
                self._index = None  # searches that run hold it; none begins with it
            index = self._index if self._index is not None else self._open_within()
            self._users += 1
        self._memory.use(self)
        try:
            yield index
        finally:
            with self._lock:
                self._users -= 1
            self._memory.shrink(but=self)  # others that were in use then may go

    def require_whole(self) -> None:
        """Open the files once, to see whether a library can read them.

        Raises:
            ArtifactError: it cannot.
        """
        if not self._whole or self._is_written_over():
            with self.use():
                pass

    def verify(self, check: Callable[[], None] | None = None) -> None:
        """Compare the index file with its checksum, unless that was done.

        Args:
            check: called now and then; what it raises ends the work.

        Raises:
            ArtifactError: a file is missing, cut or altered; the sentence also stays
                in `error`.
        """
        if self._index is None:
            with self._lock, self._noting():
                self._verify(check)

    def check(self) -> str | None:
        """Return what is wrong with the files as far as it is known, or None.

        Looks at their names and sizes; contents are verified when the files are
        opened, and again here where an index file was changed since.
        """
        try:
            index_file, map_file = self.files()
            signs = file_sign(index_file), file_sign(map_file)
            for path, sign in zip((index_file, map_file), signs, strict=True):
                if sign is None:
                    raise missing(path.name)
            if sum(sign[2] for sign in signs if sign) != self.row.size_bytes:
                raise altered(self.row.file)
            if self._verified not in (None, signs[0]):
                with self._lock, self._noting():
                    self._verify()
        except ArtifactError as error:
            return str(error)
        return self.error

    def memory_bytes(self) -> int:
        """Return the bytes of memory held; 0 where it is not open."""
        return 0 if self._index is None else self._held

    @property
    def is_open(self) -> bool:
        """Whether the next use need not open it first."""
        return self._index is not None

    def close(self) -> None:
        """Release the opened index; the next use opens it again."""
        with self._lock:
            self._close()

    def close_if_idle(self) -> bool:
        """Release the opened index unless it is used now; return whether it was."""
        if not self._lock.acquire(blocking=False):
            return False  # it is being opened
        try:
            if self._users:
                return False
            self._close()
            return True
        finally:
            self._lock.release()

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
            rowids, hashes = self._read_map()
        except ArtifactError as error:
            self.error = str(error)
            self._unreadable_map = isinstance(error, UnreadableArtifactError)
            raise
        if self._unreadable_map:
            self.error, self._unreadable_map = None, False
        return rowids, hashes

    def keep_samples(self, hashes: NDArray[np.uint64]) -> None:
        """Keep position and hash of a few entries, to know their rows again by."""
        places = np.unique(np.linspace(0, len(hashes) - 1, SAMPLES, dtype=np.int64))
        self.samples = tuple((int(place), int(hashes[place])) for place in places)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Keep what fails, and fail again at once while the files stay as they are.

        What cannot be read now is tried again with the next use.
        """
        try:
            signs = tuple(file_sign(path) for path in self.files())
            if self.error is not None and signs == self._failed:
                raise ArtifactError(self.error)
            self._failed = signs
            yield
            self.error = self._failed = None
        except UnreadableArtifactError as error:
            self.error, self._failed = str(error), None
            raise
        except ArtifactError as error:
            self.error = str(error)
            raise
        except (OSError, MemoryError) as error:
            unreadable = UnreadableArtifactError(self.row.file, error)
            self.error, self._failed = str(unreadable), None
            raise unreadable from error
        except RuntimeError as error:
            self.error = (
                f"the artifact {self.row.file} cannot be opened ({error}); "
                "build the index again"
            )
            raise ArtifactError(self.error) from error
        except BaseException:
            self._failed = None  # it was stopped
            raise

    def keep_written(self, checksum: str) -> None:
        """Keep what tells the index file that was just written from altered ones."""
        self._checksum = checksum
        self._verified = file_sign(self.files()[0])

    def _close(self) -> None:
        index, self._index = self._index, None
        if index is not None:
            index.close()

    def _open_within(self) -> SegmentIndex:
        """Open the index once there is room for it in memory."""
        kind, row = get_index_type(self.row.index_type), self.row
        expected = self._held or kind.opened_bytes(
            row.size_bytes,
            METRICS[row.metric],
            row.row_count,
            row.dimension,
            row.params,
        )
        with self._memory.opening(expected), self._noting():
            index = self._open()
        self._held, self._index, self._whole = index.memory_bytes(), index, True
        self._memory.use(self)
        if self._held > expected:
            self._memory.shrink()
        return index

    def _open(self) -> SegmentIndex:
        path = self._verify()
        index = get_index_type(self.row.index_type).open(
            path,
            METRICS[self.row.metric],
            self.row.row_count,
            self.row.dimension,
            self.row.params,
        )
        self._opened = self._verified
        return index

    def _verify(self, check: Callable[[], None] | None = None) -> Path:
        """Return the path of the index file, which is the one that was written."""
        if self._checksum is None:
            self._read_map()
        path = paths.artifact_path(self._folder, self.row.file)
        sign = file_sign(path)
        if sign is None:
            raise missing(path.name)
        if sign != self._verified:
            if file_checksum(path, check) != self._checksum:
                raise altered(path.name)
            self._verified = sign
        return path

    def _is_written_over(self) -> bool:
        """Tell whether the open index file was changed in place.

        Where another file took its name, or it was deleted, what is mapped stays.
        """
        opened = self._opened
        if opened is None:
            return False
        sign = file_sign(paths.artifact_path(self._folder, self.row.file))
        return sign is not None and sign != opened and is_same_file(sign, opened)

    def _read_map(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        row = self.row
        path = paths.artifact_path(self._folder, row.map_file)
        header, rowids, hashes = read_map_file(path, row.checksum, row.row_count)
        for name, value in _described(row).items():
            if header[name] != value:
                raise ArtifactError(
                    f"the artifact {row.map_file} is of {name} {header[name]}, not "
                    f"{shorten(str(value))} as the catalog says; build the index again"
                )
        self.keep_samples(hashes)
        self._checksum = str(header["index_checksum"])
        return rowids, hashes


@contextlib.contextmanager
def verifying(
    segments: Sequence[Segment], threads: int, check: Callable[[], None]
) -> Iterator[Callable[[], None]]:
    """Verify the index files of segments while something else is done.

    Args:
        segments: those of an index.
        threads: how many at most.
        check: called now and then in each thread; what it raises ends the work.

    Yields:
        What waits for the end, and raises ArtifactError where a file is not whole.
    """
    some = max(1, min(threads, _VERIFYING_THREADS, len(segments)))
    stopped = threading.Event()

    def check_both() -> None:
        check()
        if stopped.is_set():
            raise ClosedError("nobody waits for the checksums any more")

    def finish() -> None:
        for each in begun:
            each.result()

    with ThreadPoolExecutor(some, "duckvec-verifier") as pool:
        begun = [pool.submit(segment.verify, check_both) for segment in segments]
        try:
            yield finish
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _described(row: SegmentRow) -> dict[str, object]:
    """Return what a map file says of its segment, and the catalog, too."""
    return {
        "segment_id": row.segment_id,
        "index_type": row.index_type,
        "metric": row.metric,
        "rows": row.row_count,
        "dimension": row.dimension,
        "params": dict(row.params),
    }


def write_segment(
    row: SegmentRow,
    folder: Path,
    index: SegmentIndex,
    rowids: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    measure: Callable[[], Measured],
    memory: MemoryBudget,
) -> Segment:
    """Write both files of a new segment whole and durably; return the segment.

    `row` comes with its names; its size, checksum and measured settings are filled in
    here. `measure` returns those: it is called once the library has saved its file,
    while threads flush that file and take its checksum, and may search the index.
    Where the library maps its files, the segment is opened from them, and the memory
    of `index` is given back: all segments of an index may exceed memory.
    On failure nothing is left behind.

    Raises:
        StorageError: the files cannot be written, or not be opened then.
    """
    index_path = paths.artifact_path(folder, row.file)
    map_path = paths.artifact_path(folder, row.map_file)
    try:
        paths.make_folder(folder)
        saved = paths.temporary_path(index_path)
        index.save(saved)
        with ThreadPoolExecutor(2, "duckvec-writer") as threads:
            checksum = threads.submit(file_checksum, saved)
            flushed = threads.submit(paths.fsync, saved)
            measured = measure()
            flushed.result()
        header = {
            **_described(row),
            "library": row.library,
            "library_version": row.library_version,
            "index_checksum": checksum.result(),
        }
        digest = write_map_file(paths.temporary_path(map_path), header, rowids, hashes)
        size = sum(
            paths.temporary_path(path).stat().st_size for path in (index_path, map_path)
        )
        paths.publish([index_path, map_path])
        finished = replace(
            row,
            search_params=measured.default,
            ladder=measured.ladder,
            size_bytes=size,
            checksum=digest,
        )
        is_mapped = get_index_type(row.index_type).maps_files
        segment = Segment(finished, folder, memory, None if is_mapped else index)
        segment.keep_samples(hashes)
        segment.keep_written(checksum.result())
        if is_mapped:
            index.close()
            _reopen(segment)
    except BaseException as error:
        for path in (index_path, map_path):
            leftovers.discard(paths.temporary_path(path))
            leftovers.discard(path)
        if isinstance(error, OSError):
            raise StorageError(str(folder), error) from error
        raise
    return segment


def _reopen(segment: Segment) -> None:
    """Open a segment that was just written.

    Raises:
        OSError: it cannot be opened; that is no lasting damage, as of an older file.
    """
    try:
        segment.require_whole()
    except ArtifactError as error:
        cause = error.__cause__ or error
        raise OSError(f"what was written cannot be opened: {cause}") from error
