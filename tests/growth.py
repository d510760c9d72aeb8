"""What a process holds: memory, open files, mapped artifacts, threads, objects of ours.

Read from /proc, so on Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from duckvec.sessions import MOST_FORGOTTEN

# What allocators keep for themselves comes and goes.
MEMORY_SLACK_BYTES = 64 << 20
# Objects of a kind that may be more than before: those of instances whose connections
# are gone, as many as duckvec keeps for the case that one was Python's default.
OBJECTS_SLACK = 10 * MOST_FORGOTTEN
# Libraries keep threads for each of ours that asked them.
TASKS_SLACK = 16
# How long a thread of ours may take to end.
LEAVE_SECONDS = 10
# The first races fill caches of DuckDB and the libraries.
WARM_UP = 2


# The number of mallopt's M_ARENA_MAX.
_ARENA_MAX = -8


def use_one_arena() -> None:
    """Have GNU's allocator keep one heap for all threads from now on.

    Else each of ours that comes gets another, and what is free in them looks like a
    leak: 200 KB for each index made, up to a hundred megabytes.
    """
    with contextlib.suppress(AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


@dataclass(frozen=True)
class Usage:
    """What this process holds at one moment.

    Attributes:
        memory_bytes: resident.
        open_files: descriptors, pipes included.
        mapped_artifacts: index files in its address space, deleted ones included.
        threads: those that Python knows.
        tasks: all threads, with those of DuckDB and the libraries.
        objects: of classes of duckvec, by name.
    """

    memory_bytes: int
    open_files: int
    mapped_artifacts: int
    threads: int
    tasks: int
    objects: Counter[str] = field(default_factory=Counter)

    def text(self) -> str:
        """Return it for people."""
        return (
            f"{self.memory_bytes >> 20} MiB, {self.open_files} open files, "
            f"{self.mapped_artifacts} mapped artifacts, {self.threads} + "
            f"{self.tasks - self.threads} threads, "
            f"{sum(self.objects.values())} objects"
        )


def measure() -> Usage:
    """Return what this process holds once garbage is gone, and threads of ours."""
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("duckvec-"):
            thread.join(LEAVE_SECONDS)
    gc.collect()
    with contextlib.suppress(AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    maps = Path("/proc/self/maps").read_text().splitlines()
    files = {line.split(maxsplit=5)[-1] for line in maps if ".duckvec/" in line}
    return Usage(
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir("/proc/self/fd")),
        len(files),
        # DuckDB's threads that ever called Python are listed as dummies.
        sum(not one.name.startswith("Dummy-") for one in threading.enumerate()),
        len(os.listdir("/proc/self/task")),
        Counter(
            type(found).__qualname__
            for found in gc.get_objects()
            if str(type(found).__module__).startswith("duckvec.")
        ),
    )


def growth(before: Usage, after: Usage) -> list[str]:
    """Return what has grown from a moment to a later one that should be like it."""
    found = []
    if after.memory_bytes > before.memory_bytes + MEMORY_SLACK_BYTES:
        found.append("memory")
    for name in ("open_files", "mapped_artifacts", "threads"):
        if getattr(after, name) > getattr(before, name):
            found.append(name.replace("_", " "))
    if after.tasks > before.tasks + TASKS_SLACK:
        found.append("tasks")
    for name, count in after.objects.items():
        if count > before.objects[name] + OBJECTS_SLACK:
            found.append(f"objects of {name}")
    if not found:
        return []
    return [f"{', '.join(found)} grew: {before.text()}, then {after.text()}"]


def growth_of(usages: list[Usage]) -> list[str]:
    """Return what the last of several measurements has more than that after warm-up."""
    if len(usages) <= WARM_UP:
        return []
    return growth(usages[WARM_UP - 1], usages[-1])
