"""The engine model: invariants under any use, and fused steps that equal single ones."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentsched.model.errors import ConfigError
from agentsched.model.time import SECOND, Instant, Nanos, after
from agentsched_bench.engine.cost import CPU_2CORE
from agentsched_bench.engine.model import EngineModel
from agentsched_bench.engine.requests import (
    EngineConfig,
    Generation,
    Refusal,
    Scheduling,
)
from agentsched_bench.engine.tier import TierConfig
from agentsched_bench.engine.tokens import Run, RunChain


def config(**changes: Any) -> EngineConfig:
    sizes: dict[str, Any] = {
        "cost": CPU_2CORE,
        "blocks": 17,
        "block_size": 4,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "max_model_len": 64,
    }
    return EngineConfig(**{**sizes, **changes})


def generation(
    key: str,
    *runs: tuple[int, int],
    output: int = 1,
    priority: int = 0,
    block_size: int = 4,
) -> Generation:
    """A prompt of (content, tokens) runs, and an answer that is the start of content `key`."""
    chain = RunChain(
        [Run(content=content, tokens=tokens) for content, tokens in runs], block_size=block_size
    )
    prompt = chain.tokens
    chain.extend(Run(content=sum(key.encode()) + 1000, tokens=output))
    return Generation(
        id=key, chain=chain, prompt_tokens=prompt, output_tokens=output, priority=priority
    )


def drain(model: EngineModel, now: int = 0) -> int:
    """Run everything to its end; the instant of it."""
    at = Instant(now)
    while len(model):
        stretch = model.run_until(now=at, until=after(at, Nanos(SECOND * 1000)))
        assert stretch.at > at
        at = stretch.at
        model.check()
    return at


def finish(model: EngineModel, asked: Generation, now: int = 0) -> int:
    """Run one generation alone; its cached tokens."""
    assert model.add(asked, now=Instant(now)) is None
    cached = None
    while asked.id in model:
        model.step(now=Instant(now))
        if asked.id in model:
            cached = model.cached_tokens(asked.id)
    assert cached is not None
    return cached


def test_a_lone_call_takes_chunks_then_tokens() -> None:
    model = EngineModel(config())
    model.add(generation("a", (1, 40), output=3), now=Instant(0))
    outcomes = []
    at = Instant(0)
    while len(model):
        outcome = model.step(now=at)
        assert outcome is not None
        outcomes.append(outcome)
        at = after(at, outcome.duration)
    assert [o.prefilled_tokens for o in outcomes] == [16, 16, 8, 0, 0]
    assert [o.emitted for o in outcomes] == [(), (), ("a",), ("a",), ("a",)]
    assert outcomes[2].first == ("a",)
    assert outcomes[-1].finished[0].output_tokens == 3
    cost = CPU_2CORE
    assert outcomes[0].duration == cost.step(
        prefill_ns=cost.prefill_ns(start=0, tokens=16), decodes=0, decode_context=0
    )
    assert outcomes[3].duration == cost.step(prefill_ns=0, decodes=1, decode_context=40)
    assert model.step(now=at) is None


def test_the_last_token_is_computed_again_on_a_full_hit() -> None:
    model = EngineModel(config())
    assert finish(model, generation("a", (1, 16), output=2)) == 0
    # All four blocks are cached, but one token at least is computed, so its block does not count.
    assert finish(model, generation("b", (1, 16), output=2)) == 12
    assert finish(model, generation("c", (1, 17), output=2)) == 16


def test_answers_are_cached_except_their_last_token() -> None:
    model = EngineModel(config())
    finish(model, generation("a", (1, 8), output=8))
    answer = (sum(b"a") + 1000, 8)
    # The last token of an answer was emitted, not computed: the block that it ends is not full.
    assert finish(model, generation("b", (1, 8), answer, (2, 1), output=2)) == 12


def test_the_tail_of_the_oldest_prompt_goes_first() -> None:
    model = EngineModel(config())  # 16 usable blocks
    finish(model, generation("a", (1, 24), output=2))
    finish(model, generation("b", (2, 24), output=2))
    # 12 blocks hold prompts; 8 more than the 4 without content are needed: 6 of a, 2 of b's tail.
    finish(model, generation("c", (3, 46), output=2))
    assert finish(model, generation("a2", (1, 25), output=2)) == 0
    model = EngineModel(config())
    finish(model, generation("a", (1, 24), output=2))
    finish(model, generation("b", (2, 24), output=2))
    finish(model, generation("c", (3, 22), output=2))
    # Two blocks were missing: the two last of a's prompt are gone, its head is still there.
    assert finish(model, generation("a2", (1, 25), output=2)) == 16


def test_preemption_takes_the_last_and_it_recovers() -> None:
    model = EngineModel(config(max_num_batched_tokens=64))
    model.add(generation("a", (1, 28), output=30), now=Instant(0))
    model.add(generation("b", (2, 28), output=30), now=Instant(1))
    preempted: list[str] = []
    at = Instant(2)
    ends: list[str] = []
    while len(model):
        outcome = model.step(now=at)
        assert outcome is not None
        at = after(at, outcome.duration)
        preempted += outcome.preempted
        ends += [done.id for done in outcome.finished]
        model.check()
    assert preempted == ["b"]
    assert ends == ["a", "b"]
    assert model.gauges(now=at).preemptions == 1


def test_priority_goes_first_and_preempts_the_least() -> None:
    order = []
    model = EngineModel(config(scheduling=Scheduling.PRIORITY, max_num_seqs=1))
    for key, priority in (("low", 5), ("mid", 0), ("high", -5)):
        model.add(generation(key, (sum(key.encode()), 8), priority=priority), now=Instant(0))
    while len(model):
        outcome = model.step(now=Instant(0))
        assert outcome is not None
        order += [done.id for done in outcome.finished]
    assert order == ["high", "mid", "low"]


def test_refusals_change_nothing() -> None:
    model = EngineModel(config(max_queued=1))
    assert model.add(generation("a", (1, 60), output=9), now=Instant(0)) is Refusal.TOO_LONG
    assert model.add(generation("a", (1, 8)), now=Instant(0)) is None
    assert model.add(generation("a", (1, 8)), now=Instant(0)) is Refusal.DUPLICATE
    assert model.add(generation("b", (1, 8)), now=Instant(0)) is Refusal.QUEUE_FULL
    assert len(model) == 1
    by_tokens = EngineModel(config(max_queued_tokens=10))
    assert by_tokens.add(generation("a", (1, 8)), now=Instant(0)) is None
    assert by_tokens.add(generation("b", (1, 3)), now=Instant(0)) is Refusal.QUEUE_FULL
    assert by_tokens.add(generation("b", (1, 2)), now=Instant(0)) is None


def test_an_abort_in_the_middle_of_a_step_frees_at_once() -> None:
    model = EngineModel(config())
    model.add(generation("a", (1, 8), output=5), now=Instant(0))
    assert model.begin(now=Instant(0)) is not None
    assert model.gauges(now=Instant(0)).blocks_used == 2
    assert model.abort("a")
    assert not model.abort("a")
    assert model.gauges(now=Instant(0)).blocks_used == 0
    outcome = model.finish()
    assert outcome.emitted == ()
    assert model.step(now=Instant(1)) is None


def test_reset_needs_an_empty_engine() -> None:
    model = EngineModel(config())
    model.add(generation("a", (1, 16), output=3), now=Instant(0))
    model.step(now=Instant(0))
    assert not model.reset_cache()
    drain(model)
    assert model.reset_cache()
    assert finish(model, generation("b", (1, 17), output=2)) == 0


def test_without_caching_nothing_is_found() -> None:
    model = EngineModel(config(prefix_caching=False))
    finish(model, generation("a", (1, 16), output=2))
    assert finish(model, generation("b", (1, 17), output=2)) == 0
    assert model.gauges(now=Instant(0)).prefix_queries == 0


def test_the_tier_gives_back_what_was_evicted() -> None:
    tier = TierConfig(blocks=100, tokens_per_second=1000)
    model = EngineModel(config(tier=tier))
    finish(model, generation("a", (1, 40), output=2))
    finish(model, generation("b", (2, 60), output=2))
    asked = generation("c", (1, 41), output=2)
    model.add(asked, now=Instant(5))
    assert model.begin(now=Instant(5)) is None, "loading, nothing to compute"
    assert model.gauges(now=Instant(5)).waiting == 1
    ready = model.next_ready(now=Instant(5))
    # The first of its ten blocks may still be resident; the others take 1 ms a token.
    assert ready is not None
    loaded = model.gauges(now=Instant(5)).tier_tokens
    assert loaded >= 32
    assert ready == 5 + loaded * 1_000_000
    assert model.cached_tokens("c") == 40
    stretch = model.run_until(now=Instant(5), until=Instant(10 * SECOND))
    assert stretch.outcome is not None
    assert stretch.outcome.started_at == ready
    assert stretch.outcome.first == ("c",)
    assert stretch.outcome.prefilled_tokens == 1


def test_a_pool_that_cannot_hold_one_request_is_refused() -> None:
    with pytest.raises(ConfigError, match="use 17 blocks"):
        config(blocks=16)


class Machine(RuleBasedStateMachine):
    """Any adds, aborts, half steps and resets; checked after each."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.count = 0
        self.flying = False
        self.model = EngineModel(
            config(
                scheduling=Scheduling.PRIORITY,
                max_queued=6,
                tier=TierConfig(blocks=5, tokens_per_second=100_000),
            )
        )

    @rule(
        content=st.integers(0, 2),
        tokens=st.integers(1, 40),
        output=st.integers(1, 24),
        priority=st.integers(-1, 1),
    )
    def add(self, content: int, tokens: int, output: int, priority: int) -> None:
        self.count += 1
        asked = generation(f"g{self.count}", (content, tokens), output=output, priority=priority)
        before = len(self.model)
        refused = self.model.add(asked, now=Instant(self.now))
        assert len(self.model) == before + (refused is None)

    @precondition(lambda self: len(self.model) > 0)
    @rule(pick=st.integers(0, 100))
    def abort(self, pick: int) -> None:
        live = self.model.live()
        assert self.model.abort(live[pick % len(live)])

    @precondition(lambda self: not self.flying)
    @rule()
    def begin(self) -> None:
        span = self.model.begin(now=Instant(self.now))
        if span is None:
            ready = self.model.next_ready(now=Instant(self.now))
            self.now = ready if ready is not None else self.now + 1
        else:
            self.now += span
            self.flying = True

    @precondition(lambda self: self.flying)
    @rule()
    def finish(self) -> None:
        self.flying = False
        self.model.finish()

    @precondition(lambda self: not self.flying)
    @rule(span=st.integers(0, 10**9))
    def run(self, span: int) -> None:
        stretch = self.model.run_until(now=Instant(self.now), until=Instant(self.now + span))
        self.now = stretch.at

    @precondition(lambda self: not self.flying)
    @rule()
    def reset(self) -> None:
        used = self.model.gauges(now=Instant(self.now)).blocks_used
        assert self.model.reset_cache() == (used == 0)

    @invariant()
    def sound(self) -> None:
        self.model.check()

    def teardown(self) -> None:
        if self.flying:
            self.model.finish()
        drain(self.model, self.now)
        assert self.model.gauges(now=Instant(self.now)).blocks_used == 0


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@st.composite
def workloads(draw: st.DrawFn) -> tuple[EngineConfig, list[tuple[int, Generation]]]:
    block_size = draw(st.sampled_from([1, 2, 4, 8]))
    limit = block_size * draw(st.integers(8, 16))
    chosen = config(
        block_size=block_size,
        max_model_len=limit,
        blocks=limit // block_size + 1 + draw(st.integers(0, 20)),
        max_num_seqs=draw(st.integers(1, 6)),
        max_num_batched_tokens=draw(st.integers(1, 64)),
        scheduling=draw(st.sampled_from(Scheduling)),
        prefix_caching=draw(st.booleans()),
        tier=draw(st.sampled_from([None, TierConfig(blocks=9, tokens_per_second=20_000.0)])),
    )
    arrivals = []
    for index in range(draw(st.integers(1, 8))):
        output = draw(st.integers(1, limit - 1))
        prompt = draw(st.integers(1, limit - output))
        asked = generation(
            f"g{index}",
            (draw(st.integers(0, 1)), prompt),
            output=output,
            priority=draw(st.integers(0, 1)),
            block_size=block_size,
        )
        arrivals.append((draw(st.integers(0, 3 * 10**8)), asked))
    return chosen, sorted(arrivals, key=lambda pair: pair[0])


def trace(
    chosen: EngineConfig, arrivals: list[tuple[int, Generation]], *, fused: bool
) -> tuple[list[Any], Any]:
    """Every milestone with its instant, and the final state; a step never skips an arrival."""
    model = EngineModel(chosen)
    milestones: list[Any] = []
    at = Instant(0)
    left = list(arrivals)
    while left or len(model):
        while left and left[0][0] <= at:
            model.add(left.pop(0)[1], now=at)
        until = Instant(left[0][0]) if left else Instant(at + 10**15)
        if fused:
            stretch = model.run_until(now=at, until=until)
            outcome, at = stretch.outcome, stretch.at
            idle = outcome is None and at < until
        else:
            outcome = model.step(now=at)
            idle = False
            if outcome is not None:
                at = after(at, outcome.duration)
            else:
                ready = model.next_ready(now=at)
                idle = ready is None or ready >= until
                at = at if idle or ready is None else ready
        if outcome is not None and (outcome.first or outcome.finished):
            milestones.append((at, outcome.first, outcome.finished))
        if idle:
            at = until
    final = (model.gauges(now=at), model.cache.eviction_order(), at)
    return milestones, final


@settings(max_examples=150, deadline=None)
@given(workload=workloads())
def test_fused_steps_equal_single_steps(
    workload: tuple[EngineConfig, list[tuple[int, Generation]]],
) -> None:
    chosen, arrivals = workload
    assert trace(chosen, arrivals, fused=True) == trace(chosen, arrivals, fused=False)


def test_equal_calls_give_equal_answers() -> None:
    def once() -> Any:
        rng = random.Random(7)
        arrivals = [
            (rng.randint(0, 10**8), generation(f"g{i}", (rng.randint(0, 2), 20), output=9))
            for i in range(20)
        ]
        return trace(config(), sorted(arrivals, key=lambda pair: pair[0]), fused=True)

    assert once() == once()
