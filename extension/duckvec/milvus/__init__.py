"""A Milvus 1.x client without a server: its collections are tables of a DuckDB file.

```python
from duckvec.milvus import IndexType, MetricType, Milvus

client = Milvus(uri="my.db")
```

A script for pymilvus 1.x changes its import and its connection, and nothing else; see
docs/migrating-from-milvus.md.
"""

from duckvec import __version__
from duckvec.milvus.client import Milvus
from duckvec.milvus.results import QueryResult, RowQueryResult, TopKQueryResult
from duckvec.milvus.types import (
    CollectionSchema,
    ConnectError,
    DeprecatedError,
    IndexParam,
    IndexType,
    MetricType,
    NotConnectError,
    ParamError,
    PartitionParam,
    RepeatingConnectError,
    Status,
    VersionError,
)

__all__ = [
    "CollectionSchema",
    "ConnectError",
    "DeprecatedError",
    "IndexParam",
    "IndexType",
    "MetricType",
    "Milvus",
    "NotConnectError",
    "ParamError",
    "PartitionParam",
    "QueryResult",
    "RepeatingConnectError",
    "RowQueryResult",
    "Status",
    "TopKQueryResult",
    "VersionError",
    "__version__",
]
