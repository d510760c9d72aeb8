"""Work in a process of its own, whose memory is watched from outside.

That process is a module which reads what to do as JSON from its standard input, says
when it is `ready`, does it when it is told to, and prints its answer as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks.data import REPOSITORY

SAMPLE_SECONDS = 0.004


def run_watched(
    module: str, order: dict[str, Any], counted: str = "RssAnon"
) -> dict[str, Any]:
    """Return what the module answers to the order, with `peak_bytes` added.

    Args:
        module: its full name.
        order: what to do.
        counted: a line of /proc/PID/status. RssAnon is memory without mapped files,
            VmRSS is memory with them.

    Returns:
        peak_bytes is the memory on top of what the process held when it was ready,
        None where it cannot be measured.
    """
    with subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        process.stdout.readline()
        watch = _Watch(process.pid, counted)
        process.stdin.write("go\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        peak = watch.stop()
    if not answer:
        raise SystemExit(f"{module} failed, see above: {order}")
    return {**json.loads(answer), "peak_bytes": peak}


def ready() -> None:
    """Say that the work can begin, and wait for the word; called in that process."""
    print("ready", flush=True)
    sys.stdin.readline()


class _Watch:
    """Samples the memory of a process."""

    def __init__(self, pid: int, counted: str) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._counted = f"{counted}:"
        self._before = self._peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int | None:
        self._stop.set()
        self._thread.join()
        if self._before is None or self._peak is None:
            return None
        return self._peak - self._before

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            now = self._now()
            if now is not None and self._peak is not None:
                self._peak = max(self._peak, now)

    def _now(self) -> int | None:
        try:
            text = self._status.read_text()
        except OSError:
            return None
        for line in text.splitlines():
            if line.startswith(self._counted):
                return int(line.split()[1]) * 1024
        return None
