-- What there is: indexes, their segments, and the types one can build.

CREATE OR REPLACE TEMP MACRO vector_indexes() AS TABLE
WITH result AS MATERIALIZED (SELECT __duckvec_indexes({session}) AS result),
rows AS MATERIALIZED (
    SELECT unnest(__duckvec_row(result)) AS "row" FROM result
)
SELECT unnest("row") FROM rows;

CREATE OR REPLACE TEMP MACRO vector_index_segments() AS TABLE
WITH result AS MATERIALIZED (SELECT __duckvec_segments({session}) AS result),
rows AS MATERIALIZED (
    SELECT unnest(__duckvec_row(result)) AS "row" FROM result
)
SELECT unnest("row") FROM rows;

CREATE OR REPLACE TEMP MACRO vector_index_types() AS TABLE
WITH rows AS MATERIALIZED (SELECT unnest(__duckvec_types()) AS "row")
SELECT unnest("row") FROM rows;
