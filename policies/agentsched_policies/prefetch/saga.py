"""SAGA: when a step ends and its tool starts, bring in the likeliest successor's prefix.

Paper: "SAGA: Workflow-Atomic Scheduling for AI Agent Inference on GPU Clusters", arXiv 2605.00528
(v2), section 4.3: u = argmax P(v -> u); u's prefix is brought in if it is not resident. Edges below
a confidence of 0.7 are not followed; a chain of tool calls is its own successor.

Asked at the pause's beginning, when it has just been computed, and again at reports of its tools or
when the engine's plugin says that it is gone.

When it fails: it does so at the start of the tool, however long that takes, so that what it brought
in may be gone again at its end.
"""

from __future__ import annotations

from typing import Final

from agentsched.model import Event, Instant
from agentsched.policy import PauseView, World

_END: Final = "(end)"


class Saga:
    """At once where the likeliest next step is one of this conversation."""

    def __init__(self, *, confidence: float = 0.7) -> None:
        if not 0 <= confidence <= 1:
            raise ValueError(f"confidence is a share, not {confidence}")
        self._confidence = confidence

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn: the graph knows the successors."""

    def warm_at(self, pause: PauseView, world: World, *, now: Instant) -> Instant | None:
        program = world.programs.get(pause.program)
        talk = program.conversations.get(pause.conversation) if program is not None else None
        if talk is None or talk.is_over or talk.is_resident or not pause.tools:
            return None
        graph = world.graph(pause.program)
        likely = graph.next_tools(pause.conversation) if graph is not None else ()
        if likely and likely[0][0] == _END and likely[0][1] >= self._confidence:
            return None
        return now
