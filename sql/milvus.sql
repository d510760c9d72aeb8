-- What the Milvus-shaped client records of its collections, in their own database.
-- {schema} is the quoted path of the schema.

CREATE SCHEMA IF NOT EXISTS {schema};

CREATE TABLE IF NOT EXISTS {schema}.collections (
    collection_name VARCHAR PRIMARY KEY,
    dimension       INTEGER NOT NULL,
    index_file_size INTEGER NOT NULL,
    metric_type     VARCHAR NOT NULL,
    -- NULL until something was inserted; then ids are always given, or never.
    ids_are_given   BOOLEAN
);

CREATE TABLE IF NOT EXISTS {schema}.partitions (
    collection_name VARCHAR NOT NULL,
    partition_tag   VARCHAR NOT NULL,
    PRIMARY KEY (collection_name, partition_tag)
);
