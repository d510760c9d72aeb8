"""When rows are indexed and segments merged in the background: numbers only.

Sealing: a tail becomes a segment when it fills one, and before that once it is a good
share of the index, or scanning it takes as long as a search of the index. Merging is
size-tiered: segments of one tier, within a factor of FANOUT, become one once there are
FANOUT of them, so that a row is written once for each tier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Fewer new rows than this stay in the tail: scanning them costs less than a segment.
MINIMUM_SEGMENT_ROWS = 4096
# A tail is sealed once it is this share of the index, so that there are few seals,
SEAL_SHARE = 1 / 16
# and before that once scanning it takes this long, half of a search by index,
SCAN_SECONDS = 0.001
# What DuckDB takes to scan one row of a tail, and one component of its vector
# (measured from 4 to 384 dimensions, two threads).
ROW_SECONDS = 1e-8
VALUE_SECONDS = 1.3e-9
# Where entries have to be matched to rows first, a tail is sealed once it is this share
# of them, so that matching stays a small part of the work.
UNPROVEN_SHARE = 1 / 8
FANOUT = 4
# A segment is written anew once more than this share of its entries is gone.
GONE_SHARE = 0.5
# That waits until the last search is older than this, but no longer than the other: it
# takes a processor from searches, and they are right without it.
QUIET_SECONDS = 1.0
MOST_POSTPONED_SECONDS = 60.0
# How many of the covered rows may go before the background looks which.
LOOK_SHARE = 0.05


@dataclass(frozen=True)
class Size:
    """How large a segment is: its entries, and how many of them have a row."""

    entries: int
    alive: int


def segment_capacity(index_file_size: int, dimension: int) -> int:
    """Return how many rows a segment of so many megabytes of vectors holds."""
    return max(1, index_file_size * (1 << 20) // (4 * dimension))


def scan_seconds(rows: float, dimension: int) -> float:
    """Return about how long DuckDB takes to scan so many vectors."""
    return rows * (ROW_SECONDS + dimension * VALUE_SECONDS)


def rows_to_seal(dimension: int, capacity: int, entries: int, proven: bool) -> int:
    """Return how many rows a tail has when the background seals it.

    Args:
        dimension: the length of the vectors.
        capacity: rows of a full segment.
        entries: rows that the index covers.
        proven: whether row ids are known to hold; otherwise all entries have to be
            matched to rows first.
    """
    slow = math.ceil(SCAN_SECONDS / scan_seconds(1, dimension))
    rows = min(max(MINIMUM_SEGMENT_ROWS, int(entries * SEAL_SHARE)), slow)
    rows = min(max(MINIMUM_SEGMENT_ROWS, rows), capacity)
    return rows if proven else max(rows, int(entries * UNPROVEN_SHARE))


def choose_merge(sizes: Sequence[Size], capacity: int) -> list[int]:
    """Return which segments to write anew as one; an empty list where none is due.

    Much-deleted segments come first, each alone. Of a tier, the smallest are taken as
    long as they fit into one segment: what comes out is in a higher tier, or so large
    that it is never merged for its size again.
    """
    for number, size in enumerate(sizes):
        if size.entries - size.alive > GONE_SHARE * size.entries:
            return [number]
    tiers: dict[int, list[int]] = {}
    for number, size in enumerate(sizes):
        if 2 * size.alive <= capacity:
            tier = math.floor(math.log(max(1, size.alive), FANOUT) + 1e-9)
            tiers.setdefault(tier, []).append(number)
    for _, members in sorted(tiers.items()):
        if len(members) >= FANOUT:
            return _fitting(members, sizes, capacity)
    return []


def _fitting(members: Sequence[int], sizes: Sequence[Size], capacity: int) -> list[int]:
    chosen, rows = [], 0
    for number in sorted(members, key=lambda number: sizes[number].alive):
        if rows + sizes[number].alive > capacity:
            break
        chosen.append(number)
        rows += sizes[number].alive
    return sorted(chosen)


def choose_compaction(
    sizes: Sequence[Size], capacity: int, tail_rows: int
) -> list[int]:
    """Return which segments a compaction writes anew; full and clean ones stay."""
    chosen = [
        number
        for number, size in enumerate(sizes)
        if size.alive < size.entries or size.alive < capacity
    ]
    one_is_clean = len(chosen) == 1 and (
        sizes[chosen[0]].alive == sizes[chosen[0]].entries
    )
    return [] if one_is_clean and tail_rows == 0 else chosen
