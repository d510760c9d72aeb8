-- The catalog: one schema in the database that holds the indexed tables.
-- {schema} is the quoted, two-part name of that schema. There are no keys, and rows
-- are deleted and inserted, never updated: with an update in place that an open
-- snapshot does not see yet, DuckDB refuses to checkpoint.

CREATE SCHEMA IF NOT EXISTS {schema};

-- indexes: one row per indexed column

CREATE TABLE IF NOT EXISTS {schema}.indexes (
    index_id        VARCHAR NOT NULL,
    schema_name     VARCHAR NOT NULL,
    table_name      VARCHAR NOT NULL,
    column_name     VARCHAR NOT NULL,
    index_type      VARCHAR NOT NULL,
    metric          VARCHAR NOT NULL,
    params          VARCHAR NOT NULL,
    search_params   VARCHAR NOT NULL,
    dimension       INTEGER,
    index_file_size INTEGER NOT NULL,
    row_count       BIGINT NOT NULL,
    skipped_rows    BIGINT NOT NULL,
    build_seconds   DOUBLE NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    updated_at      TIMESTAMP NOT NULL
);
COMMENT ON TABLE {schema}.indexes IS
    'duckvec: one row per indexed column; written by duckvec alone';

-- segments: one row per artifact, immutable once written

CREATE TABLE IF NOT EXISTS {schema}.segments (
    segment_id      VARCHAR NOT NULL,
    index_id        VARCHAR NOT NULL,
    segment         INTEGER NOT NULL,
    index_type      VARCHAR NOT NULL,
    metric          VARCHAR NOT NULL,
    dimension       INTEGER NOT NULL,
    row_count       BIGINT NOT NULL,
    params          VARCHAR NOT NULL,
    search_params   VARCHAR NOT NULL,
    file            VARCHAR NOT NULL,
    map_file        VARCHAR NOT NULL,
    size_bytes      BIGINT NOT NULL,
    checksum        VARCHAR NOT NULL,
    format_version  INTEGER NOT NULL,
    library         VARCHAR NOT NULL,
    library_version VARCHAR NOT NULL,
    build_seconds   DOUBLE NOT NULL,
    ladder          VARCHAR
);
COMMENT ON TABLE {schema}.segments IS
    'duckvec: one row per index artifact; written by duckvec alone';

-- epoch: a counter that every change of the catalog and every guard moves; the
-- highest value counts

CREATE TABLE IF NOT EXISTS {schema}.epoch (
    value           BIGINT NOT NULL,
    catalog_version INTEGER NOT NULL
);
COMMENT ON TABLE {schema}.epoch IS
    'duckvec: a counter that tells whether a snapshot sees a commit';

INSERT INTO {schema}.epoch
SELECT 0, {catalog_version}
WHERE NOT EXISTS (FROM {schema}.epoch);
