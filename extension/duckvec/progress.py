"""What is being built now, and how far it is, for whoever draws a bar.

The shell and the Python handle both look here, and as often as `follow` does: a task's
`progress` is written where segments are built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from duckvec.instance import Instance

POLL_SECONDS = 0.1
SLOW_SECONDS = 0.5  # sooner, no bar is worth its place


class Work(NamedTuple):
    """One build, seal, merge or compaction: of what, and its share done, 0 to 1."""

    collection: str
    column_name: str
    index_type: str
    share: float

    @property
    def label(self) -> str:
        """What is done, for people."""
        return f"building {self.index_type} on {self.collection}"


def current_work(instance: Instance) -> Work | None:
    """Return what is being built now, what a caller waits for first; None for nothing.

    Any thread may call it; it asks DuckDB nothing.
    """
    writing = {}
    for state in list(instance.databases.values()):
        for index in list(state.indexes.values()):
            if index.work is not None:
                writing[index.work] = index.row
        for building in list(state.building.values()):
            writing[building.task] = building.row
    for task in (*instance.keeper.pending(), *instance.sealer.pending()):
        row = writing.get(task)
        if row is not None:
            return Work(row.table_name, row.column_name, row.index_type, task.progress)
    return None


def follow(instance: Instance, over: Callable[[float], bool]) -> Iterator[Work]:
    """Yield what is being built, again and again, once that takes long.

    Args:
        instance: the DuckDB instance.
        over: waits for so many seconds, or until there is nothing to follow any more,
            and tells whether that is so.
    """
    if over(SLOW_SECONDS):
        return
    while True:
        work = current_work(instance)
        if work is not None:
            yield work
        if over(POLL_SECONDS):
            return
