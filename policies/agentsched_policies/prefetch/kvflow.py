"""KVFlow: bring in the prompts of the agents that run next while the current one runs.

Paper: "KVFlow: Efficient Prefix Caching for Accelerating LLM-Based Multi-Agent Workflows", arXiv
2507.07400 (NeurIPS 2025), section 3. Published: load the fixed prompts of all possible next agents
from the host's memory in the background, within the memory that can be evicted. Here, where a
conversation pauses with one step to its next execution and lies in the cache no more, its prompt is
asked for at once, when a report of its tools, or the engine's plugin, has it asked about.

When it fails: without a tier below, a load is a prefill, and one that comes long before its use
pushes out what is needed sooner; time does not enter.
"""

from __future__ import annotations

from agentsched.model import Event, Instant
from agentsched.policy import PauseView, World


class KvFlow:
    """At once for what was evicted and runs next."""

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def warm_at(self, pause: PauseView, world: World, *, now: Instant) -> Instant | None:
        program = world.programs.get(pause.program)
        talk = program.conversations.get(pause.conversation) if program is not None else None
        if talk is None or talk.is_over or talk.is_resident or not pause.tools:
            return None
        return now
