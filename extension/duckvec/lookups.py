"""What names of collections were found to mean, kept as long as that surely holds."""

from __future__ import annotations

import time

from duckvec.states import ChangeSign, DatabaseState
from duckvec.tables import Caller, Table

LOOKUP_SECONDS = 1.0
MOST_NAMES = 1000

_Key = tuple[str | None, str, str, str]


class Lookups:
    """Names that were looked up; any thread may call any method."""

    def __init__(self) -> None:
        self._known: dict[_Key, tuple[ChangeSign, float, Table, DatabaseState]] = {}

    def remember(
        self,
        collection: str | None,
        caller: Caller,
        sign: ChangeSign | None,
        table: Table,
        state: DatabaseState,
    ) -> None:
        """Keep what a name meant, for as long as `recall` can tell that it still does.

        Args:
            collection: the name.
            caller: who asked.
            sign: the change sign of the caller's default database from before the look.
            table: what the name meant.
            state: its database.
        """
        if sign is None or table.database != caller.database:
            return
        if not state.settled(sign):
            return
        key = (collection, caller.database, caller.schema, caller.search_path)
        if len(self._known) > MOST_NAMES:
            self._known.clear()
        self._known[key] = (sign, time.monotonic(), table, state)

    def recall(
        self, collection: str | None, caller: Caller
    ) -> tuple[Table, DatabaseState] | None:
        """Return what a name means where nothing was committed since the last look.

        A look costs most of a millisecond. Every commit to a file changes its sign;
        what does not, detaching the caller's own default database and attaching
        another file in its place, is noticed within a second.
        """
        key = (collection, caller.database, caller.schema, caller.search_path)
        known = self._known.get(key)
        if known is None:
            return None
        sign, looked, table, state = known
        if time.monotonic() - looked > LOOKUP_SECONDS or state.change_sign() != sign:
            return None
        return table, state

    def clear(self) -> None:
        """Forget all names."""
        self._known.clear()
