"""The SQL of duckvec: the catalog's tables and the macros, as plain .sql files."""
