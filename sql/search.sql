-- Search. {session} is the number of the connection that these macros belong to.
-- __duckvec_plan folds while the statement is bound and returns the text of the
-- plan, which reads the query vector from the common table expression __query. There it
-- gets a name that no column of the caller's has; without one DuckDB would take the text
-- of the vector for its name, each time it looks for it (0.4 ms of 384 numbers).

-- vector_search

CREATE OR REPLACE TEMP MACRO vector_search(
    collection,
    query,
    k := 10,
    params := NULL,
    filter := NULL,
    column_name := NULL,
    metric := NULL
) AS TABLE
WITH __query(vector) AS (SELECT query AS __duckvec_query)
FROM query(
    __duckvec_plan(
        {session},
        collection,
        k::VARCHAR,
        to_json(params),
        filter,
        column_name,
        metric,
        txid_current()::BIGINT,
        current_database(),
        current_schema(),
        current_setting('search_path')
    )
);

-- vector_range_search

CREATE OR REPLACE TEMP MACRO vector_range_search(
    collection,
    query,
    radius,
    params := NULL,
    filter := NULL,
    column_name := NULL
) AS TABLE
WITH __query(vector) AS (SELECT query AS __duckvec_query)
FROM query(
    __duckvec_plan_range(
        {session},
        collection,
        radius::DOUBLE,
        to_json(params),
        filter,
        column_name,
        txid_current()::BIGINT,
        current_database(),
        current_schema(),
        current_setting('search_path')
    )
);

-- vector_explain

CREATE OR REPLACE TEMP MACRO vector_explain(
    collection,
    query,
    k := 10,
    params := NULL,
    filter := NULL,
    column_name := NULL
) AS TABLE
WITH __query(vector) AS (SELECT query AS __duckvec_query),
result AS MATERIALIZED (
    FROM query(
        __duckvec_plan_explained(
            {session},
            collection,
            k::VARCHAR,
            to_json(params),
            filter,
            column_name,
            txid_current()::BIGINT,
            current_database(),
            current_schema(),
            current_setting('search_path')
        )
    )
),
rows AS MATERIALIZED (
    SELECT __duckvec_explained({session}, trace, result_rows, tail_rows) AS "row"
    FROM result
)
SELECT unnest("row") FROM rows;
