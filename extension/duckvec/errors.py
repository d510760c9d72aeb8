"""What can go wrong, one class for each thing a caller can act on.

Every text is one sentence that holds the offending value and the way out: in SQL
only the text survives.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

LONGEST_SENTENCE = 600
_KIND = re.compile(r"[A-Z][\w ]* Error: ")


class VectorIndexError(ValueError):
    """Raised when a vector index cannot do what was asked; the base of all others."""


class UnknownIndexTypeError(VectorIndexError, LookupError):
    """Raised when no index type has the given name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        """Compose the sentence and keep the name and the known names."""
        self.name = name
        self.known = tuple(known)
        super().__init__(f'no index type "{shorten(name)}"{_way_out(name, known)}')


class UnknownMetricError(VectorIndexError, LookupError):
    """Raised when no metric has the given name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        """Compose the sentence and keep the name and the known names."""
        self.name = name
        self.known = tuple(known)
        super().__init__(f'no metric "{shorten(name)}"{_way_out(name, known)}')


class ParameterError(VectorIndexError):
    """Raised when params are missing, unknown, out of range, mistyped or not JSON."""


class MissingLibraryError(VectorIndexError, ImportError):
    """Raised when an index type's library is not installed."""

    def __init__(
        self, index_type: str, extra: str | None, library: str | None = None
    ) -> None:
        """Compose the sentence from the type, the extra to install and the library."""
        self.index_type = index_type
        self.extra = extra
        self.library = library or _LIBRARIES.get(extra or "", extra or "its library")
        package = f'"duckvec[{extra}]"' if extra else "duckvec"
        super().__init__(
            f"{index_type} needs {self.library}, which is not installed: "
            f"pip install {package}"
        )


class UnknownCollectionError(VectorIndexError, LookupError):
    """Raised when there is no table of the given name."""


class ColumnError(VectorIndexError):
    """Raised when a table has no, or more than one, vector column that would do."""


class QueryError(VectorIndexError):
    """Raised when a query vector, k, radius or filter cannot be used."""


class ReadOnlyError(VectorIndexError):
    """Raised when a read-only database is asked to create or drop an index."""


class NotIndexableError(VectorIndexError):
    """Raised when a table or its rows cannot be indexed."""


class ArtifactError(VectorIndexError):
    """Raised when a file of an index is missing, cut or altered."""


class UnreadableArtifactError(ArtifactError):
    """Raised when a file of an index cannot be read now, and perhaps can be later."""

    def __init__(self, name: str, error: OSError | MemoryError) -> None:
        """Compose the sentence from the file's name and what the system says."""
        self.name = name
        super().__init__(
            f"the artifact {name} cannot be read now ({reason(error)}); searches are "
            "exact until it can"
        )


class StorageError(VectorIndexError, OSError):
    """Raised when the files of an index cannot be written; nothing was changed."""

    def __init__(self, folder: str, error: OSError) -> None:
        """Compose the sentence from the folder and what the system says."""
        self.folder = folder
        super().__init__(
            f"the index cannot be written to {folder} ({reason(error)}); mend that, or "
            "name another place with load(con, directory=…)"
        )


class BusyError(VectorIndexError):
    """Raised when the work cannot start because other work does not end."""


class MemoryLimitError(VectorIndexError, MemoryError):
    """Raised when a build may take more memory than memory_limit leaves."""


class ClosedError(VectorIndexError):
    """Raised when something is used after it was closed."""


class ForkedError(ClosedError):
    """Raised in a process that was forked after its parent loaded duckvec."""


class InterruptedCallError(VectorIndexError):
    """Raised in a long call whose statement was interrupted; nobody waits for it."""

    def __init__(self, name: str) -> None:
        """Compose the sentence and keep the name of the call."""
        self.name = name
        super().__init__(f"{name} was interrupted")


class BuildCancelledError(VectorIndexError):
    """Raised when a build stops because its caller said so."""


_LIBRARIES = {"hnsw": "hnswlib", "annoy": "annoy"}


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return '; did you mean "…"?' for a near match among the known names, else ''."""
    by_folded_name = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(name.casefold(), by_folded_name, n=1)
    return f'; did you mean "{by_folded_name[near[0]]}"?' if near else ""


def reason(error: OSError | MemoryError) -> str:
    """Return what the system says about a failure, without number and path."""
    if isinstance(error, OSError):
        return shorten(error.strerror or str(error), 200)
    return "there is not enough memory"


def without_kind(error: BaseException) -> str:
    """Return the text of an error without DuckDB's name for its kind."""
    return _KIND.sub("", str(error).strip(), count=1)


def shorten(text: str, length: int = 80) -> str:
    """Return the text in one line of at most length characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def sentence(error: BaseException) -> str:
    """Return the text of an error as SQL can carry it: one line, not endless.

    What cannot be in a text of DuckDB's, or would break the line, becomes "?".
    """
    text = "".join(c if c.isprintable() or c.isspace() else "?" for c in str(error))
    return shorten(text, LONGEST_SENTENCE) or type(error).__name__


def _way_out(name: str, known: Sequence[str]) -> str:
    return f"{did_you_mean(name, known)} (known: {', '.join(known)})"
