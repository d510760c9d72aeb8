"""The Milvus-shaped client, in the sequences that Milvus documents."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import duckvec.milvus
from duckvec.milvus import (
    CollectionSchema,
    ConnectError,
    DeprecatedError,
    IndexParam,
    IndexType,
    MetricType,
    Milvus,
    NotConnectError,
    ParamError,
    Status,
)
from tests.data import clustered

DIMENSION = 16
PUBLISHED = json.loads(
    (Path(__file__).parent / "fixtures" / "pymilvus-1.1.2.json").read_text()
)
# Without Prepare, which makes messages for the server.
PUBLISHED_NAMES = [
    "ConnectError",
    "IndexType",
    "MetricType",
    "Milvus",
    "NotConnectError",
    "ParamError",
    "RepeatingConnectError",
    "Status",
    "VersionError",
    "__version__",
]
# The published examples, for vectors of 16 dimensions and a few thousand rows.
EXAMPLES: list[tuple[IndexType, dict[str, int], dict[str, int]]] = [
    (IndexType.FLAT, {}, {}),
    (IndexType.IVF_FLAT, {"nlist": 1024}, {"nprobe": 10}),
    (IndexType.IVF_SQ8, {"nlist": 1024}, {"nprobe": 10}),
    (IndexType.IVF_SQ8H, {"nlist": 1024}, {"nprobe": 10}),
    (IndexType.IVF_PQ, {"m": 8, "nlist": 1024}, {"nprobe": 10}),
    (
        IndexType.RNSG,
        {
            "search_length": 45,
            "out_degree": 50,
            "candidate_pool_size": 300,
            "knng": 100,
        },
        {"search_length": 60},
    ),
    (IndexType.HNSW, {"M": 16, "efConstruction": 500}, {"ef": 64}),
    (IndexType.ANNOY, {"n_trees": 50}, {"search_k": 100}),
]


@pytest.fixture
def client(path: Path) -> Iterator[Milvus]:
    with Milvus(uri=str(path)) as client:
        yield client


def create(client: Milvus, name: str = "test01", **options: Any) -> None:
    param = {"collection_name": name, "dimension": DIMENSION, **options}
    assert client.create_collection(param).OK()


def filled(client: Milvus, rows: int = 2000, **options: Any) -> np.ndarray[Any, Any]:
    create(client, **options)
    vectors = clustered(rows, DIMENSION).rows
    status, ids = client.insert("test01", vectors, ids=list(range(rows)))
    assert status.OK() and ids == list(range(rows))
    return vectors


def refused(answer: Any, code: int, message: str | None = None) -> None:
    """Check that a call ended with a code, and nothing else came of it."""
    status = answer[0] if isinstance(answer, tuple) else answer
    assert (status.code, status.OK()) == (code, False)
    assert "\n" not in status.message
    if message is not None:
        assert status.message == message
    if isinstance(answer, tuple):
        assert not answer[1]


@pytest.mark.core
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_methods_are_those_of_the_published_client(name: str) -> None:
    published = PUBLISHED[name]
    member = inspect.getattr_static(Milvus, name)
    if isinstance(member, property):
        assert published["parameters"] == []
        return
    parameters = list(inspect.signature(member).parameters.values())[1:]
    plain = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in plain] == published["parameters"]
    defaults = [p.default for p in plain if p.default is not p.empty]
    assert defaults == published["defaults"]
    takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters)
    assert takes_more == published["keywords"]


@pytest.mark.core
def test_numbers_and_names() -> None:
    assert [int(each) for each in IndexType] == [0, 1, 2, 3, 4, 5, 6, 11, 12]
    assert [int(IndexType["IVFLAT"]), int(IndexType["IVF_SQ8_H"])] == [2, 5]
    assert str(IndexType.RNSG) == f"{IndexType.RNSG}" == "RNSG"
    assert repr(IndexType.RNSG) == "<IndexType: RNSG>"
    assert (str(MetricType.L2), repr(MetricType.L2)) == ("L2", "<MetricType: L2>")
    assert repr(CollectionSchema("a", 8, 1024, MetricType.IP)) == (
        "CollectionSchema(collection_name='a', dimension=8, index_file_size=1024, "
        "metric_type=<MetricType: IP>)"
    )
    assert str(IndexParam("a", IndexType.HNSW, {"M": 8})) == (
        "(collection_name='a', index_type=<IndexType: HNSW>, params={'M': 8})"
    )
    assert [each.name for each in MetricType][:3] == ["INVALID", "L2", "IP"]
    assert [int(each) for each in MetricType] == list(range(8))
    assert Status() == 0 == Status.SUCCESS and Status() == Status(0, "other")
    assert Status(4) != Status(5) and Status(4) != 0 and not Status(4).OK()
    assert repr(Status(4, "no")) == "Status(code=4, message='no')"
    assert Status.OUT_OF_MEMORY == 24


@pytest.mark.core
def test_the_module_has_the_published_names() -> None:
    assert set(PUBLISHED_NAMES) <= set(duckvec.milvus.__all__)
    assert duckvec.milvus.__version__ == duckvec.__version__
    for name in duckvec.milvus.__all__:
        assert hasattr(duckvec.milvus, name)


@pytest.mark.core
def test_numbers_stand_for_index_types_and_metrics(client: Milvus) -> None:
    vectors = filled(client, 200, metric_type=2)
    _, info = client.get_collection_info("test01")
    assert info is not None and info.metric_type is MetricType.IP
    assert client.create_index("test01", 2, {"nlist": 4}).OK()
    _, index = client.get_index_info("test01")
    assert index is not None and index.index_type is IndexType.IVF_FLAT
    assert client.search("test01", 1, vectors[:1], params={"nprobe": 4})[0].OK()


@pytest.mark.core
def test_what_comes_with_a_status_that_is_not_ok(client: Milvus) -> None:
    """Test that it is what the published client gives, so that scripts go on."""
    vector = [[0.0] * DIMENSION]
    assert client.has_collection("1a")[1] is False
    assert client.has_partition("nothing", "tag")[1] is False
    answers = [
        client.get_entity_by_id("nothing", [1]),
        client.list_id_in_segment("nothing", "_default"),
        client.list_partitions("nothing"),
        client.search("nothing", 1, vector),
        client.search_in_segment("nothing", ["_default"], vector, 1),
        client.insert("nothing", vector),
        client.insert("nothing", vector, _async=True).result(),
    ]
    assert [answer for _, answer in answers] == [[]] * len(answers)
    answers = [
        client.get_collection_info("nothing"),
        client.count_entities("nothing"),
        client.get_collection_stats("nothing"),
        client.get_index_info("nothing"),
        client.search("nothing", 1, vector, _async=True).result(),
    ]
    assert [answer for _, answer in answers] == [None] * len(answers)
    client._collections._con.execute("CREATE SCHEMA milvus")
    client._collections._con.execute("CREATE TABLE milvus.collections (odd INTEGER)")
    status, names = client.list_collections()
    assert not status.OK() and names == []


@pytest.mark.core
@pytest.mark.parametrize(("index_type", "params", "search"), EXAMPLES)
def test_the_published_examples(
    client: Milvus,
    index_type: IndexType,
    params: dict[str, int],
    search: dict[str, int],
) -> None:
    pytest.importorskip("hnswlib")
    pytest.importorskip("annoy")
    vectors = filled(client, index_file_size=32, metric_type=MetricType.L2)
    assert client.flush(["test01"]).OK()
    assert client.create_index("test01", index_type, params).OK()
    status, index = client.get_index_info("test01")
    assert status.OK() and index is not None
    assert (index.index_type, index.params) == (index_type, params)
    assert index.collection_name == "test01"
    status, result = client.search("test01", 5, vectors[:10].tolist(), params=search)
    assert status.OK() and result.shape == (10, 5)
    assert [row[0].id for row in result] == list(range(10))
    assert [row[0].distance for row in result] == [0.0] * 10
    assert client.drop_index("test01").OK()
    status, index = client.get_index_info("test01")
    assert index is not None and index.index_type == IndexType.FLAT
    assert index.params == {}
    status, again = client.search("test01", 5, vectors[:10], params=search)
    assert status.OK() and [row.ids[0] for row in again] == list(range(10))
    assert client.drop_collection("test01").OK()
    assert client.has_collection("test01") == (Status(), False)


@pytest.mark.core
@pytest.mark.parametrize("metric", [MetricType.L2, MetricType.IP])
def test_distances_are_those_of_milvus(client: Milvus, metric: MetricType) -> None:
    vectors = filled(client, 500, metric_type=metric)
    queries = clustered(4, DIMENSION, seed=3).rows
    if metric is MetricType.L2:
        true = ((vectors[np.newaxis] - queries[:, np.newaxis]) ** 2).sum(axis=2)
        order = np.argsort(true, axis=1)
    else:
        true = queries @ vectors.T
        order = np.argsort(-true, axis=1)
    for indexed in (False, True):
        if indexed:
            assert client.create_index("test01", IndexType.IVF_FLAT, {"nlist": 8}).OK()
        status, result = client.search("test01", 3, queries, params={"nprobe": 8})
        assert status.OK()
        for number, row in enumerate(result):
            wanted = true[number, order[number, :3]]
            assert row.distances == pytest.approx(wanted.tolist(), rel=1e-4)
        assert result.id_array == order[:, :3].tolist()


@pytest.mark.core
def test_streaming_into_an_index(client: Milvus) -> None:
    create(client)
    assert client.create_index("test01", IndexType.IVF_FLAT, {"nlist": 64}).OK()
    vectors = clustered(3000, DIMENSION).rows
    for start in range(0, 3000, 500):
        status, ids = client.insert("test01", vectors[start : start + 500].tolist())
        assert status.OK() and len(set(ids)) == 500
        status, result = client.search(
            "test01", 1, vectors[start : start + 1], params={"nprobe": 64}
        )
        assert status.OK() and result[0][0].id == ids[0]
    assert client.compact("test01").OK()
    assert client.count_entities("test01") == (Status(), 3000)
    status, index = client.get_index_info("test01")
    assert index is not None and index.index_type == IndexType.IVF_FLAT


@pytest.mark.core
def test_ids_are_always_given_or_never(client: Milvus) -> None:
    create(client)
    vectors = clustered(10, DIMENSION).rows.tolist()
    status, ids = client.insert("test01", vectors)
    assert status.OK() and ids == sorted(set(ids)) and len(ids) == 10
    refused(
        client.insert("test01", vectors, ids=list(range(10))),
        Status.ILLEGAL_VECTOR_ID,
        "The ids of collection test01 are always generated.",
    )
    create(client, "given")
    assert client.insert("given", vectors, ids=list(range(10)))[0].OK()
    refused(client.insert("given", vectors), Status.ILLEGAL_VECTOR_ID)
    assert client.count_entities("test01") == client.count_entities("given")


@pytest.mark.core
def test_entities_are_read_and_deleted(client: Milvus) -> None:
    vectors = filled(client)
    status, found = client.get_entity_by_id("test01", [7, 99_999, 0])
    assert status.OK() and found is not None
    assert found[1] == [] and found[0] == vectors[7].tolist()
    assert client.create_index("test01", IndexType.IVF_SQ8, {"nlist": 16}).OK()
    assert client.delete_entity_by_id("test01", [7, 99_999]).OK()
    assert client.get_entity_by_id("test01", [7]) == (Status(), [[]])
    status, result = client.search("test01", 3, vectors[7:8], params={"nprobe": 16})
    assert status.OK() and 7 not in result[0].ids and len(result[0]) == 3
    assert client.compact("test01").OK()
    status, index = client.get_index_info("test01")
    assert index is not None and index.index_type == IndexType.IVF_SQ8
    status, result = client.search("test01", 3, vectors[7:8], params={"nprobe": 16})
    assert status.OK() and 7 not in result[0].ids
    assert client.count_entities("test01") == (Status(), 1999)


@pytest.mark.core
def test_there_is_nothing_to_compact_without_an_index(client: Milvus) -> None:
    filled(client, 200)
    assert client.compact("test01").OK()
    assert client.create_index("test01", IndexType.IVF_FLAT, {"nlist": 4}).OK()
    assert client.drop_index("test01").OK()
    assert client.compact("test01").OK()
    assert client.create_index("test01", IndexType.IVF_FLAT, {"nlist": 4}).OK()
    client._collections._con.execute("DROP TABLE test01")
    create(client)
    assert client.compact("test01").OK()


@pytest.mark.core
def test_partitions(client: Milvus) -> None:
    create(client)
    vectors = clustered(300, DIMENSION).rows
    assert client.create_partition("test01", "new").OK()
    assert client.has_partition("test01", "new") == (Status(), True)
    assert client.has_partition("test01", "old") == (Status(), False)
    refused(client.create_partition("test01", "new"), Status.ILLEGAL_COLLECTION_NAME)
    client.insert("test01", vectors[:200], ids=list(range(200)))
    client.insert("test01", vectors[200:], list(range(200, 300)), "new")
    refused(
        client.insert("test01", vectors, list(range(300)), "it's"),
        Status.COLLECTION_NOT_EXISTS,
    )
    status, listed = client.list_partitions("test01")
    assert listed is not None and [each.tag for each in listed] == ["_default", "new"]
    for index_type in (None, IndexType.IVF_FLAT):
        if index_type is not None:
            assert client.create_index("test01", index_type, {"nlist": 4}).OK()
        status, result = client.search("test01", 5, vectors[:1], ["new"], {"nprobe": 4})
        assert status.OK() and min(result[0].ids) >= 200 and len(result[0]) == 5
        status, result = client.search_in_segment(
            "test01", ["_default"], vectors[:1], 5
        )
        assert status.OK() and result[0].ids[0] == 0 and max(result[0].ids) < 200
    status, stats = client.get_collection_stats("test01")
    assert stats is not None and stats["row_count"] == 300
    assert [part["row_count"] for part in stats["partitions"]] == [200, 100]
    (segment,) = stats["partitions"][1]["segments"]
    assert segment["index_name"] == "IVF_FLAT" and segment["data_size"] > 0
    status, ids = client.list_id_in_segment("test01", segment["name"])
    assert ids is not None and sorted(ids) == list(range(200, 300))
    assert client.drop_partition("test01", "new").OK()
    assert client.count_entities("test01") == (Status(), 200)
    refused(client.drop_partition("test01", "_default"), Status.ILLEGAL_ARGUMENT)
    refused(client.drop_partition("test01", "new"), Status.COLLECTION_NOT_EXISTS)


@pytest.mark.core
def test_sql_sees_collections_and_their_indexes(client: Milvus, path: Path) -> None:
    vectors = filled(client)
    assert client.create_index("test01", IndexType.IVF_FLAT, {"nlist": 16}).OK()
    con = duckvec.connect(str(path))
    assert con.execute("SELECT count(*) FROM test01").fetchall() == [(2000,)]
    found = con.execute(
        "SELECT id, distance FROM vector_search('test01', ?, 3)", [vectors[5].tolist()]
    ).fetchall()
    assert found[0] == (5, 0.0)
    index = con.execute("SELECT index_type, params FROM vector_indexes()").fetchall()
    assert index == [("IVF_FLAT", '{"nlist": 16}')]
    con.execute(
        "CALL create_vector_index('test01', 'HNSW', ?)",
        ['{"M": 8, "efConstruction": 100}'],
    )
    con.execute("DELETE FROM test01 WHERE id = 5")
    status, info = client.get_index_info("test01")
    assert info is not None and info.index_type == IndexType.HNSW
    status, result = client.search("test01", 3, vectors[5:6], params={"ef": 50})
    assert status.OK() and 5 not in result[0].ids
    con.execute("DROP TABLE test01")
    assert client.has_collection("test01") == (Status(), False)
    assert client.list_collections() == (Status(), [])
    create(client)
    assert client.count_entities("test01") == (Status(), 0)
    con.close()


@pytest.mark.core
def test_collections_are_there_after_reopening(path: Path) -> None:
    with Milvus(uri=str(path)) as client:
        vectors = filled(client, metric_type=MetricType.IP, index_file_size=64)
        assert client.create_index("test01", IndexType.IVF_FLAT, {"nlist": 16}).OK()
    with Milvus(uri=str(path)) as client:
        assert client.list_collections() == (Status(), ["test01"])
        status, info = client.get_collection_info("test01")
        assert status.OK() and info is not None
        assert (info.collection_name, info.dimension) == ("test01", DIMENSION)
        assert (info.index_file_size, info.metric_type) == (64, MetricType.IP)
        status, index = client.get_index_info("test01")
        assert index is not None and index.index_type == IndexType.IVF_FLAT
        status, result = client.search("test01", 2, vectors[:2], params={"nprobe": 16})
        assert status.OK() and result.shape == (2, 2)


@pytest.mark.core
def test_results_are_sequences(client: Milvus) -> None:
    vectors = filled(client, 3)
    status, result = client.search("test01", 10, vectors)
    assert status.OK() and result.shape == (3, 10) and len(result) == 3
    assert [len(row) for row in result] == [3, 3, 3]
    assert result.id_array == [row.ids for row in result]
    assert result.distance_array == [row.distances for row in result]
    assert next(hit.id for hit in result[1]) == result[-2][0].id == 1
    assert len(result[:2]) == 2 and len(result[0][1:]) == 2
    assert repr(result[0][0]) == "(id=0, distance=0.0)"
    with pytest.raises(IndexError):
        result[3]


@pytest.mark.core
def test_calls_in_the_background(client: Milvus) -> None:
    create(client)
    vectors = clustered(500, DIMENSION).rows
    inserted = client.insert("test01", vectors, list(range(500)), _async=True)
    heard = threading.Event()
    told: list[Any] = []

    def listen(*answer: Any) -> None:
        told.extend(answer)
        heard.set()

    indexed = client.create_index(
        "test01", IndexType.IVF_FLAT, {"nlist": 4}, _async=True, _callback=listen
    )
    searched = client.search("test01", 1, vectors[:3], _async=True)
    assert inserted.result() == (Status(), list(range(500)))
    assert indexed.result(timeout=60).OK()
    status, result = searched.result()
    assert searched.done() and searched.is_done() and searched.exception() is None
    assert status.OK() and result.id_array == [[0], [1], [2]]
    assert heard.wait(60) and told == [Status()]
    assert client.flush(["test01"], _async=True).result().OK()
    refused(client.compact("nothing", _async=True).result(), 4)


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "why"),
    [
        (
            "1a",
            "The first character of a collection name must be an underscore or letter.",
        ),
        (
            "a b",
            "Collection name can only contain numbers, letters, and underscores.",
        ),
        ("a" * 256, "The length of a collection name must be at most 255."),
    ],
)
def test_names_that_are_refused(client: Milvus, name: str, why: str) -> None:
    refused(
        client.create_collection({"collection_name": name, "dimension": 4}),
        Status.ILLEGAL_COLLECTION_NAME,
        f"Invalid collection name: {name[:80]}. {why}",
    )


@pytest.mark.core
@pytest.mark.parametrize(
    ("param", "code"),
    [
        ({"dimension": 0}, Status.ILLEGAL_DIMENSION),
        ({"dimension": 32769}, Status.ILLEGAL_DIMENSION),
        ({"dimension": 4, "index_file_size": 4097}, Status.ILLEGAL_ARGUMENT),
        ({"dimension": 4, "metric_type": MetricType.HAMMING}, 23),
        ({"dimension": 4, "metric_type": 3}, 23),
    ],
)
def test_collections_that_are_refused(
    client: Milvus, param: dict[str, Any], code: int
) -> None:
    refused(client.create_collection({"collection_name": "test01", **param}), code)
    assert client.has_collection("test01") == (Status(), False)


@pytest.mark.core
def test_what_a_server_would_refuse(client: Milvus) -> None:
    vectors = filled(client, 200)
    refused(
        client.create_collection({"collection_name": "TEST01", "dimension": 3}),
        Status.ILLEGAL_COLLECTION_NAME,
    )
    index: list[tuple[IndexType, dict[str, Any], int, str | None]] = [
        (
            IndexType.IVF_FLAT,
            {"nlist": 0},
            Status.ILLEGAL_NLIST,
            "Invalid nlist value: 0. Valid range is [1, 999999]",
        ),
        (IndexType.IVF_FLAT, {"nlist": "8"}, Status.ILLEGAL_NLIST, None),
        (
            IndexType.IVF_PQ,
            {"nlist": 8},
            Status.ILLEGAL_ARGUMENT,
            "Parameter list must contain: m",
        ),
        (IndexType.IVF_PQ, {"nlist": 8, "m": 3}, Status.ILLEGAL_ARGUMENT, None),
        (
            IndexType.HNSW,
            {"M": 4, "efConstruction": 100},
            Status.ILLEGAL_ARGUMENT,
            "Invalid M value: 4. Valid range is [5, 48]",
        ),
    ]
    for kind, params, code, message in index:
        refused(client.create_index("test01", kind, params), code, message)
    refused(
        client.search("test01", 0, vectors),
        Status.ILLEGAL_TOPK,
        "Invalid topk: 0. The topk must be within the range of 1 ~ 16384.",
    )
    refused(client.search("test01", 1, vectors[:, :4]), Status.ILLEGAL_DIMENSION)
    refused(client.insert("test01", vectors[:, :4]), Status.ILLEGAL_DIMENSION)
    refused(client.insert("test01", [b"\x00\x01"]), Status.ILLEGAL_ROWRECORD)
    refused(client.insert("test01", [[float("nan")] * DIMENSION]), 11)
    refused(client.search("nothing", 1, vectors), Status.COLLECTION_NOT_EXISTS)
    for call in (
        client.drop_collection,
        client.count_entities,
        client.get_collection_info,
        client.get_collection_stats,
        client.get_index_info,
        client.drop_index,
        client.load_collection,
        client.list_partitions,
    ):
        refused(call("nothing"), Status.COLLECTION_NOT_EXISTS)
    refused(client.get_config("cache", "cpu_cache_capacity"), Status.ILLEGAL_ARGUMENT)
    assert client.count_entities("test01") == (Status(), 200)
    assert client.load_collection("test01").OK()


@pytest.mark.core
def test_wrong_types_raise(client: Milvus) -> None:
    create(client)
    vector = [1.0] * DIMENSION
    with pytest.raises(ParamError, match="`collection_name` value 7 is illegal"):
        client.count_entities(7)  # type: ignore[arg-type]
    with pytest.raises(ParamError, match="Whole vectors must have the same dimension"):
        client.insert("test01", [vector, vector[1:]])
    with pytest.raises(ParamError, match="length of vectors do not match that of ids"):
        client.insert("test01", [vector], ids=[1, 2])
    with pytest.raises(ParamError, match="Params must be a dictionary type"):
        client.create_index("test01", IndexType.FLAT, "{}")  # type: ignore[arg-type]
    with pytest.raises(ParamError, match="`index_type` value 'FLAT' is illegal"):
        client.create_index("test01", "FLAT")  # type: ignore[arg-type]
    for number in (0, 7, 99, True, 2.0):
        with pytest.raises(ParamError, match=r"`index_type` value .* is illegal"):
            client.create_index("test01", number)  # type: ignore[arg-type]
        with pytest.raises(ParamError, match=r"`metric_type` value .* is illegal"):
            client.create_collection(
                {
                    "collection_name": "test02",
                    "dimension": 4,
                    "metric_type": number if number != 7 else 8,
                }
            )
    with pytest.raises(ParamError, match="Param type incorrect"):
        client.create_collection("test02")
    for records in ([], "text", vector, [["a"]], None, [[[1.0]]]):
        with pytest.raises(ParamError):
            client.insert("test01", records)
    for ids in ([True], ["1"], [1 << 63], "1", [-1], []):
        with pytest.raises(ParamError, match=r"value .* is illegal"):
            client.insert("test01", [vector], ids=ids)  # type: ignore[arg-type]
        with pytest.raises(ParamError, match=r"`ids` value .* is illegal"):
            client.get_entity_by_id("test01", ids)  # type: ignore[arg-type]
        with pytest.raises(ParamError, match=r"`id_array` value .* is illegal"):
            client.delete_entity_by_id("test01", ids)  # type: ignore[arg-type]
    with pytest.raises(ParamError, match="`partition_tag` value 7 is illegal"):
        client.get_entity_by_id("test01", [1], partition_tag=7)  # type: ignore[arg-type]
    with pytest.raises(ParamError, match="`insert_param` is not taken here"):
        client.insert("", None, insert_param=b"")
    with pytest.raises(ParamError):
        client.search("test01", "1", [vector])  # type: ignore[arg-type]
    assert client.count_entities("test01") == (Status(), 0)


@pytest.mark.core
def test_connecting(path: Path) -> None:
    with pytest.warns(UserWarning, match="host and port are not used"):
        client = Milvus("localhost", "19530", uri=str(path))
    assert client.server_status() == (Status(), "OK")
    assert client.client_version() == duckvec.__version__
    assert client.server_version()[1] == "1.1.1"
    assert (client.handler, client.name) == ("DuckDB", None)
    for call in (client.connect, client.connected, client.disconnect, client.set_hook):
        with pytest.raises(DeprecatedError):
            call()
    client.close()
    client.close()
    for closed in (
        client.list_collections,
        lambda: client.flush(_async=True),
        lambda: client.flush(),
    ):
        with pytest.raises(NotConnectError):
            closed()
    with pytest.raises(ConnectError, match="is no file"):
        Milvus(uri="tcp://localhost:19530")
    with pytest.raises(ConnectError):
        Milvus(uri=str(path.parent))
    con = duckdb.connect(str(path))
    with Milvus(connection=con) as client:
        create(client)
    assert con.execute("SELECT count(*) FROM test01").fetchall() == [(0,)]
    con.close()


@pytest.mark.core
def test_threads_share_a_client(client: Milvus) -> None:
    vectors = filled(client, 500)
    assert client.create_index("test01", IndexType.IVF_FLAT, {"nlist": 4}).OK()
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(10):
            row = (number * 37 + turn) % 500
            status, result = client.search("test01", 1, vectors[row : row + 1])
            if not status.OK() or result[0][0].id != row:
                wrong.append((status, result))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
