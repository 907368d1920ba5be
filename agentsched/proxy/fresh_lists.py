"""Before a model is said to be unknown, the engines are looked at once more: it may have just come.

Their lists are as of the last look. Whoever loads an adapter, or pulls a model, asks for it next.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from agentsched.proxy.fleet import Fleet

#: Between two such looks, for all who ask together: anybody can make up names of models.
_GAP_S: Final = 0.5
#: For the gap and the look. A list that takes longer is not waited for.
_PATIENCE_S: Final = 2.0


class FreshLists:
    """Looks at all engines for whoever asks for a model that none of them lists."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        #: Begins the next look, and gives what is done when each engine was looked at. While there
        #: is one it has not begun, so that it comes in time for whoever asks now.
        self._next: asyncio.Task[list[asyncio.Future[None]]] | None = None
        self._began_at = float("-inf")

    async def look_for(self, model: str) -> None:
        """Return when an engine lists it, or a look that began after this call is over.

        Nothing is awaited where one lists it already, or where none is up.
        """
        if self._fleet.knows(model):
            return
        if self._next is None:
            self._next = asyncio.create_task(self._begin(), name="look for models")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                looks = set(await asyncio.shield(self._next))
                # One list that has it is enough, however long the others take.
                while looks and not self._fleet.knows(model):
                    _, looks = await asyncio.wait(looks, return_when=asyncio.FIRST_COMPLETED)

    async def _begin(self) -> list[asyncio.Future[None]]:
        clock = asyncio.get_running_loop()
        await asyncio.sleep(self._began_at + _GAP_S - clock.time())
        self._next, self._began_at = None, clock.time()
        return self._fleet.look_again()

    async def aclose(self) -> None:
        """Look no more."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
