"""What a finalizer may ask of a lock."""

from __future__ import annotations

import threading
from typing import Any


def holds(lock: threading.RLock) -> bool:
    """Tell whether the thread that asks holds a reentrant lock."""
    # Condition asks it in the same way.
    owned: Any = lock
    return bool(owned._is_owned())
