"""The random differential test: driving a world, replaying it, and making it smaller.

A run is a seed and a list of operations, each a name and a seed of its own, so that any
part of the list can be run again. The list is on disk before an operation begins: a
process that hangs or dies leaves it behind.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from duckvec.index_types import INDEX_TYPES
from tests.operations import OPERATIONS, READ_ONLY, WEIGHTS
from tests.upheavals import make_table
from tests.upkeep import filters_by_index, impatient
from tests.world import World
from tests.world_parts import DIMENSIONS, TABLES, Options

Step = tuple[str, int]
"""The name of an operation and its seed."""

PLACES = ("file", "small groups", "used", "file", "memory")
MINIMUM_RECALL = 0.8


@dataclass
class Report:
    """What was done and compared."""

    operations: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    recalls: list[float] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Add what another run did."""
        self.operations += other.operations
        self.counts += other.counts
        self.recalls += other.recalls

    def text(self) -> str:
        """Return it for people."""
        lines = [f"{sum(self.operations.values()):,} operations:"]
        lines += [
            f"    {count:8,} {name}" for name, count in sorted(self.operations.items())
        ]
        lines += [f"{count:,} {name}" for name, count in sorted(self.counts.items())]
        if self.recalls:
            lines.append(
                f"{np.mean(self.recalls):.3f} recall of {len(self.recalls):,} searches "
                "that need not be exhaustive"
            )
        return "\n".join(lines)


class Failure(AssertionError):
    """Raised when a run went wrong; says how to run it again."""

    def __init__(
        self, seed: int, steps: Sequence[Step], file: Path, reason: str
    ) -> None:
        self.seed = seed
        self.steps = list(steps)
        super().__init__(
            f"{reason}\nseed {seed}, after {len(steps)} operations; to run it again: "
            f"python -m tests.soak --replay {file}"
        )


def options_of(seed: int, large: bool = False) -> Options:
    """Return the kind of world that a seed stands for."""
    rng = np.random.default_rng([seed, 1])
    if large:
        # Row ids of common tables move only where whole row groups, of 122,880 rows,
        # can be merged.
        types = ("FLAT", "IVF_FLAT", "IVF_SQ8")
        return Options("file", 260_000, (2, 3), types, bool(seed % 2), seed % 4 < 2)
    place = PLACES[seed % len(PLACES)]
    rows = int(rng.choice([60, 1500, 5000]))
    impatient = bool(rng.random() < 0.6)
    by_index = bool(rng.random() < 0.7)
    return Options(place, rows, DIMENSIONS, tuple(INDEX_TYPES), impatient, by_index)


def draw_steps(seed: int, count: int) -> list[Step]:
    """Return random operations."""
    rng = np.random.default_rng([seed, 2])
    names = sorted(OPERATIONS)
    weights = np.array([WEIGHTS[name] for name in names], dtype=float)
    drawn = rng.choice(len(names), count, p=weights / weights.sum())
    seeds = rng.integers(0, 2**31, count)
    return [(names[n], int(s)) for n, s in zip(drawn, seeds, strict=True)]


def run_steps(
    seed: int,
    steps: Sequence[Step],
    folder: Path,
    *,
    large: bool = False,
    until: float | None = None,
    verbose: bool = False,
) -> Report:
    """Make a world and run operations on it, comparing after each.

    Args:
        seed: of the world.
        steps: the operations.
        folder: an empty folder for the database and the list of operations.
        large: whether its tables have several row groups.
        until: when to stop, by time.monotonic().
        verbose: whether to print each statement.

    Raises:
        Failure: anything went wrong.
    """
    file = folder / "operations.json"
    done: list[Step] = []
    save_steps(file, seed, large, done)
    report = Report()
    world = World(folder, options_of(seed, large), seed)
    world.verbose = verbose
    stack = contextlib.ExitStack()
    if world.options.impatient:
        stack.enter_context(impatient())
    if world.options.filters_by_index:
        stack.enter_context(filters_by_index())
    try:
        _begin(world, large)
        for step in steps:
            if until is not None and time.monotonic() > until:
                break
            done.append(step)
            save_steps(file, seed, large, done)
            report.operations[step[0]] += 1
            _apply(world, step)
        recalls = world.recalls
        if len(recalls) > 50 and np.mean(recalls) < MINIMUM_RECALL:
            raise AssertionError(f"the recall was {np.mean(recalls):.3f}")
    except Exception as error:
        (folder / "statements.sql").write_text("\n".join(world.trace))
        reason = f"{type(error).__name__}: {error}"
        raise Failure(seed, done, file, reason) from error
    finally:
        world.close()
        stack.close()
    report.counts = world.counts
    report.recalls = world.recalls
    return report


def read_steps(file: Path) -> tuple[int, bool, list[Step]]:
    """Return seed, size and operations of a list on disk."""
    found = json.loads(file.read_text())
    return found["seed"], found["large"], [(n, s) for n, s in found["operations"]]


def shrink(file: Path, seconds: float = 300, limit: float = 30) -> list[Step]:
    """Make a list of operations on disk smaller, as long as it goes wrong.

    Each try runs in a process of its own, so that a hang or a crash counts too.

    Args:
        file: the list; the smaller one replaces it.
        seconds: how long to try.
        limit: after how many seconds a try counts as hanging.
    """
    seed, large, steps = read_steps(file)
    until = time.monotonic() + seconds
    size = max(1, len(steps) // 2)
    while time.monotonic() < until:
        start, smaller = 0, False
        while start < len(steps) and time.monotonic() < until:
            part = steps[:start] + steps[start + size :]
            if _goes_wrong(seed, large, part, limit):
                steps, smaller = part, True
                save_steps(file, seed, large, steps)
            else:
                start += size
        if size == 1 and not smaller:
            break
        size = max(1, size // 2)
    return steps


def save_steps(file: Path, seed: int, large: bool, steps: Sequence[Step]) -> None:
    """Write a list of operations that can be run again."""
    text = json.dumps({"seed": seed, "large": large, "operations": list(steps)})
    file.write_text(text, encoding="utf-8")


def _goes_wrong(seed: int, large: bool, steps: Sequence[Step], limit: float) -> bool:
    """Tell whether operations fail, crash or hang in a process of their own."""
    with tempfile.TemporaryDirectory(prefix="duckvec-shrink-") as folder:
        file = Path(folder) / "operations.json"
        save_steps(file, seed, large, steps)
        command = [sys.executable, "-m", "tests.soak", "--replay", str(file)]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            return True
        return done.returncode != 0


def _begin(world: World, large: bool) -> None:
    """Open the world, and make its tables."""
    world.open()
    main = world.sessions[0]
    for dimension in world.options.dimensions:
        name = world.full_name(f"queries{dimension}")
        centres = np.random.default_rng(dimension).standard_normal((6, dimension)) * 2
        rows = [
            f"({n}, {[float(np.float32(x)) for x in c]})" for n, c in enumerate(centres)
        ]
        world.run(
            main, f"CREATE TABLE {name} (number INTEGER, vector FLOAT[{dimension}])"
        )
        world.run(main, f"INSERT INTO {name} VALUES {', '.join(rows)}, (99, NULL)")
    for name in TABLES[: 2 if large else 3]:
        make_table(world, main, name, world.options.rows)


def _apply(world: World, step: Step) -> None:
    """Run one operation, and compare."""
    name, seed = step
    rng = np.random.default_rng(seed)
    world.rng = rng
    world.touched = None
    if world.read_only and name not in READ_ONLY:
        name = "reopen" if seed % 3 == 0 else ""
    if name:
        world.note(f"-- {name} {seed}")
        OPERATIONS[name](world)
    world.verify(np.random.default_rng([seed, 3]))
