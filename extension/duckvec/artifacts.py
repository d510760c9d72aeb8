"""The files of a segment: their checksums, their versions, and the map file's format.

Layout of a map file, little endian: magic (8 bytes), format version (uint32), length
of the header (uint32), header (JSON), row ids (int64 each), hashes (uint64 each),
BLAKE2b-128 of everything before it (16 bytes). The header says what the segment is, as
the catalog does, and the checksum of the index file; the catalog holds the checksum of
the map file, and so both files and the row belong together.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from duckvec.errors import ArtifactError, UnreadableArtifactError

MAGIC = b"DUCKVEC\x00"
FORMAT_VERSION = 1
_PREFIX = struct.Struct("<8sII")
_DIGEST_BYTES = 16
_BLOCK_BYTES = 1 << 22

FileSign = tuple[int, int, int, int]
"""Device, number, size in bytes, and time in nanoseconds: what tells file versions."""


def write_map_file(
    path: Path,
    header: Mapping[str, object],
    rowids: NDArray[np.int64],
    hashes: NDArray[np.uint64],
) -> str:
    """Write a map file; return its checksum."""
    text = json.dumps(dict(header)).encode()
    body = b"".join(
        (
            _PREFIX.pack(MAGIC, FORMAT_VERSION, len(text)),
            text,
            np.ascontiguousarray(rowids, dtype=np.int64).tobytes(),
            np.ascontiguousarray(hashes, dtype=np.uint64).tobytes(),
        )
    )
    digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
    path.write_bytes(body + digest)
    return digest.hex()


def read_map_file(
    path: Path, checksum: str, rows: int
) -> tuple[dict[str, object], NDArray[np.int64], NDArray[np.uint64]]:
    """Return the header, the row ids and the hashes of a map file.

    Args:
        path: the file.
        checksum: what the catalog says of it.
        rows: likewise.

    Raises:
        ArtifactError: it is missing, cut or altered, or of another format.
        UnreadableArtifactError: it cannot be read now.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise missing(path.name) from error
    except OSError as error:
        raise UnreadableArtifactError(path.name, error) from error
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if (
        len(body) < _PREFIX.size
        or digest.hex() != checksum
        or hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != digest
    ):
        raise altered(path.name)
    magic, version, length = _PREFIX.unpack_from(body)
    if magic != MAGIC or version != FORMAT_VERSION:
        raise ArtifactError(
            f"the artifact {path.name} has format version {version}; this "
            f"duckvec reads {FORMAT_VERSION}: build the index again"
        )
    header = json.loads(body[_PREFIX.size : _PREFIX.size + length])
    start = _PREFIX.size + length
    if len(body) != start + 16 * rows:
        raise ArtifactError(
            f"the artifact {path.name} is of {header['rows']} rows, not {rows} as the "
            "catalog says; build the index again"
        )
    rowids = np.frombuffer(body, np.int64, rows, start)
    hashes = np.frombuffer(body, np.uint64, rows, start + 8 * rows)
    return header, rowids, hashes


def file_checksum(path: Path, check: Callable[[], None] | None = None) -> str:
    """Return the BLAKE2b-128 checksum of a file, as hexadecimal text.

    Args:
        path: the file.
        check: called for each block of 4 MB; what it raises ends the work.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            if check is not None:
                check()
            digest.update(block)
    return digest.hexdigest()


def file_sign(path: Path) -> FileSign | None:
    """Return what tells one version of a file from another; None where it is gone."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def is_same_file(one: FileSign, other: FileSign) -> bool:
    """Tell whether two signs are of one file, perhaps at different times."""
    return one[:2] == other[:2]


def missing(name: str) -> ArtifactError:
    """Return the error for a file that is not there."""
    return ArtifactError(f"the artifact {name} is missing; build the index again")


def altered(name: str) -> ArtifactError:
    """Return the error for a file that is not as it was written."""
    return ArtifactError(
        f"the artifact {name} was cut or altered: its size or checksum is not the "
        "recorded one; build the index again"
    )
