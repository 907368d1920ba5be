"""Places in the queue of steps that ended without an answer, for the retries that may follow."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from agentsched.model import MINUTE, Instant, Nanos, ProgramId, StepId, between

#: A client that wants to try again does it sooner.
_KEPT_NS_MAX: Final = Nanos(5 * MINUTE)
#: More are not kept: the one that was left first is forgotten.
_PLACES_MAX: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftPlace:
    """What a retry takes over: since when it is waited, and how many went before."""

    program: ProgramId
    arrived_at: Instant
    bypassed: int
    left_at: Instant


class LeftPlaces:
    """Keeps the places of steps that were cancelled, turned away or failed: a while, and so many.

    A retry that took its place over counts its promised wait from the first arrival. Whoever was
    told no because a bound was reached is let wait a little again, up to `patience`, and let go
    before it in the same proportion: a no at once would only make the client knock faster.
    """

    def __init__(self, *, wait_ns_max: Nanos, bypasses_max: int, patience: Nanos) -> None:
        self.set_bounds(wait_ns_max=wait_ns_max, bypasses_max=bypasses_max, patience=patience)
        #: The one that was left first comes first.
        self._places: OrderedDict[StepId, LeftPlace] = OrderedDict()

    def set_bounds(self, *, wait_ns_max: Nanos, bypasses_max: int, patience: Nanos) -> None:
        """Another promise from now on."""
        #: The longest time of the promised wait that a retry may find used up, and the most
        #: bypasses.
        self._used_max = Nanos(max(0, wait_ns_max - patience))
        self._bypassed_max = bypasses_max * self._used_max // wait_ns_max

    def __len__(self) -> int:
        return len(self._places)

    def leave(
        self, step: StepId, program: ProgramId, *, arrived_at: Instant, bypassed: int, now: Instant
    ) -> None:
        """Keep the place of a step that ended without an answer."""
        place = LeftPlace(program=program, arrived_at=arrived_at, bypassed=bypassed, left_at=now)
        self._places[step] = place
        self._places.move_to_end(step)
        if len(self._places) > _PLACES_MAX:
            self._places.popitem(last=False)

    def take(self, step: StepId, program: ProgramId, *, now: Instant) -> tuple[Instant, int]:
        """Arrival and bypasses for the retry of `step`; those of a newcomer where none is kept."""
        while self._places:
            oldest = next(iter(self._places.values()))
            if between(oldest.left_at, now) <= _KEPT_NS_MAX:
                break
            self._places.popitem(last=False)
        place = self._places.get(step)
        if place is None or place.program != program:
            return now, 0
        del self._places[step]
        return self.resume(place.arrived_at, place.bypassed, now=now)

    def resume(self, arrived_at: Instant, bypassed: int, *, now: Instant) -> tuple[Instant, int]:
        """Arrival and bypasses that count for a retry of what arrived first at `arrived_at`."""
        return max(arrived_at, Instant(now - self._used_max)), min(bypassed, self._bypassed_max)
