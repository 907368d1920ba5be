"""What a paused conversation's KV is worth: the best rate of return over all spans to keep it.

Theory. A token kept for a span D costs memory for E[min(T, D)], the time until it is used or given
up, and saves its reload with probability P(T <= D), T being the time of the return. The greatest
quotient of the two over all D is the Gittins index of keeping it: with memory to spare for some,
keeping those of greatest index saves most. Where the chance of a return only falls with time, the
index is the hazard of the moment; where it rises first (a tool that always takes ten seconds), the
index looks ahead to the rise.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from agentsched.model import Nanos
from agentsched.policy import ReturnView

#: Octaves from an eighth of a second to more than an hour.
SPANS: Final = tuple(Nanos(125_000_000 << octave) for octave in range(16))
_EDGES: Final = (Nanos(0), *SPANS)
_WIDTHS: Final = tuple(end - begin for begin, end in pairwise(_EDGES))


def rate_of_return(returns: ReturnView) -> float:
    """Returns per nanosecond of memory, at the span where that is greatest."""
    best = kept = before = 0.0
    for width, chance in zip(_WIDTHS, returns.chances(SPANS), strict=True):
        kept += width * (1.0 - 0.5 * (before + chance))
        before = chance
        if kept > 0.0 and chance > best * kept:
            best = chance / kept
    return best
