"""Vector indexes inside DuckDB.

```python
import duckvec

con = duckvec.connect("shop.db")
con.execute("CALL create_vector_index('items', 'IVF_FLAT', {'nlist': 256})")
con.execute("FROM vector_search('items', ?, 10)", [vector]).fetchall()
```
"""

from __future__ import annotations

import logging

from duckvec.errors import VectorIndexError
from duckvec.indexes import VectorIndexes, connect, load, unload

__version__ = "0.1.0"

# A library prints nothing unless the application asks for its log.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "VectorIndexError",
    "VectorIndexes",
    "__version__",
    "connect",
    "load",
    "unload",
]
