"""Vector indexes inside DuckDB.

```python
import duckvec

con = duckvec.connect("shop.db")
con.execute("CALL create_vector_index('items', 'IVF_FLAT', {'nlist': 256})")
con.execute("FROM vector_search('items', ?, 10)", [vector]).fetchall()
```
"""

from __future__ import annotations

from duckvec.errors import VectorIndexError
from duckvec.indexes import VectorIndexes, connect, load, unload

__version__ = "0.1.0"

__all__ = [
    "VectorIndexError",
    "VectorIndexes",
    "__version__",
    "connect",
    "load",
    "unload",
]
