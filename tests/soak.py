"""A long random test: `python -m tests.soak --minutes 20 --seed 1`.

Compares searches with exact SQL in random worlds, then among threads, then over many
lives of a connection; kills processes, and lets calls on files fail; alters artifacts,
and gives hostile text to every function; and prints what it did. Ends with 1, and says
how to run the same again, when anything was wrong. `--replay FILE` runs a list of
operations again, and `--shrink` makes it smaller first.
"""

from __future__ import annotations

import argparse
import faulthandler
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.altering import AlteredError, run_altered
from tests.differential import (
    Failure,
    Report,
    draw_steps,
    options_of,
    read_steps,
    run_steps,
    shrink,
)
from tests.fault_cases import soak_faults
from tests.growth import Usage, growth_of, measure, use_one_arena
from tests.hostility import HostileError, run_hostile
from tests.killing import soak_kills
from tests.lifecycle import LeftOver, run_lives
from tests.race import Plan, Race

STEPS, LARGE_STEPS = 120, 40
LARGE_EVERY = 5
RACE_SECONDS = 60.0
HANG_SECONDS = 600
PARTS = ("worlds", "threads", "lives", "kills", "faults", "altered", "hostile")


def soak_worlds(seed: int, seconds: float, folder: Path) -> bool:
    """Run random worlds for a time; return whether all was right."""
    until = time.monotonic() + seconds
    total, worlds, mismatches = Report(), 0, 0
    while time.monotonic() < until and not mismatches:
        large = worlds % LARGE_EVERY == LARGE_EVERY - 1
        place = folder / f"world-{seed}"
        place.mkdir()
        steps = draw_steps(seed, LARGE_STEPS if large else STEPS)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        print(f"world {seed}: {options_of(seed, large)}", flush=True)
        try:
            total.add(run_steps(seed, steps, place, large=large, until=until))
            shutil.rmtree(place)
        except Failure as failure:
            print(failure)
            mismatches += 1
        faulthandler.cancel_dump_traceback_later()
        seed += 1
        worlds += 1
    print(f"{worlds} worlds, {total.text()}\n{mismatches} mismatches", flush=True)
    return not mismatches


def soak_threads(seed: int, seconds: float, folder: Path) -> bool:
    """Let threads run against each other for a time; return whether all was right.

    After each race the process must hold what it held after the second.
    """
    until = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    failures: list[str] = []
    usages: list[Usage] = []
    use_one_arena()
    while (left := until - time.monotonic()) > 1 and not failures:
        place = folder / f"race-{seed}"
        place.mkdir()
        plan = Plan(min(left, RACE_SECONDS), seed, forced=bool(seed % 2))
        race = Race(place / "race.db", plan)
        race.run()
        counts += race.counts
        failures = race.failures
        del race
        usages.append(measure())
        failures += growth_of(usages)
        seed += 1
        shutil.rmtree(place)
    print(f"Threads, to seed {seed - 1}:\n{listed(counts)}")
    print("\n".join(f"after a race: {usage.text()}" for usage in usages))
    print("\n".join([*failures, f"{len(failures)} failures"]), flush=True)
    return not failures


def soak_lives(seed: int, rounds: int, folder: Path) -> bool:
    """Open and close many times; return whether nothing was left behind."""
    try:
        counts = run_lives(folder, rounds, seed)
    except LeftOver as error:
        print(error)
        return False
    print(f"Lives of a connection:\n{listed(counts)}", flush=True)
    return True


def soak_altered(seed: int, seconds: float, folder: Path) -> bool:
    """Alter artifacts for a time; return whether all was noticed."""
    try:
        counts = run_altered(folder / "altered", seed, seconds)
    except AlteredError as error:
        print(error)
        return False
    print(f"Altered artifacts:\n{listed(counts)}", flush=True)
    return True


def soak_hostile(seed: int, seconds: float, folder: Path) -> bool:
    """Make hostile calls for a time; return whether nothing happened."""
    try:
        counts = run_hostile(folder / "hostile", seed, seconds)
    except HostileError as error:
        print(error)
        return False
    print(f"Hostile inputs:\n{listed(counts)}", flush=True)
    return True


def listed(counts: Counter[str]) -> str:
    """Return counts for people."""
    return "\n".join(f"{count:,} {what}" for what, count in sorted(counts.items()))


def replay(file: Path, smaller: bool, verbose: bool) -> int:
    """Run a list of operations again; return 1 where it still goes wrong."""
    if smaller:
        print(f"{len(shrink(file))} operations are left in {file}")
    seed, large, steps = read_steps(file)
    with tempfile.TemporaryDirectory(prefix="duckvec-soak-") as folder:
        try:
            report = run_steps(seed, steps, Path(folder), large=large, verbose=verbose)
        except Failure as failure:
            print(failure)
            return 1
    print(report.text())
    return 0


def main() -> int:
    """Read the command line and run what it asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Long random tests of duckvec."
    )
    add = parser.add_argument
    add("--minutes", type=float, default=20, help="how long all of it runs, about")
    add("--seed", type=int, default=int(time.time()), help="default: the time")
    add("--only", choices=PARTS, help="one part only")
    add("--replay", type=Path, metavar="FILE", help="run these operations again")
    add("--shrink", action="store_true", help="make the list of --replay smaller first")
    add("--verbose", action="store_true", help="print each statement of --replay")
    arguments = parser.parse_args()
    if arguments.replay:
        return replay(arguments.replay, arguments.shrink, arguments.verbose)
    seed, seconds = arguments.seed, arguments.minutes * 60
    folder = Path(tempfile.mkdtemp(prefix="duckvec-soak-"))
    print(f"seed {seed}, {arguments.minutes:g} minutes, in {folder}", flush=True)
    rounds = max(20, min(500, round(25 * arguments.minutes)))
    parts: dict[str, Callable[[float], bool]] = {
        "worlds": lambda share: soak_worlds(seed, share * seconds, folder),
        "threads": lambda share: soak_threads(seed, share * seconds, folder),
        "lives": lambda share: soak_lives(seed, rounds, folder),
        "kills": lambda share: soak_kills(seed, share * seconds, folder),
        "faults": lambda share: soak_faults(seed, share * seconds, folder),
        "altered": lambda share: soak_altered(seed, share * seconds, folder),
        "hostile": lambda share: soak_hostile(seed, share * seconds, folder),
    }
    shares = {"worlds": 0.25, "threads": 0.1, "lives": 0.05}
    shares |= {"kills": 0.25, "faults": 0.05, "altered": 0.1, "hostile": 0.2}
    if arguments.only:
        shares = {arguments.only: 1.0}
    right = [parts[name](share) for name, share in shares.items()]
    if not all(right):
        print(f"wrong; seed {seed}, files in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
