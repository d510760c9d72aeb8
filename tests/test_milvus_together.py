"""Several clients of one file, and calls that wait for each other or must not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from duckvec.milvus import (
    IndexType,
    Milvus,
    NotConnectError,
    ParamError,
    Status,
    transactions,
)
from tests.data import clustered
from tests.test_milvus import DIMENSION, create, filled, refused


@pytest.fixture
def client(path: Path) -> Iterator[Milvus]:
    with Milvus(uri=str(path)) as client:
        yield client


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Make calls at the same moment, each in a thread; return what they return."""
    barrier = threading.Barrier(len(calls))
    answers: list[Any] = [None] * len(calls)

    def work(number: int) -> None:
        barrier.wait()
        answers[number] = calls[number]()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.core
def test_first_inserts_of_two_clients_at_once(client: Milvus, path: Path) -> None:
    vectors = clustered(2000, DIMENSION).rows
    with Milvus(uri=str(path)) as other:
        for turn in range(10):
            name = f"turn{turn}"
            create(client, name)
            answers = at_once(
                partial(client.insert, name, vectors),
                partial(other.insert, name, vectors),
            )
            assert [status for status, _ in answers] == [Status(), Status()]
            ids = [each for _, ids in answers for each in ids]
            assert len(set(ids)) == 4000
            assert client.count_entities(name) == (Status(), 4000)


@pytest.mark.core
def test_one_of_two_first_inserts_decides_on_ids(client: Milvus, path: Path) -> None:
    vectors = clustered(2000, DIMENSION).rows
    with Milvus(uri=str(path)) as other:
        for turn in range(5):
            name = f"turn{turn}"
            create(client, name)
            answers = at_once(
                partial(client.insert, name, vectors, list(range(2000))),
                partial(other.insert, name, vectors),
            )
            codes = sorted(status.code for status, _ in answers)
            assert codes == [Status.SUCCESS, Status.ILLEGAL_VECTOR_ID]
            assert client.count_entities(name) == (Status(), 2000)


@pytest.mark.core
def test_two_clients_create_the_same_at_once(client: Milvus, path: Path) -> None:
    with Milvus(uri=str(path)) as other:
        for turn in range(5):
            param = {"collection_name": f"turn{turn}", "dimension": 4}
            answers = at_once(
                *(partial(each.create_collection, param) for each in (client, other))
            )
            assert sorted(each.code for each in answers) == [0, 9], answers


class Rival:
    """A connection whose COMMITs come late: another has committed the same row."""

    def __init__(self, con: duckdb.DuckDBPyConnection, rows: str) -> None:
        self._con = con
        self._rows = rows
        self.commits = 0

    def execute(self, sql: str, *args: Any) -> Any:
        if sql == "COMMIT":
            self.commits += 1
            with self._con.cursor() as rival:
                rival.execute(f"INSERT INTO {self._rows}")
        if sql == "ROLLBACK":
            with self._con.cursor() as rival:
                rival.execute("DELETE FROM milvus.partitions")
        return self._con.execute(sql, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)


@pytest.mark.core
def test_a_commit_that_fails_says_why(
    client: Milvus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "LONGEST_PAUSE", 0.001)
    create(client)
    con = client._collections._con
    rival = Rival(con, "milvus.partitions VALUES ('test01', 'new')")
    client._collections._con = rival  # type: ignore[assignment]
    status = client.create_partition("test01", "new")
    client._collections._con = con
    refused(status, Status.UNEXPECTED_ERROR)
    assert "Failed to commit" in status.message and "new" in status.message
    assert rival.commits == transactions.MOST_TRIES
    assert client.has_partition("test01", "new") == (Status(), False)
    assert client.create_partition("test01", "new").OK()


@pytest.mark.core
def test_a_call_is_taken_while_another_one_works(client: Milvus) -> None:
    """Test that `_async` returns at once; it waited for the call before it."""
    vectors = filled(client, 500)
    begun, go = threading.Event(), threading.Event()

    def hold(*_: Any) -> str:
        begun.set()
        assert go.wait(60)
        return "held"

    running = client._submit(lambda: client._run(hold, None), {})
    assert begun.wait(60)
    taken: list[Any] = []
    submit = threading.Thread(
        target=lambda: taken.append(client.search("test01", 1, vectors, _async=True))
    )
    submit.start()
    submit.join(20)
    was_taken = bool(taken)
    go.set()
    submit.join()
    assert was_taken
    assert running.result() == (Status(), "held")
    status, result = taken[0].result(timeout=60)
    assert status.OK() and len(result) == 500


@pytest.mark.core
def test_vectors_are_those_of_the_moment_of_the_call(client: Milvus) -> None:
    create(client)
    vectors = clustered(50, DIMENSION).rows
    first = vectors[0].tolist()
    params = {"nlist": 4}
    go = threading.Event()
    held = client._submit(lambda: go.wait(60), {})
    inserted = client.insert("test01", vectors, list(range(50)), _async=True)
    indexed = client.create_index("test01", IndexType.IVF_FLAT, params, _async=True)
    vectors[:] = 0.0
    params.clear()
    go.set()
    assert held.result() and inserted.result()[0].OK() and indexed.result().OK()
    assert client.get_entity_by_id("test01", [0]) == (Status(), [first])


@pytest.mark.core
def test_wrong_types_raise_at_once_in_the_background_too(client: Milvus) -> None:
    create(client)
    told: list[Any] = []
    options: dict[str, Any] = {"_async": True, "_callback": lambda *a: told.append(a)}
    with pytest.raises(ParamError):
        client.search("test01", 1, ["text"], **options)
    with pytest.raises(ParamError, match="Whole vectors must have the same dimension"):
        client.insert("test01", [[1.0, 2.0], [1.0]], **options)
    assert told == []
    odd = [[float("nan")] * DIMENSION]
    refused(client.insert("test01", odd, **options).result(), Status.ILLEGAL_ROWRECORD)
    status, answer = client.search("test01", 1, odd, **options).result()
    assert (status.code, answer) == (Status.ILLEGAL_ROWRECORD, None)
    assert told == [(Status(11), []), (Status(11), None)]


@pytest.mark.core
def test_what_a_callback_raises_comes_out_of_result(client: Milvus) -> None:
    def fail(status: Status) -> None:
        raise LookupError("no such list")

    future = client.flush(_async=True, _callback=fail)
    with pytest.raises(LookupError, match="no such list"):
        future.result(timeout=60)
    with pytest.raises(LookupError):
        future.exception()
    assert client.flush(_async=True).result().OK()


@pytest.mark.core
def test_a_callback_may_call_the_client_and_its_own_future(client: Milvus) -> None:
    vectors = filled(client, 50)
    told: list[Any] = []
    known = threading.Event()

    def go_on(status: Status) -> None:
        assert known.wait(60)
        told.append(future.result(timeout=60))
        told.append(client.search("test01", 1, vectors[:1])[1].id_array)
        told.append(client.flush(_async=True))

    future = client.create_index("test01", _async=True, _callback=go_on)
    known.set()
    assert future.result(timeout=60).OK()
    assert told[:2] == [Status(), [[0]]] and told[2].result(timeout=60).OK()


@pytest.mark.core
def test_closing_in_a_callback(client: Milvus, path: Path) -> None:
    vectors = filled(client, 50)
    queued = threading.Event()

    def close(status: Status) -> None:
        assert queued.wait(60)
        client.close()

    future = client.flush(_async=True, _callback=close)
    later = client.insert("test01", vectors, list(range(50, 100)), _async=True)
    queued.set()
    assert future.result(timeout=60).OK()
    for call in (client.list_collections, lambda: client.flush(_async=True)):
        with pytest.raises(NotConnectError):
            call()
    assert later.result(timeout=60) == (Status(), list(range(50, 100)))
    client.close()  # waits for the last call
    assert client._con is None
    with duckdb.connect(str(path), read_only=True) as con:  # nobody writes any more
        assert con.execute("SELECT count(*) FROM test01").fetchall() == [(100,)]


@pytest.mark.core
def test_closing_while_calls_wait(path: Path) -> None:
    client = Milvus(uri=str(path))
    create(client)
    go = threading.Event()
    held = client._submit(lambda: client._run(lambda: go.wait(60), None), {})
    late: list[Any] = []

    def call() -> None:
        try:
            late.append(client.count_entities("test01"))
        except NotConnectError as error:
            late.append(error)

    waiting = threading.Thread(target=call)
    waiting.start()
    closing = threading.Thread(target=client.close)
    closing.start()
    time.sleep(0.05)
    go.set()
    for thread in (waiting, closing):
        thread.join(60)
        assert not thread.is_alive()
    assert held.result() == (Status(), True) and len(late) == 1
    assert isinstance(late[0], NotConnectError) or late[0] == (Status(), 0)


@pytest.mark.core
def test_new_ids_differ_while_the_clock_stands(
    client: Milvus, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(client)
    vectors = np.zeros((1000, DIMENSION), dtype=np.float32)
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    with Milvus(uri=str(path)) as other:
        taken = [each.insert("test01", vectors)[1] for each in (client, other, client)]
    together = [each for ids in taken for each in ids]
    assert together == sorted(set(together)) and len(together) == 3000
