"""The functions that DuckDB calls, thin: they unpack arguments and call the engine."""
