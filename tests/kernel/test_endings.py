"""What a step teaches when it ends."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.kernel.records import EngineRecord
from agentsched.model import EngineId

#: A cache that holds one of two conversations: whoever comes back was evicted by the other.
CACHE = 4_000


def turn(
    rig: Any, step: str, program: str, *, at: float, prompt: int, uncached: int, took_s: float
) -> None:
    """One streamed step alone on the engine, its first token after so many seconds."""
    rig.arrive(step, program=program, at=at, tokens=prompt)
    rig.start(step, at=at + took_s)
    rig.finish(step, at=at + took_s + 1, prompt=prompt, cached=prompt - uncached)


def test_what_comes_back_over_a_tier_is_priced_without_the_prompts_own_new_tokens(rig: Any) -> None:
    """Half of computing is what the tier takes here, and 100 tokens of each turn are new."""
    rig.engine(kv_tokens=CACHE, tier=True)
    for number, program in enumerate(("p1", "p2")):
        turn(
            rig, f"{program}-0", program, at=10 * number, prompt=2_000, uncached=2_000, took_s=0.22
        )
    contexts = dict.fromkeys(("p1", "p2"), 2_010)
    for number in range(1, 6):
        for program, context in contexts.items():
            at = 20 * number + (10 if program == "p2" else 0)
            turn(
                rig,
                f"{program}-{number}",
                program,
                at=at,
                prompt=context + 100,
                uncached=100,
                # By the law that all this keeps to: 20 ms, and 100 us for a token that is computed.
                took_s=0.02 + 0.1 * 0.1 + 0.5 * 0.1 * context / 1_000,
            )
            contexts[program] += 110
    engine: EngineRecord = rig.scheduler.engines[EngineId("e1")]
    assert engine.cost.reload_ns_per_token == pytest.approx(
        0.5 * engine.cost.prefill_ns_per_token, rel=0.02
    )
