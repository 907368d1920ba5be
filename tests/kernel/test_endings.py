"""What a step teaches when it ends."""

from __future__ import annotations

from typing import Any

import pytest
from shorthand import prefix

from agentsched.kernel.records import EngineRecord
from agentsched.model import CallId, EngineId, ProgramId, StepClass, StepId, TenantId

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


def tools(rig: Any) -> list[str]:
    return list(rig.scheduler.programs["p1"].conversations["p1/main"].tools)


def test_whoever_goes_on_waits_for_no_call_of_an_answer_that_was_lost(rig: Any) -> None:
    """Its last bytes were: the client asks again, gets another answer and goes on from that."""
    rig.engine()
    rig.arrive("s1", at=1)
    rig.finish("s1", at=2, tools={"k1": "bash"})
    rig.arrive("s1b", at=3, retries=StepId("s1"))
    rig.finish("s1b", at=4, tools={"k2": "bash"})
    assert tools(rig) == ["k2"]
    rig.arrive("s2", at=5, answers=(CallId("k2"),))
    assert tools(rig) == []
    # Each may still be reported, and is told by its name.
    answered = rig.scheduler.programs["p1"].conversations["p1/main"].answered
    assert answered == {"k1": "bash", "k2": "bash"}


def test_what_is_asked_beside_it_takes_no_call_from_a_conversation(rig: Any) -> None:
    rig.engine()
    rig.arrive("s1", at=1)
    rig.arrive("s2", at=1)
    rig.finish("s1", at=2, tools={"k1": "bash"})
    rig.arrive("s3", at=3)  # s2 is under way still
    assert tools(rig) == ["k1"]
    for step in ("s2", "s3"):
        rig.finish(step, at=4, tools={step: "bash"})
    rig.arrive("title", at=5, step_class=StepClass.AUXILIARY)
    assert tools(rig) == ["k1", "s2", "s3"]


@pytest.mark.parametrize(
    ("tells", "charged", "untold"), [(True, 100 + 130, 0), (False, 100 + 30, 130)]
)
def test_an_engine_that_tells_what_was_cached_and_says_nothing_had_nothing_cached(
    rig: Any, *, tells: bool, charged: int, untold: int
) -> None:
    """SGLang leaves the number out where it is 0; of others what we believe counts."""
    rig.engine(cached_tokens=tells)
    kept = prefix("kept", 100)
    rig.arrive("s1", at=1, prefixes=(kept,))
    rig.finish("s1", at=2, prompt=100, cached=0, output=0)
    rig.arrive("s2", at=3, tokens=130, prefixes=(kept, prefix("new", 130)))
    rig.finish("s2", at=4, prompt=130, cached=None, output=0)
    tenant = rig.scheduler.tenants[TenantId("t1")]
    assert (tenant.uncached_tokens, tenant.untold_tokens) == (charged, untold)
    program = rig.scheduler.programs[ProgramId("p1")]
    assert (program.served_tokens, program.untold_tokens) == (charged, untold)


def test_an_answer_without_any_usage_tells_nothing(rig: Any) -> None:
    rig.engine(cached_tokens=True)
    rig.arrive("s1", at=1)
    rig.finish("s1", at=2, prompt=0, cached=None, output=0)
    tenant = rig.scheduler.tenants[TenantId("t1")]
    assert (tenant.uncached_tokens, tenant.untold_tokens, tenant.steps) == (0, 0, 1)


@pytest.mark.parametrize("beside", [StepClass.AUXILIARY, StepClass.BATCH])
def test_what_is_asked_beside_a_step_takes_no_memory_of_it_along(
    rig: Any, beside: StepClass
) -> None:
    """A title of the same conversation is answered while the step runs: what that computes is
    there afterwards, and is not taken to be computed again by the next one."""
    rig.engine(kv_tokens=10_000)
    rig.arrive("s1", tokens=1_000)
    rig.arrive("t1", tokens=100, step_class=beside)
    rig.finish("t1", prompt=100, output=5)
    rig.finish("s1", prompt=1_000, output=50, tools={"c": "bash"})
    assert rig.scheduler.world.resident_tokens("e1") == 1_050
    rig.arrive("s2", tokens=1_100)
    assert rig.scheduler.steps["s2"].missing_tokens == 50


def test_what_was_asked_for_by_the_way_alone_is_gone_with_the_last_of_it(rig: Any) -> None:
    rig.engine(kv_tokens=10_000)
    for step in ("t1", "t2"):
        rig.arrive(step, tokens=100, step_class=StepClass.AUXILIARY)
    rig.finish("t1")
    assert rig.scheduler.world.resident_tokens("e1") == 100
    rig.finish("t2")
    assert rig.scheduler.world.resident_tokens("e1") == 0
