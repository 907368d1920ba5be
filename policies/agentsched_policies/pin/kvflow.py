"""KVFlow: keep the fixed prompts of the agents that run soonest; let suffixes go first.

Paper: "KVFlow: Efficient Prefix Caching for Accelerating LLM-Based Multi-Agent Workflows", arXiv
2507.07400 (NeurIPS 2025), section 3. Every agent of a workflow has a number of steps to its next
execution; the fixed part of its prompt is kept with that as its priority, and what is furthest away
is evicted first. What follows the fixed part is always evicted before any of them.

    value = 1 / (1 + steps to execution)       of the fixed prompt only

Steps are those of the declared workflow or of the graph's forecast: 1 for a conversation that waits
for its tools, and for one that waits for sub-agents those that still have to run before it.

When it fails: a coding agent's growing suffix is what it comes back for, and that is what goes
first; time does not enter, so that a tool of ten minutes counts like one of ten milliseconds.
"""

from __future__ import annotations

from agentsched.model import MINUTE, Event, Instant, Nanos
from agentsched.policy import PauseView, Retention, World


class KvFlow:
    """Retention of fixed prompts by steps to execution. `ttl_s` bounds what nobody ends."""

    def __init__(self, *, ttl_s: float = 600.0) -> None:
        if ttl_s <= 0:
            raise ValueError(f"ttl_s must be positive, not {ttl_s}")
        self._ttl = Nanos(round(ttl_s / 60.0 * MINUTE))

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn: the graph knows the steps."""

    def retain(self, pause: PauseView, world: World, *, now: Instant) -> Retention | None:
        program = world.programs.get(pause.program)
        if program is None:
            return None
        conversation = program.conversations.get(pause.conversation)
        if conversation is None or conversation.is_over or not conversation.prefixes:
            return None
        fixed = conversation.prefixes[0]
        if fixed.tokens >= pause.prefix.tokens:
            fixed = pause.prefix
        value = 1.0 / (1.0 + self._steps_to_execution(pause, world))
        return Retention(ttl=self._ttl, value=value, prefix=fixed)

    def _steps_to_execution(self, pause: PauseView, world: World) -> float:
        graph = world.graph(pause.program)
        if graph is None or pause.tools:
            return 1.0
        if not graph.is_waiting_for_children():
            return 1.0
        left = graph.critical_path_left()
        return max(1.0, left) if left is not None else 2.0
