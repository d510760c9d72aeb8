"""The index types by name: one dict, one lookup."""

from __future__ import annotations

from importlib.metadata import entry_points

from duckvec.errors import UnknownIndexTypeError
from duckvec.index_types.annoy import Annoy
from duckvec.index_types.base import IndexType
from duckvec.index_types.flat import Flat
from duckvec.index_types.hnsw import Hnsw
from duckvec.index_types.ivf_flat import IvfFlat
from duckvec.index_types.ivf_pq import IvfPq
from duckvec.index_types.ivf_sq8 import IvfSq8
from duckvec.index_types.ivf_sq8h import IvfSq8h
from duckvec.index_types.nsg import Nsg

ENTRY_POINT_GROUP = "duckvec.index_types"

INDEX_TYPES: dict[str, IndexType] = {
    kind.name: kind
    for kind in (
        Flat(),
        IvfFlat(),
        IvfSq8(),
        IvfSq8h(),
        IvfPq(),
        Nsg(),
        Hnsw(),
        Annoy(),
    )
}
"""The types that come with the package, by name."""

_BY_NAME = {
    name: kind for kind in INDEX_TYPES.values() for name in (kind.name, *kind.aliases)
}


def get_index_type(name: str) -> IndexType:
    """Return the index type of that name or alias, in any case.

    Raises:
        UnknownIndexTypeError: neither this package nor an entry point has it.
    """
    key = name.strip().upper()
    if key not in _BY_NAME:
        _BY_NAME[key] = _from_entry_points(key, name)
    return _BY_NAME[key]


def _from_entry_points(key: str, name: str) -> IndexType:
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name.upper() == key:
            kind = point.load()
            loaded = kind() if isinstance(kind, type) else kind
            if isinstance(loaded, IndexType):
                return loaded
    raise UnknownIndexTypeError(name, tuple(INDEX_TYPES))
