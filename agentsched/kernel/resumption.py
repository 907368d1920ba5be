"""Programs that were begun before this scheduler was: after a start without memory they come back.

Nothing is known of them then, and as newcomers they would be refused in the middle of their work
while others, who have lost nothing, are begun in their place. What they send shows that they go on,
and is believed for a while after the start, in which nearly all of them come back. Not later:
whoever makes up a history then would never be a newcomer (docs/adr/0013).
"""

from __future__ import annotations

from typing import Final

from agentsched.kernel.books import Books
from agentsched.model import MINUTE, Instant, Nanos, StepArrived, between

#: Far longer than nearly all pauses for tools, and no time in which to plan an evasion.
_WINDOW: Final = Nanos(10 * MINUTE)


def believes(books: Books, *, now: Instant) -> bool:
    """Whether a host may go by what requests themselves show (`StepArrived.goes_on`)."""
    return books.began_at is None or between(books.began_at, now) <= _WINDOW


def goes_on(event: StepArrived) -> bool:
    """Whether a step's program was begun elsewhere: another replica said so, or its request did."""
    return event.home is not None or event.goes_on
