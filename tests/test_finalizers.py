"""Connections that the garbage collector takes, in the middle of anything."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import duckdb
import pytest

import duckvec
from duckvec.instance import Instance
from duckvec.keeper import Keeper
from duckvec.locks import holds
from tests.data import Vectors, create, create_table, search
from tests.lifecycle import open_files
from tests.upkeep import eventually

HANG_SECONDS = 60


@pytest.fixture(autouse=True)
def stop_a_hang() -> Iterator[None]:
    """End the process with all stacks where a test waits for ever."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


class Knot:
    """Holds a connection in a cycle: only the garbage collector lets go of it."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection
        self.itself = self


def knotted(path: Path, vectors: Vectors) -> tuple[Instance, Knot]:
    """Return a connection in a cycle whose search holds a guard."""
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    assert search(con, vectors.query(0))
    return duckvec.load(con)._instance, Knot(con)


LOCKS: dict[str, Callable[[Instance], AbstractContextManager[Any]]] = {
    "of the instance": lambda instance: instance.lock,
    "of the keeper": lambda instance: instance.keeper._lock,
    "of the armer": lambda instance: instance.armer._lock,
    "of the sealer": lambda instance: instance.sealer._lock,
    "of the watcher": lambda instance: instance.watcher._lock,
    "of a segment": lambda instance: next(
        segment._lock
        for state in instance.databases.values()
        for index in state.indexes.values()
        for segment in index.segments
    ),
}


@pytest.mark.core
@pytest.mark.parametrize("name", LOCKS)
def test_a_connection_is_collected_where_its_thread_holds_a_lock(
    path: Path, vectors: Vectors, name: str
) -> None:
    instance, knot = knotted(path, vectors)
    with LOCKS[name](instance):
        del knot
        gc.collect()
    eventually(lambda: not instance.sessions)
    eventually(lambda: open_files(str(path)) == [])
    eventually(lambda: not instance.databases)


@pytest.mark.core
def test_a_connection_is_collected_where_another_thread_holds_the_lock(
    path: Path, vectors: Vectors
) -> None:
    instance, knot = knotted(path, vectors)
    taken, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with instance.lock:
            taken.set()
            go_on.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    del knot
    gc.collect()  # does not wait
    assert instance.sessions
    go_on.set()
    holder.join()
    eventually(lambda: not instance.sessions)
    eventually(lambda: open_files(str(path)) == [])


def test_the_collector_runs_wherever_it_likes(
    path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections come and go while every step of the threads collects garbage."""
    start = Keeper._start

    def collecting(keeper: Keeper) -> None:
        gc.collect()
        start(keeper)

    monkeypatch.setattr(Keeper, "_start", collecting)
    con = duckvec.connect(str(path))
    create_table(con, vectors)
    create(con, "IVF_FLAT")
    for number in range(10):
        cursor = con.cursor()
        duckvec.load(cursor)
        assert search(cursor, vectors.query(number))
        con.execute("DELETE FROM items WHERE id = ?", [number])
        Knot(cursor)
        del cursor
    assert search(con, vectors.query(0))
    con.close()
    del con
    gc.collect()
    eventually(lambda: open_files(str(path)) == [])


@pytest.mark.core
def test_many_connections_are_collected_where_the_lock_is_held(
    memory: duckdb.DuckDBPyConnection,
) -> None:
    instance = duckvec.load(memory)._instance
    cursors = [memory.cursor() for _ in range(40)]
    for cursor in cursors:
        duckvec.load(cursor)
    del cursor
    assert len(instance.sessions) == 41
    with instance.lock:
        cursors.clear()
        gc.collect()
    eventually(lambda: len(instance.sessions) == 1)


@pytest.mark.core
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a quick signal")
def test_an_interrupted_thread_gives_the_lock_back(
    memory: duckdb.DuckDBPyConnection,
) -> None:
    lock = duckvec.load(memory)._instance.lock

    class Interruption(BaseException):
        """Is raised anywhere, as Ctrl-C is; pytest would end at the real one."""

    def interrupt(number: int, frame: object) -> None:
        raise Interruption

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(500):
            with contextlib.suppress(Interruption):
                # Set in here: on a busy machine it is soon over.
                signal.setitimer(signal.ITIMER_REAL, 2e-4)
                while True:
                    with lock:
                        pass
            assert not holds(lock)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
