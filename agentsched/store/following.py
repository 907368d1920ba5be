"""The turns of other replicas, read from the store that all of them write.

Rows are found by the time of their turn. A row may come later than that by what its writer kept
it (a flush, a spool while the database was away), so a look reaches back, and what was seen is left
out.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

from sqlalchemy import select

from agentsched.store.database import Database, StoreError, read_url
from agentsched.store.tables import TurnRow

#: How far each look reaches back beyond a flush, and for how long after an outage to the beginning
#: of that.
_BACK_NS: Final = 3 * 10**9
_BACK_AFTER_OUTAGE_NS: Final = 60 * 10**9
_SEEN_MAX: Final = 50_000
_ROWS_MAX: Final = 5_000


class Follower:
    """Reads what other streams have that was not read yet. Not for use by two tasks at once.

    `flush_ns` is how long the others keep a turn before they write it.
    """

    def __init__(self, url: str, *, stream: str, since_ns: int, flush_ns: int = 0) -> None:
        self._database = Database(read_url(url))
        self._stream = stream
        #: Time of day up to which everything was read.
        self._since = since_ns
        #: How far each look reaches back.
        self._back = _BACK_NS + flush_ns
        self._failed_at: int | None = None
        #: After an outage: until when looks reach back to its beginning.
        self._back_until: int | None = None
        self._seen: OrderedDict[int, int] = OrderedDict()
        #: Whether there is more than the last look brought.
        self.is_behind = False

    async def news(self) -> list[tuple[int, bytes]]:
        """Turns that are new since the last call, with their time of day (ns), oldest first.

        Raises:
            StoreError: the database does not answer; the next call goes on from here.
        """
        began = time.time_ns()
        try:
            rows = await self._read()
        except StoreError:
            self._failed_at = self._failed_at or self._since
            self._back_until = None
            raise
        fresh = [(at, handle, data) for at, handle, data in rows if self._seen.get(handle) != at]
        for at, handle, _ in fresh:
            self._seen[handle] = at
            self._seen.move_to_end(handle)
        while len(self._seen) > _SEEN_MAX:
            self._seen.popitem(last=False)
        self.is_behind = len(rows) == _ROWS_MAX
        if self.is_behind:
            self._since = rows[-1][0] + self._back  # there is more: the next look begins here
        else:
            self._since = began
            self._look_back(began)
        return [(at, data) for at, _, data in fresh]

    async def aclose(self) -> None:
        await self._database.aclose()

    def _look_back(self, now: int) -> None:
        """What others kept while the database was away comes later than what they write now."""
        if self._failed_at is None:
            return
        if self._back_until is None:
            self._back_until = now + _BACK_AFTER_OUTAGE_NS
        if now > self._back_until:
            self._failed_at = self._back_until = None
        else:
            self._since = min(self._since, self._failed_at)

    async def _read(self) -> list[tuple[int, int, bytes]]:
        async with self._database.reading() as connection:
            found = (
                select(TurnRow.at_ns, TurnRow.handle, TurnRow.data)
                .where(TurnRow.stream != self._stream, TurnRow.at_ns >= self._since - self._back)
                .order_by(TurnRow.at_ns, TurnRow.handle)
                .limit(_ROWS_MAX)
            )
            rows = (await connection.execute(found)).all()
        return [(at, handle, data) for at, handle, data in rows]
