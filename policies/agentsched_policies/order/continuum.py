"""Continuum's queue: pinned conversations first, then the oldest program (arXiv 2511.02230).

Their order is (preempted first, pinned within its time first, arrival of the program). Preemption
happens inside an engine and is not seen from here; a pin counts from the turn that gave it to the
turn that ended it. Without pins (an engine that cannot hold any) it is program FCFS.

Fails where old programs are long: they are in front of everybody at every step until the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import Command, ConversationId, Event, Instant, Pin, PinId, Unpin
from agentsched.policy import SortKey, StepView, World
from agentsched_policies.bounded import Bounded


class Continuum:
    """Pinned first, then arrival of the program."""

    def __init__(self) -> None:
        self._pins: Bounded[PinId, ConversationId] = Bounded()
        self._pinned: Bounded[ConversationId, tuple[PinId, Instant]] = Bounded()

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn: pins are commands."""

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        for command in commands:
            if isinstance(command, Pin):
                self._pins.set(command.pin, command.conversation)
                self._pinned.set(command.conversation, (command.pin, command.expires_at))
            elif isinstance(command, Unpin):
                conversation = self._pins.pop(command.pin)
                if conversation is None:
                    continue
                held = self._pinned.get(conversation)
                if held is not None and held[0] == command.pin:
                    self._pinned.pop(conversation)

    def rank(self, step: StepView, world: World, *, now: Instant) -> SortKey:
        held = self._pinned.get(step.conversation)
        is_pinned = held is not None and held[1] >= now
        return (float(not is_pinned), float(world.programs[step.program].ordinal))

    def priority(self, step: StepView, world: World, *, now: Instant) -> int:
        # 0 would mean "no opinion".
        return world.programs[step.program].ordinal + 1
