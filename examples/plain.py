"""The main things in a plain script: load, create, search, change, drop.

Run it from anywhere: python examples/plain.py
"""

from __future__ import annotations

from pathlib import Path

import duckvec

PACKAGES = Path(__file__).parent / "data" / "packages.parquet"

con = duckvec.connect()  # in memory; duckvec.connect("packages.duckdb") for a file
con.execute(
    "CREATE TABLE packages AS "
    f"SELECT * REPLACE (embedding::FLOAT[384] AS embedding) FROM '{PACKAGES}'"
)

# Without an index a search works too: it computes every distance.
like_this = """
    SELECT name, round(distance, 3) AS distance
    FROM vector_search(
        'packages', (SELECT embedding FROM packages WHERE name = $name), 5
    )
"""
print("Like ec2ssh, by scan:")
print(con.execute(like_this, {"name": "ec2ssh"}).fetchall())

# An index makes it faster; the statement stays the same.
con.execute(
    "CALL create_vector_index('packages', 'HNSW', {'M': 16, 'efConstruction': 200})"
)
print("Like ec2ssh, by index:")
print(con.execute(like_this, {"name": "ec2ssh"}).fetchall())

# A query vector of your own is a parameter: a list or a numpy array.
query = con.execute("SELECT embedding FROM packages WHERE id = 7").fetchall()[0][0]
print("Nearest to row 7, among the web packages:")
print(
    con.execute(
        "SELECT id, name FROM vector_search('packages', ?, 3, "
        "filter := 'category = ''web''')",
        [query],
    ).fetchall()
)

# The table is the truth: what is deleted is not found any more, at once.
con.execute("DELETE FROM packages WHERE id = 7")
print("Nearest to row 7, now that it is deleted:")
print(
    con.execute(
        "SELECT id, name FROM vector_search('packages', ?, 3)", [query]
    ).fetchall()
)

# The same from Python, where that is shorter.
with duckvec.load(con) as indexes:
    print("Many queries at once:")
    found = indexes.search("packages", [query, query], 2)
    print(found.project("query_index, name, distance").order("query_index, distance"))
    print(indexes.indexes().project("collection, index_type, search_params, state"))
    indexes.drop("packages")

con.close()
