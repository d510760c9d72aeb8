-- Building, dropping and compacting. The functions with side effects run once, inside a
-- materialized common table expression; their result carries either a row or the
-- sentence of an error. A scalar and a table macro share each name, so that
-- CALL f(), FROM f() and SELECT f() all work.
--
-- Table macros wait for the call in rows that mean nothing, whose text
-- __duckvec_pulses gives. It is folded while the statement is bound, with all arguments:
-- a column among them is DuckDB's error, as it would be called for any row of many.

CREATE OR REPLACE TEMP MACRO __duckvec_row(result) AS
    CASE WHEN result.error IS NULL THEN result."row" ELSE error(result.error) END;

-- create_vector_index

CREATE OR REPLACE TEMP MACRO create_vector_index(
    collection,
    index_type,
    params := NULL,
    column_name := NULL,
    metric := 'L2',
    index_file_size := 1024
) AS list_transform(
    [
        __duckvec_create(
            {session},
            collection,
            index_type,
            to_json(params),
            column_name,
            metric,
            index_file_size,
            current_database(),
            current_schema(),
            current_setting('search_path')
        )
    ],
    lambda result: __duckvec_row(result)
)[1];

CREATE OR REPLACE TEMP MACRO create_vector_index(
    collection,
    index_type,
    params := NULL,
    column_name := NULL,
    metric := 'L2',
    index_file_size := 1024
) AS TABLE
WITH call AS MATERIALIZED (
    SELECT number
    FROM (
        SELECT __duckvec_create_begin(
            {session},
            collection,
            index_type,
            to_json(params),
            column_name,
            metric,
            index_file_size,
            current_database(),
            current_schema(),
            current_setting('search_path'),
            __duckvec_caller({session}),
            current_query_id(),
            pulse
        ) AS number
        FROM query(
            __duckvec_pulses([
                collection,
                index_type,
                to_json(params)::VARCHAR,
                column_name,
                metric,
                index_file_size::VARCHAR
            ])
        )
    )
    WHERE number IS NOT NULL
    LIMIT 1
), result AS MATERIALIZED (
    SELECT __duckvec_create_end({session}, number) AS result FROM call
)
SELECT unnest(__duckvec_row(result)) FROM result;

-- drop_vector_index

CREATE OR REPLACE TEMP MACRO drop_vector_index(
    collection,
    column_name := NULL
) AS list_transform(
    [
        __duckvec_drop(
            {session},
            collection,
            column_name,
            current_database(),
            current_schema(),
            current_setting('search_path')
        )
    ],
    lambda result: __duckvec_row(result)
)[1];

CREATE OR REPLACE TEMP MACRO drop_vector_index(
    collection,
    column_name := NULL
) AS TABLE
WITH call AS MATERIALIZED (
    SELECT number
    FROM (
        SELECT __duckvec_drop_begin(
            {session},
            collection,
            column_name,
            current_database(),
            current_schema(),
            current_setting('search_path'),
            __duckvec_caller({session}),
            current_query_id(),
            pulse
        ) AS number
        FROM query(
            __duckvec_pulses([
                collection,
                column_name
            ])
        )
    )
    WHERE number IS NOT NULL
    LIMIT 1
), result AS MATERIALIZED (
    SELECT __duckvec_drop_end({session}, number) AS result FROM call
)
SELECT unnest(__duckvec_row(result)) FROM result;

-- vector_compact

CREATE OR REPLACE TEMP MACRO vector_compact(
    collection,
    column_name := NULL
) AS list_transform(
    [
        __duckvec_compact(
            {session},
            collection,
            column_name,
            current_database(),
            current_schema(),
            current_setting('search_path')
        )
    ],
    lambda result: __duckvec_row(result)
)[1];

CREATE OR REPLACE TEMP MACRO vector_compact(
    collection,
    column_name := NULL
) AS TABLE
WITH call AS MATERIALIZED (
    SELECT number
    FROM (
        SELECT __duckvec_compact_begin(
            {session},
            collection,
            column_name,
            current_database(),
            current_schema(),
            current_setting('search_path'),
            __duckvec_caller({session}),
            current_query_id(),
            pulse
        ) AS number
        FROM query(
            __duckvec_pulses([
                collection,
                column_name
            ])
        )
    )
    WHERE number IS NOT NULL
    LIMIT 1
), result AS MATERIALIZED (
    SELECT __duckvec_compact_end({session}, number) AS result FROM call
)
SELECT unnest(__duckvec_row(result)) FROM result;
