"""Programs that were begun before this scheduler was: after a start without memory they come back.

Nothing is known of them then, and as newcomers they would be refused in the middle of their work
while others, who have lost nothing, are begun in their place. What they send shows that they go on,
and is believed for a while after the start, in which nearly all of them come back. Not later:
whoever makes up a history then would never be a newcomer (docs/adr/0013).
"""

from __future__ import annotations

from typing import Final

from agentsched.kernel.books import Books
from agentsched.model import MINUTE, Nanos, StepArrived, between

#: Far longer than nearly all pauses for tools, and no time in which to plan an evasion.
_WINDOW: Final = Nanos(10 * MINUTE)


def goes_on(event: StepArrived, books: Books) -> bool:
    """Whether a step's program was begun elsewhere, as far as can be told and is believed.

    Another replica's word of it (`home`) is always believed, the client's own for a while.
    """
    if event.home is not None:
        return True
    if not event.goes_on or books.began_at is None:
        return False
    return between(books.began_at, books.now) <= _WINDOW
