-- The main statements of duckvec, to be run from the root of the repository on a
-- connection that duckvec was loaded into: con = duckvec.connect().

-- A table with a vector column: FLOAT[n], FLOAT[], DOUBLE[n] or DOUBLE[].
CREATE OR REPLACE TABLE packages AS
SELECT * REPLACE (embedding::FLOAT[384] AS embedding)
FROM 'examples/data/packages.parquet';

CREATE OR REPLACE TABLE queries AS
SELECT * REPLACE (embedding::FLOAT[384] AS embedding)
FROM 'examples/data/queries.parquet';

-- The index types, with their parameters and what is allowed.
SELECT index_type, parameter, phase, minimum, maximum, default_value
FROM vector_index_types();

-- Build an index. The parameters are JSON …
CALL create_vector_index('packages', 'IVF_FLAT', '{"nlist": 128}');

-- … or a STRUCT …
CALL create_vector_index('packages', 'HNSW', {'M': 16, 'efConstruction': 200});

-- … or in angle brackets. Here 16384 lists are more than 6,000 rows can train: the
-- index takes as many as they can. It replaces the one before.
CALL create_vector_index('packages', 'IVF_SQ8', '<"nlist":16384>');

-- Other metrics: L2 is the default, IP and COSINE are the others.
CALL create_vector_index('packages', 'ANNOY', '{"n_trees": 20}', metric := 'COSINE');

CALL create_vector_index('packages', 'IVF_FLAT', '{"nlist": 128}');

-- What there is.
SELECT collection, column_name, index_type, metric, params, search_params, row_count, state
FROM vector_indexes();

SELECT segment, index_type, row_count, params, size_bytes, library, library_version, state
FROM vector_index_segments();

-- The packages like one of them.
SELECT name, summary, distance
FROM vector_search('packages', (SELECT embedding FROM packages WHERE name = 'ec2ssh'), 5);

-- Only some of the rows: the filter is an expression, as after WHERE.
SELECT name, category, distance
FROM vector_search(
    'packages',
    (SELECT embedding FROM packages WHERE name = 'ec2ssh'),
    5,
    filter := 'category = ''cloud'' AND n_chars < 60'
);

-- Search parameters, for this search: more lists find more, and take longer.
SELECT name, distance
FROM vector_search(
    'packages',
    (SELECT embedding FROM packages WHERE name = 'ec2ssh'),
    k := 5,
    params := {'nprobe': 64}
);

-- A kNN join: the two nearest packages of every query.
SELECT queries.name AS query, hit.name, hit.distance
FROM queries, vector_search('packages', queries.embedding, 2) AS hit
ORDER BY query, hit.distance;

-- A search is a table like others.
SELECT category, count(*) AS hits, min(distance) AS nearest
FROM vector_search('packages', (SELECT embedding FROM queries WHERE id = 39), 100)
GROUP BY category
ORDER BY hits DESC;

-- Drop the index; searches then scan the table.
CALL drop_vector_index('packages');

SELECT name, distance
FROM vector_search('packages', (SELECT embedding FROM packages WHERE name = 'ec2ssh'), 5);
