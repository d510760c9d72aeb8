"""Where artifacts lie: the only module that builds their paths.

File names are generated, never taken from user text, and a name that comes back
from the catalog must look like a generated one before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import uuid
from pathlib import Path

from duckvec.errors import ArtifactError
from duckvec.platforms import flush_file, flush_folder

INDEX_ENDING = ".index"
MAP_ENDING = ".map"
_GENERATED = re.compile(r"[0-9a-f]{32}\.(index|map)")
_TEMPORARY = re.compile(r"[0-9a-f]{32}\.(index|map)\.tmp")


def artifact_folder(database_path: str | None, directory: str | None) -> Path:
    """Return the folder for the artifacts of one database; it need not exist.

    Args:
        database_path: the database file; None for an in-memory database.
        directory: what `load(directory=…)` named; None for the default. Databases of
            one name from different places get folders of their own there.
    """
    if database_path is None:
        return Path(tempfile.mkdtemp(prefix="duckvec-", dir=directory))
    database = Path(database_path).absolute()
    if directory is None:
        return database.with_name(database.name + ".duckvec")
    place = hashlib.blake2b(str(database).encode(), digest_size=4).hexdigest()
    return Path(directory).absolute() / f"{database.name}.{place}.duckvec"


def new_segment_id() -> str:
    """Return a new unique name for a segment: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def artifact_path(folder: Path, file_name: str) -> Path:
    """Return the path of an artifact that the catalog names.

    Raises:
        ArtifactError: where the name is not one that duckvec generates.
    """
    if not _GENERATED.fullmatch(file_name):
        raise ArtifactError(
            f"the catalog names the artifact file {file_name[:80]!r}, which is "
            "no name that duckvec gives; build the index again"
        )
    return folder / file_name


def make_folder(folder: Path) -> None:
    """Create the folder of artifacts where it is missing, safely on disk."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        fsync(folder.parent)


def temporary_path(path: Path) -> Path:
    """Return the name under which `path` is written before it is renamed."""
    return path.with_name(path.name + ".tmp")


def publish(paths: list[Path]) -> None:
    """Rename finished temporary files to their names, safely on disk."""
    for path in paths:
        fsync(temporary_path(path))
        os.replace(temporary_path(path), path)
    if paths:
        fsync(paths[0].parent)


def fsync(path: Path) -> None:
    """Flush one file or folder to disk."""
    if path.is_dir():
        flush_folder(path)
    else:
        flush_file(path)


def remove(path: Path) -> None:
    """Delete a file; one that is not there is no error."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def find_orphans(folder: Path, named: set[str]) -> list[Path]:
    """Return our files in `folder` that no catalog row names."""
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.iterdir())
        if _GENERATED.fullmatch(path.name) or _TEMPORARY.fullmatch(path.name)
        if path.name not in named
    ]


def remove_folder_if_empty(folder: Path) -> None:
    """Delete the folder of artifacts where nothing is left in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()
