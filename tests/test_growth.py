"""A process that lives long holds no more than at first."""

from __future__ import annotations

import gc
import mmap
import threading
from pathlib import Path

import duckdb
import pytest

import duckvec
from duckvec import instance, sessions
from duckvec.instance import Instance
from duckvec.lookups import Lookups
from tests.data import create
from tests.growth import MEMORY_SLACK_BYTES, OBJECTS_SLACK, growth, measure
from tests.race import Plan, Race

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(
        not Path("/proc/self/maps").exists(), reason="there is no /proc here"
    ),
]
TABLE = "CREATE TABLE items AS SELECT i AS id, [i, 1]::FLOAT[2] AS v FROM range(9) r(i)"


def instances() -> int:
    gc.collect()
    return sum(isinstance(found, Instance) for found in gc.get_objects())


def test_growth_is_noticed(tmp_path: Path) -> None:
    before = measure()
    assert growth(before, before) == []
    folder = tmp_path / "some.duckvec"
    folder.mkdir()
    with (folder / "file").open("wb+") as file:
        file.write(b"x" * 4096)
        file.flush()
        with mmap.mmap(file.fileno(), 4096) as mapped:
            (found,) = growth(before, measure())
            assert found.startswith("open files, mapped artifacts grew: ")
            del mapped
    memory = bytearray(b"x") * (2 * MEMORY_SLACK_BYTES)
    (found,) = growth(before, measure())
    assert found.startswith("memory grew: ")
    del memory
    kept = [Lookups() for _ in range(OBJECTS_SLACK + 1)]
    (found,) = growth(before, measure())
    assert found.startswith("objects of Lookups grew: ")
    del kept
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    (found,) = growth(before, measure())
    assert found.startswith("threads grew: ")
    over.set()
    thread.join()


def test_instances_whose_connections_are_gone_go_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = 8
    monkeypatch.setattr(sessions, "MOST_FORGOTTEN", most)
    before = instances()
    default = duckdb.default_connection()
    duckvec.load(default)
    default.execute("DROP TABLE IF EXISTS items")
    default.execute(TABLE)
    del default
    for _ in range(most + 12):
        con = duckvec.connect()
        con.close()
        del con
    assert len(instance.forgotten) <= most + 1
    assert instances() <= before + most + 2
    # A connection that nothing but Python's end closes is known as long as that.
    search = "SELECT id FROM vector_search('items', [3, 1], 1)"
    assert duckdb.execute(search).fetchall() == [(3,)]
    duckdb.execute("DROP TABLE items")
    duckvec.unload(duckdb.default_connection())


def test_an_instance_that_is_gone_is_made_again() -> None:
    con = duckdb.connect()
    con.execute(TABLE)
    for _ in range(3):
        with duckvec.load(con):
            create(con, "FLAT")
            found = con.execute("SELECT id FROM vector_search('items', [3, 1], 1)")
            assert found.fetchall() == [(3,)]
        before = instances()
        gc.collect()
        assert instances() <= before
    con.close()


def test_a_race_of_eight_threads_leaves_nothing(tmp_path: Path) -> None:
    usages = []
    for seed in range(2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        race = Race(folder / "race.db", Plan(1, seed, forced=bool(seed)))
        race.run()
        assert race.failures == []
        assert race.counts["searches compared"] > 0
        del race
        usages.append(measure())
    assert growth(usages[0], usages[-1]) == []
