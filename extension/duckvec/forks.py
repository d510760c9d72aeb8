"""What a forked child may do with what its parent loaded: nothing, and it says so.

A child has the parent's memory, one thread, and none of the others: DuckDB's, ours, and
those of the libraries, which wait for ever for theirs (GNU OpenMP does). Its copy of a
connection would write to the parent's file. So each call in such a child is refused,
`load` of a new connection included, and nothing of ours acts there: no thread, no lock,
no file. A child that is started with "spawn" or "forkserver" has none of this.
"""

from __future__ import annotations

from duckvec import instance
from duckvec.errors import ForkedError
from duckvec.instance import Instance

# What the parent had: letting go of it would close connections, where DuckDB crashes.
# Empty where this process was not forked, or before anything was loaded.
_inherited: list[object] = []


def require_unforked() -> None:
    """Refuse what needs the parent's threads.

    Raises:
        ForkedError: this process was forked after its parent loaded duckvec.
    """
    if _inherited:
        raise ForkedError(
            "this process was forked after duckvec was loaded, and neither DuckDB's "
            'nor its threads came along; start it with the method "spawn"'
        )


def abandon(instances: list[Instance]) -> None:
    """Let go of nothing and do nothing any more; called in a forked child.

    Args:
        instances: those that the parent still had of all that it loaded.
    """
    _inherited.append([(one, one.abandon()) for one in instances])
    instance.loaded.clear()
    instance.forgotten.clear()
