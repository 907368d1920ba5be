"""KVFlow's queue: by arrival, passing over steps whose prefix is still being loaded.

arXiv 2507.07400, section 3.3: a request with a node in the state "loading" is skipped and others go
first. Loading, seen from here, is a warm-up that was ordered and not yet answered.

Fails when loading takes longer than computing would have: the step waits for it all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentsched.model import (
    Command,
    ConversationId,
    Event,
    HintAnswered,
    Instant,
    PinId,
    Prefetch,
    after,
    seconds,
)
from agentsched.policy import SortKey, StepView, World
from agentsched_policies.bounded import Bounded


class Kvflow:
    """Arrival order, behind everybody while a warm-up of its prefix is under way.

    `loading_s_max`: an answer that has not come by then is taken to be lost.
    """

    def __init__(self, *, loading_s_max: float = 5.0) -> None:
        if loading_s_max <= 0:
            raise ValueError(f"loading_s_max must be positive, not {loading_s_max}")
        self._longest = seconds(loading_s_max)
        self._orders: Bounded[PinId, ConversationId] = Bounded()
        self._loading: Bounded[ConversationId, Instant] = Bounded()

    def observe(self, event: Event, *, now: Instant) -> None:
        if isinstance(event, HintAnswered):
            conversation = self._orders.pop(event.pin)
            if conversation is not None:
                self._loading.pop(conversation)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        for command in commands:
            if isinstance(command, Prefetch):
                self._orders.set(command.pin, command.conversation)
                self._loading.set(command.conversation, after(now, self._longest))

    def rank(self, step: StepView, world: World, *, now: Instant) -> SortKey:
        until = self._loading.get(step.conversation)
        return (float(until is not None and now < until), float(step.arrived_at))

    def priority(self, step: StepView, world: World, *, now: Instant) -> int:
        return 0
