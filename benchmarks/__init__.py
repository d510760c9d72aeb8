"""duckvec measured beside the libraries it stands on, and beside plain DuckDB."""
