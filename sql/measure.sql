-- What an index would take before it is built, and how good one is.

-- vector_index_estimate

CREATE OR REPLACE TEMP MACRO vector_index_estimate(
    collection,
    index_type,
    params := NULL,
    column_name := NULL,
    metric := 'L2'
) AS TABLE
WITH result AS MATERIALIZED (
    SELECT __duckvec_estimate(
        {session},
        collection,
        index_type,
        to_json(params),
        column_name,
        metric,
        current_database(),
        current_schema(),
        current_setting('search_path')
    ) AS result
)
SELECT unnest(__duckvec_row(result)) FROM result;

-- vector_recall

CREATE OR REPLACE TEMP MACRO vector_recall(
    collection,
    k := 10,
    sample := 100,
    params := NULL,
    filter := NULL,
    column_name := NULL
) AS TABLE
WITH call AS MATERIALIZED (
    SELECT number
    FROM (
        SELECT __duckvec_recall_begin(
            {session},
            collection,
            k::VARCHAR,
            sample::VARCHAR,
            to_json(params),
            filter,
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
                k::VARCHAR,
                sample::VARCHAR,
                to_json(params)::VARCHAR,
                filter,
                column_name
            ])
        )
    )
    WHERE number IS NOT NULL
    LIMIT 1
), result AS MATERIALIZED (
    SELECT __duckvec_recall_end({session}, number) AS result FROM call
)
SELECT unnest(__duckvec_row(result)) FROM result;
