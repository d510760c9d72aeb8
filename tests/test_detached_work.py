"""Work in the background on databases and tables that are others by now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

import duckvec
from duckvec import moves
from tests.data import Vectors, assert_same, create, create_table, exact, search

pytestmark = pytest.mark.core


@pytest.fixture
def shop(path: Path, vectors: Vectors) -> Path:
    """A database file with an index."""
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.close()
    return path


def files(path: Path) -> list[str]:
    return sorted(p.name for p in path.with_name(path.name + ".duckvec").iterdir())


def test_waiting_leaves_the_files_of_a_detached_database(
    shop: Path, vectors: Vectors
) -> None:
    before = files(shop)
    con = duckvec.connect()
    handle = duckvec.load(con)
    con.execute(f"ATTACH '{shop}' AS shop")
    search(con, vectors.query(0), collection="shop.items")
    con.execute("DETACH shop")
    handle.wait()
    assert files(shop) == before
    con.close()
    con = duckvec.connect(str(shop))
    assert con.execute("SELECT state FROM vector_indexes()").fetchall() == [("ready",)]


def test_a_renamed_table_is_compacted_and_dropped_by_its_new_name(
    path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(path), background=False)
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    con.execute("DELETE FROM items WHERE id % 2 = 0")
    con.execute("ALTER TABLE items RENAME TO goods")
    row = con.execute("CALL vector_compact('goods')").fetchall()[0]
    assert (row[0], row[6]) == ("goods", 1500)
    con.execute("CREATE TABLE other AS FROM goods")
    con.execute("ALTER TABLE goods RENAME TO best")
    con.execute("ALTER TABLE other RENAME TO goods")
    with pytest.raises(duckdb.Error, match="there is no index"):
        con.execute("CALL vector_compact('goods')")
    con.execute("CALL drop_vector_index('goods')").fetchall()
    found = con.execute("SELECT collection, index_type FROM vector_indexes()")
    assert found.fetchall() == [("best", "IVF_FLAT")]


def test_a_table_that_took_the_name_does_not_get_the_index(
    path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(path), background=False)
    create_table(con, vectors)
    create(con, "IVF_FLAT", metric="COSINE")
    con.execute("ALTER TABLE items RENAME TO goods")
    con.execute(
        "CREATE TABLE items AS SELECT id, price, "
        "list_transform(embedding::FLOAT[], lambda x: x + 1)::FLOAT[16] AS embedding "
        "FROM goods, range(3)"
    )
    duckvec.load(con).wait()
    found = con.execute("SELECT collection, indexed_rows, state FROM vector_indexes()")
    assert found.fetchall() == [("goods", 3000, "ready")]
    query = vectors.query(0)
    params = {"nprobe": 32}
    cosine = search(con, query, collection="goods", params=params)
    assert_same(cosine, exact(con, query, metric="COSINE", source="goods"))
    assert_same(search(con, query), exact(con, query))


def test_a_rename_that_a_search_saw_outlives_closing(
    path: Path, vectors: Vectors
) -> None:
    con = duckvec.connect(str(path), background=False)
    create_table(con, vectors)
    create(con, "IVF_FLAT", metric="IP")
    con.execute("CALL drop_vector_index('items')").fetchall()
    con.execute("ALTER TABLE items RENAME TO goods")
    search(con, vectors.query(0), collection="goods")
    con.close()
    con = duckvec.connect(str(path), background=False)
    found = con.execute("SELECT collection, metric FROM vector_indexes()").fetchall()
    assert found == [("goods", "IP")]


def test_each_search_of_a_statement_waits_for_its_own_look(
    path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    con = duckvec.connect(str(path), background=False)
    for name in ("items", "others"):
        create_table(con, vectors, name)
        create(con, "IVF_FLAT", name)
    query, params = vectors.query(0), {"nprobe": 32}
    for name in ("items", "others"):
        search(con, query, collection=name)
    con.execute(
        "ALTER TABLE items ALTER embedding TYPE FLOAT[16] USING "
        "list_reverse(embedding::FLOAT[])::FLOAT[16]"
    )
    is_rewritten = moves.is_rewritten

    def fail_for_items(cursor: Any, index: Any, table: Any, generation: Any) -> bool:
        if table.name == "items":
            raise duckdb.IOException("cannot be read")
        return is_rewritten(cursor, index, table, generation)

    monkeypatch.setattr(moves, "is_rewritten", fail_for_items)
    found = con.execute(
        "SELECT a.id, a.distance FROM vector_search('items', $query, params := $params)"
        " AS a, (FROM vector_search('others', $query, 1)) AS b",
        {"query": query, "params": params},
    ).fetchall()
    assert_same(found, exact(con, query))
