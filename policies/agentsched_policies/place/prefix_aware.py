"""The engine that has most of the prompt, unless the engines are out of balance.

Source: `cache_aware` of vllm-project/router (threshold 0.3, balance 64 steps and 1.5 times). The
best match wins when it covers at least `threshold` of the prompt; otherwise, and whenever the
busiest engine has `balance_steps` more than the idlest and `balance_ratio` times as many, the least
loaded. Theirs keeps a tree of texts that knows nothing of evictions; ours asks our account of the
engines' caches.

Fails where all programs share a long system prompt: every match is above the threshold, so the
first engine that has it draws newcomers until the balance tips.
"""

from __future__ import annotations

from agentsched.model import Event, Instant
from agentsched.policy import EngineView, StepView, World


class PrefixAware:
    """Longest match at or above `threshold` of the prompt, else fewest running steps."""

    def __init__(
        self, *, threshold: float = 0.3, balance_steps: int = 64, balance_ratio: float = 1.5
    ) -> None:
        if not 0 <= threshold <= 1 or balance_steps < 0 or balance_ratio < 1:
            raise ValueError(
                "threshold is a share, balance_steps 0 or more, balance_ratio 1 or more"
            )
        self._threshold = threshold
        self._balance_steps = balance_steps
        self._balance_ratio = balance_ratio

    def observe(self, event: Event, *, now: Instant) -> None:
        """Nothing to learn."""

    def score(self, step: StepView, engine: EngineView, world: World, *, now: Instant) -> float:
        # Below 1, and less the more runs there.
        room = 1.0 / (1.0 + engine.running_steps)
        if self._is_out_of_balance(world):
            return room
        found = step.prompt_tokens - world.missing_tokens(step, engine.engine)
        match = found / max(1, step.prompt_tokens)
        # Matches that differ by less than a hundredth are equal: the load decides then.
        return (1.0 + round(match, 2)) * 2.0 + room / 200 if match >= self._threshold else room

    def _is_out_of_balance(self, world: World) -> bool:
        steps = [e.running_steps for e in world.engines.values() if e.is_up]
        most, least = max(steps, default=0), min(steps, default=0)
        return most - least > self._balance_steps and most > self._balance_ratio * least
