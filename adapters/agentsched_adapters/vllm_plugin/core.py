"""The scheduling core inside the engine: the very policies of the proxy rank and retain here.

What is reused of the core, and what not: its books (programs, conversations, graphs, shares) and
its policies see every request of this engine as a step, through the same events. The order policy's
rank sorts the engine's waiting queue, the pin policy says how long a finished step's blocks stay.
Not used: admission and dispatch. vLLM decides by blocks and step budget when a request runs, in the
middle of its own step, which no queue of ours in front of it could know; so to the core every step
is let in at once, and "dispatched" means "in the engine's hands", waiting or running.

The engine cannot know tool calls, which the proxy parses out of answers. So each finished step
counts as one that called a tool without a name: a pin policy answers as it does for tools that it
knows nothing of, and the proxy's own pin, which knows more, takes the place of this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.model import (
    CallId,
    Capabilities,
    Command,
    ConversationId,
    EngineId,
    EngineLoad,
    EngineReported,
    Instant,
    Limits,
    Prefix,
    PrefixId,
    ProgramId,
    StepArrived,
    StepCancelled,
    StepFinished,
    StepId,
    TenantId,
    TimerFired,
    ToolCall,
    ToolName,
    Usage,
)
from agentsched.policy import Choice
from agentsched_adapters.vllm_plugin.caller import Caller
from agentsched_adapters.vllm_plugin.settings import PluginSettings

_ENGINE: Final = EngineId("this")
_UNKNOWN_TOOL: Final = ToolName("unknown")
#: Beginnings of a prompt that are told to the books, at most.
_PREFIXES_MAX: Final = 4
_LAST: Final = (float("inf"),)


class Core:
    """The core of one engine process. Raises whatever goes wrong; the host switches it off then.

    `hash_block_size` is how many tokens each hash of a prompt adds; None: those of a block.
    """

    def __init__(
        self,
        settings: PluginSettings,
        *,
        capabilities: Capabilities,
        hash_block_size: int | None = None,
    ) -> None:
        choices = {}
        if settings.order:
            choices["order"] = Choice(name=settings.order, params=settings.order_params)
        if settings.pin:
            choices["pin"] = Choice(name=settings.pin, params=settings.pin_params)
        limits = replace(
            Limits(),
            running_steps_per_engine_max=1_000_000,  # vLLM's to decide
            wait_ns_max=settings.wait_max or Limits().wait_ns_max,
            pin_ttl_ns_max=settings.ttl_max or Limits().pin_ttl_ns_max,
        )
        config = SchedulerConfig(profile="passthrough", choices=choices, limits=limits)
        self._scheduler = build_scheduler(config)
        self._hash_tokens = hash_block_size or capabilities.block_size or 16
        report = EngineReported(engine=_ENGINE, capabilities=capabilities, load=EngineLoad())
        self._scheduler.handle(report, now=Instant(0))

    def arrived(self, request: Any, caller: Caller, *, now: Instant) -> Sequence[Command]:
        """A request came in. As all that change something: what follows for pins."""
        key = request.request_id
        return self._scheduler.handle(
            StepArrived(
                step=StepId(key),
                program=ProgramId(caller.program or key),
                conversation=ConversationId(caller.conversation or key),
                tenant=TenantId(caller.tenant),
                prompt_tokens=request.num_prompt_tokens,
                prefixes=self._prefixes(request),
                output_tokens_max=request.max_tokens,
                is_last=not caller.is_known,
            ),
            now=now,
        )

    def finished(
        self, request: Any, caller: Caller, *, cached_tokens: int, now: Instant
    ) -> Sequence[Command]:
        """A request gave its whole answer."""
        key = request.request_id
        calls = (ToolCall(call_id=CallId(key), tool=_UNKNOWN_TOOL),) if caller.is_known else ()
        return self._scheduler.handle(
            StepFinished(
                step=StepId(key),
                usage=Usage(
                    prompt_tokens=request.num_prompt_tokens,
                    cached_tokens=cached_tokens,
                    output_tokens=request.num_output_tokens,
                ),
                tool_calls=calls,
                finish_reason="tool_calls" if calls else "stop",
            ),
            now=now,
        )

    def cancelled(self, request_id: str, *, now: Instant) -> Sequence[Command]:
        """A request ended without its whole answer."""
        event = StepCancelled(step=StepId(request_id), reason="aborted")
        return self._scheduler.handle(event, now=now)

    def tick(self, *, now: Instant) -> Sequence[Command]:
        """Whatever time alone brings about."""
        deadline = self._scheduler.next_deadline()
        if deadline is None or deadline > now:
            return ()
        return self._scheduler.handle(TimerFired(), now=now)

    def rank(self, request_id: str, now: Instant) -> tuple[float, ...]:
        """A waiting request's place; last where the core turned it away."""
        step = self._scheduler.steps.get(StepId(request_id))
        if step is None:
            return _LAST
        return self._scheduler.policies.order.rank(step, self._scheduler.world, now=now)

    @property
    def live_steps(self) -> int:
        """Requests that came and have not ended."""
        return len(self._scheduler.steps)

    def check(self) -> None:
        """Assert the core's invariants."""
        self._scheduler.check()

    def _prefixes(self, request: Any) -> tuple[Prefix, ...]:
        """Hashes of ever longer beginnings, at the same places for all prompts of about a size."""
        hashes: Sequence[bytes] = request.block_hashes
        if not hashes:
            return (Prefix(prefix=PrefixId(request.request_id), tokens=request.num_prompt_tokens),)
        stride = 1
        while len(hashes) > stride * _PREFIXES_MAX:
            stride *= 2
        places = [*range(stride, len(hashes), stride), len(hashes)]
        return tuple(
            Prefix(prefix=PrefixId(bytes(hashes[at - 1]).hex()), tokens=at * self._hash_tokens)
            for at in places
        )
