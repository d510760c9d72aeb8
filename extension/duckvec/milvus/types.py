"""The enumerations, statuses and errors of the Milvus 1.x client.

Names and numbers are those of the published client, pymilvus 1.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class IndexType(IntEnum):
    """Index types by the numbers that Milvus gives them."""

    INVALID = 0
    FLAT = 1
    IVF_FLAT = 2
    IVF_SQ8 = 3
    RNSG = 4
    IVF_SQ8H = 5
    IVF_PQ = 6
    HNSW = 11
    ANNOY = 12
    IVFLAT = IVF_FLAT
    IVF_SQ8_H = IVF_SQ8H

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name}>"

    def __str__(self) -> str:
        return self.name

    @property
    def sql_name(self) -> str:
        """What the type is called in `create_vector_index`."""
        return "NSG" if self is IndexType.RNSG else self.name

    @classmethod
    def of_sql(cls, name: str) -> IndexType:
        """Return the type of a name in SQL, INVALID for one that Milvus lacks."""
        known = {each.sql_name: each for each in cls}
        return known.get(name, cls.INVALID)


class MetricType(IntEnum):
    """Metrics by the numbers that Milvus gives them; L2 and IP work here."""

    INVALID = 0
    L2 = 1
    IP = 2
    HAMMING = 3
    JACCARD = 4
    TANIMOTO = 5
    SUBSTRUCTURE = 6
    SUPERSTRUCTURE = 7

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name}>"

    def __str__(self) -> str:
        return self.name


class Status:
    """How a call ended: a code, 0 for success, and a sentence.

    Two are equal where their codes are; a number compares with the code.
    """

    SUCCESS = 0
    UNEXPECTED_ERROR = 1
    CONNECT_FAILED = 2
    PERMISSION_DENIED = 3
    COLLECTION_NOT_EXISTS = 4
    ILLEGAL_ARGUMENT = 5
    ILLEGAL_RANGE = 6
    ILLEGAL_DIMENSION = 7
    ILLEGAL_INDEX_TYPE = 8
    ILLEGAL_COLLECTION_NAME = 9
    ILLEGAL_TOPK = 10
    ILLEGAL_ROWRECORD = 11
    ILLEGAL_VECTOR_ID = 12
    ILLEGAL_SEARCH_RESULT = 13
    FILE_NOT_FOUND = 14
    META_FAILED = 15
    CACHE_FAILED = 16
    CANNOT_CREATE_FOLDER = 17
    CANNOT_CREATE_FILE = 18
    CANNOT_DELETE_FOLDER = 19
    CANNOT_DELETE_FILE = 20
    BUILD_INDEX_ERROR = 21
    ILLEGAL_NLIST = 22
    ILLEGAL_METRIC_TYPE = 23
    OUT_OF_MEMORY = 24

    def __init__(self, code: int = SUCCESS, message: str = "Success") -> None:
        self.code = code
        self.message = message

    def OK(self) -> bool:
        """Tell whether the call succeeded."""
        return self.code == self.SUCCESS

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            return self.code == other
        if isinstance(other, Status):
            return self.code == other.code
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.code)

    def __repr__(self) -> str:
        return f"Status(code={self.code}, message={self.message!r})"


class CollectionSchema:
    """What a collection was created with."""

    def __init__(
        self,
        collection_name: str,
        dimension: int,
        index_file_size: int,
        metric_type: MetricType,
    ) -> None:
        self.collection_name = collection_name
        self.dimension = dimension
        self.index_file_size = index_file_size
        self.metric_type = metric_type

    def __repr__(self) -> str:
        return (
            f"CollectionSchema(collection_name={self.collection_name!r}, "
            f"dimension={self.dimension}, index_file_size={self.index_file_size}, "
            f"metric_type={self.metric_type!r})"
        )


class IndexParam:
    """The index of a collection, and its build parameters."""

    def __init__(
        self, collection_name: str, index_type: IndexType, params: Mapping[str, int]
    ) -> None:
        self.collection_name = collection_name
        self.index_type = index_type
        self.params = dict(params)

    def __repr__(self) -> str:
        return (
            f"(collection_name={self.collection_name!r}, "
            f"index_type={self.index_type!r}, params={self.params})"
        )


class PartitionParam:
    """A partition of a collection."""

    def __init__(self, collection_name: str, tag: str) -> None:
        self.collection_name = collection_name
        self.tag = tag

    def __repr__(self) -> str:
        return f"(collection_name={self.collection_name!r}, tag={self.tag!r})"


class ParamError(ValueError):
    """Raised where an argument is of the wrong Python type or shape."""


class ConnectError(ValueError):
    """Raised where the database cannot be opened."""


class NotConnectError(ConnectError):
    """Raised where the client was closed."""


class RepeatingConnectError(ConnectError):
    """Never raised here; scripts name it in `except`."""


class VersionError(AttributeError):
    """Never raised here; scripts name it in `except`."""


class DeprecatedError(AttributeError):
    """Raised by methods that the published client has given up, too."""


class Refused(Exception):
    """Raised inside, where a call ends with a status that is not OK."""

    def __init__(self, code: int, message: str) -> None:
        self.status = Status(code, message)
        super().__init__(message)
