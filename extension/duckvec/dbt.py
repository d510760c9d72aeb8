"""A plugin of dbt-duckdb: every connection of a dbt run has the functions of duckvec.

In profiles.yml:

```yaml
type: duckdb
path: shop.duckdb
plugins:
  - module: duckvec.dbt
    config: {directory: /var/lib/vectors}  # optional, and so is `background`
```

Create an index after the model is committed: in a post-hook outside its transaction,
because dbt makes a table under another name and then renames it.
"""

from __future__ import annotations

from typing import Any

import duckdb
from dbt.adapters.duckdb.plugins import BasePlugin

from duckvec.errors import ParameterError
from duckvec.indexes import load

_OPTIONS = ("directory", "background", "memory_limit")


class Plugin(BasePlugin):
    """Loads duckvec into each connection and cursor that dbt opens."""

    def initialize(self, plugin_config: dict[str, Any]) -> None:
        """Take the options of `duckvec.load` from the plugin's configuration.

        dbt-duckdb mixes the profile's `settings` into it: those are DuckDB's, its
        memory_limit too.

        Raises:
            ParameterError: it holds something else.
        """
        settings = getattr(self.creds, "settings", None) or {}
        for name in plugin_config:
            if name not in _OPTIONS and name not in settings:
                raise ParameterError(
                    f'duckvec.dbt has no option "{name}"; there are '
                    f"{', '.join(_OPTIONS)}"
                )
        self._options = {
            name: plugin_config[name]
            for name in _OPTIONS
            if name in plugin_config and name not in settings
        }

    def configure_connection(self, conn: duckdb.DuckDBPyConnection) -> None:
        """Load the connection that dbt keeps."""
        load(conn, **self._options)

    def configure_cursor(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Load a cursor, of which each thread of dbt has one."""
        load(cursor, **self._options)
