"""What the client checks before it asks the database.

Wrong Python types raise `ParamError`, as in the published client; values that its
server would refuse become a status.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duckvec.errors import VectorIndexError
from duckvec.index_types import get_index_type
from duckvec.milvus.types import IndexType, MetricType, ParamError, Refused, Status
from duckvec.parameters import Parameter, check_build_params

DEFAULT_INDEX_FILE_SIZE = 1024
LARGEST_DIMENSION = 32768
LARGEST_INDEX_FILE_SIZE = 4096
LARGEST_TOP_K = 16384
LONGEST_NAME = 255
LARGEST_ID = int(np.iinfo(np.int64).max)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def illegal(name: str, value: object) -> ParamError:
    """Return the error for an argument of the wrong type."""
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return ParamError(f"`{name}` value {shown} is illegal")


def check_text(name: str, value: object) -> str:
    """Return an argument that is a text and not empty."""
    if not isinstance(value, str) or not value:
        raise illegal(name, value)
    return value


def check_collection_name(name: str) -> str:
    """Return a name that a collection may have."""
    if _NAME.fullmatch(name) and len(name) <= LONGEST_NAME:
        return name
    if len(name) > LONGEST_NAME:
        why = f"The length of a collection name must be at most {LONGEST_NAME}."
    elif not _NAME.match(name):
        why = (
            "The first character of a collection name must be an underscore or letter."
        )
    else:
        why = "Collection name can only contain numbers, letters, and underscores."
    raise Refused(
        Status.ILLEGAL_COLLECTION_NAME,
        f"Invalid collection name: {name[:80]}. {why}",
    )


def check_int(name: str, value: object) -> int:
    """Return an argument that is an integer and no boolean."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise illegal(name, value)
    return int(value)


def check_index_type(value: object) -> IndexType:
    """Return an index type, given as itself or as its number; INVALID is none."""
    try:
        kind = IndexType(check_int("index_type", value))
    except ValueError as error:
        raise illegal("index_type", value) from error
    if kind is IndexType.INVALID:
        raise illegal("index_type", kind)
    return kind


def check_metric_type(value: object) -> MetricType:
    """Return a metric, given as itself or as its number; INVALID is none."""
    try:
        metric = MetricType(check_int("metric_type", value))
    except ValueError as error:
        raise illegal("metric_type", value) from error
    if metric is MetricType.INVALID:
        raise illegal("metric_type", metric)
    return metric


def check_within(value: int, most: int, code: int, message: str) -> int:
    """Return a value from 1 to `most`; `message` says it and which are right."""
    if not 1 <= value <= most:
        raise Refused(code, message.format(value=value, most=most))
    return value


def check_collection(param: object) -> tuple[str, int, int, MetricType]:
    """Return name, dimension, index_file_size and metric of a new collection."""
    if not isinstance(param, Mapping):
        raise ParamError("Param type incorrect, expect dict")
    name = check_text("collection_name", param.get("collection_name"))
    dimension = check_int("dimension", param.get("dimension"))
    size = check_int(
        "index_file_size", param.get("index_file_size", DEFAULT_INDEX_FILE_SIZE)
    )
    metric = check_metric_type(param.get("metric_type", MetricType.L2))
    check_collection_name(name)
    check_within(
        dimension,
        LARGEST_DIMENSION,
        Status.ILLEGAL_DIMENSION,
        "Invalid collection dimension: {value}. The collection dimension must be "
        "within the range of 1 ~ {most}.",
    )
    check_within(
        size,
        LARGEST_INDEX_FILE_SIZE,
        Status.ILLEGAL_ARGUMENT,
        "Invalid index file size: {value}. The index file size must be within the "
        "range of 1 ~ {most}.",
    )
    if metric not in (MetricType.L2, MetricType.IP):
        raise Refused(
            Status.ILLEGAL_METRIC_TYPE,
            f"Invalid metric type: {metric.name}. Vectors of bits are not stored here; "
            "use L2 or IP.",
        )
    return name, dimension, size, metric


def check_records(name: str, records: object) -> NDArray[np.float32]:
    """Return a copy of vectors (n, d): at least one, all of one length and finite."""
    if not isinstance(records, (list, tuple, np.ndarray)) or len(records) == 0:
        raise illegal(name, records)
    if any(isinstance(record, (bytes, bytearray)) for record in records):
        raise Refused(
            Status.ILLEGAL_ROWRECORD,
            "Vectors of bits are not stored here; give lists of numbers.",
        )
    first = records[0]
    if not isinstance(first, (list, tuple, np.ndarray)) or len(first) == 0:
        raise illegal(name, records)
    try:
        vectors = np.array(records, dtype=np.float32)
    except ValueError as error:
        lengths = {len(record) for record in records if isinstance(record, Sequence)}
        if len(lengths) > 1:
            raise ParamError("Whole vectors must have the same dimension") from error
        raise illegal(name, records) from error
    except TypeError as error:
        raise illegal(name, records) from error
    if vectors.ndim != 2:
        raise illegal(name, records)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise Refused(
            Status.ILLEGAL_ROWRECORD,
            f"Invalid vector: number {row} holds NaN or an infinite value.",
        )
    return vectors


def check_ids(name: str, ids: object) -> list[int]:
    """Return integers of 63 bits, at least one: none is negative."""
    if isinstance(ids, np.ndarray):
        ids = ids.tolist()
    if not isinstance(ids, (list, tuple)) or not ids:
        raise illegal(name, ids)
    checked = [check_int(name, one) for one in ids]
    for one in checked:
        if not 0 <= one <= LARGEST_ID:
            raise illegal(name, one)
    return checked


def check_tags(name: str, tags: object) -> list[str] | None:
    """Return a list of partition tags, None for all partitions."""
    if tags is None:
        return None
    if not isinstance(tags, (list, tuple)):
        raise illegal(name, tags)
    return [check_text(name, tag) for tag in tags]


def check_params(params: object) -> dict[str, Any]:
    """Return the parameters of an index or a search: a dictionary, or None."""
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise ParamError("Params must be a dictionary type")
    return dict(params)


def check_index(
    index_type: IndexType, params: Mapping[str, Any], dimension: int
) -> dict[str, int]:
    """Return the build parameters of an index, all of them, in their ranges."""
    kind = get_index_type(index_type.sql_name)
    for parameter in kind.parameters:
        if parameter.phase == "build":
            _check_in_range(parameter, params)
    try:
        return check_build_params(kind, params, dimension)
    except VectorIndexError as error:
        raise Refused(Status.ILLEGAL_ARGUMENT, str(error)) from error


def search_params(index_type: IndexType, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the parameters that the index type takes, or a recall.

    A search goes on with the parameters of the type that was dropped, or that is built
    next: scripts search before, between and after.
    """
    if index_type is IndexType.INVALID:
        return dict(params)
    kind = get_index_type(index_type.sql_name)
    names = {each.name for each in kind.parameters if each.phase == "search"}
    return {name: value for name, value in params.items() if name in names}


def _check_in_range(parameter: Parameter, params: Mapping[str, Any]) -> None:
    name = parameter.name
    code = Status.ILLEGAL_NLIST if name == "nlist" else Status.ILLEGAL_ARGUMENT
    if name not in params:
        raise Refused(Status.ILLEGAL_ARGUMENT, f"Parameter list must contain: {name}")
    value = params[name]
    minimum, maximum = parameter.minimum, parameter.maximum
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(code, f"Invalid {name} value: {value!r}. It must be an integer.")
    if parameter.allowed is not None or minimum is None or not isinstance(maximum, int):
        return  # the declaration checks it
    if not minimum <= value <= maximum:
        raise Refused(
            code,
            f"Invalid {name} value: {value}. Valid range is [{minimum}, {maximum}]",
        )


def check_top_k(top_k: int) -> int:
    """Return how many hits are wanted, from 1 to 16384."""
    return check_within(
        top_k,
        LARGEST_TOP_K,
        Status.ILLEGAL_TOPK,
        "Invalid topk: {value}. The topk must be within the range of 1 ~ {most}.",
    )
