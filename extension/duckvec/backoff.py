"""How long to wait before what failed in the background is tried again."""

from __future__ import annotations

# Seconds until the first try again, and the most between two of them.
RETRY_SECONDS, MOST_RETRY_SECONDS = 1.0, 300.0


def retry_pause(failures: int) -> float:
    """Return the seconds until the next try, twice as many for each earlier failure.

    Args:
        failures: how many there were without a success between, before this one.
    """
    return min(RETRY_SECONDS * 2.0 ** min(failures, 20), MOST_RETRY_SECONDS)
