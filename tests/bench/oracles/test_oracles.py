"""Oracles and bounds: nothing beats a bound, and knowing more does not hurt where it must help."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.compose import SchedulerConfig, build_graphs, build_policies, build_scheduler
from agentsched.kernel import JournalEntry, Scheduler
from agentsched.model import (
    ConfigError,
    ConversationId,
    Instant,
    Limits,
    ProgramId,
    StepArrived,
    StepFinished,
    in_seconds,
)
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.oracles.belady import BeladyCache
from agentsched_bench.oracles.bound import _work_s, bound_of, call_s
from agentsched_bench.oracles.knowledge import TrueGraphs
from agentsched_bench.sim.arms import Knows, Scenario, alone, parse_arm, run_arm, starts_of
from agentsched_bench.sim.clients import Start
from agentsched_bench.sim.engines import EngineTraits
from agentsched_bench.sim.host import SimHost
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.shape import (
    Piece,
    PlannedCall,
    PlannedConversation,
    PlannedProgram,
    ShapeOptions,
    SharedPrompts,
    plan_programs,
)
from agentsched_bench.workload.shared import limit_shared
from agentsched_bench.workload.trace import group_programs
from tests.helpers.shorthand import arrived, at, reported


def scenario(*, blocks: int = 190, programs: int = 10) -> Scenario:
    rows = list(generate(programs=programs, seed=3, interarrival_s=1.0, steps_max=6))
    shape = ShapeOptions(scale_tokens=4, steps_max=6, context_tokens_max=6_000)
    plans = plan_programs(group_programs(rows), shape, shared=SharedPrompts.learn(rows))
    config = EngineConfig.from_preset(preset("cpu-2core"))
    config = replace(config, blocks=blocks, max_model_len=(blocks - 1) * config.block_size)
    return Scenario(plans=plans, engines=[config], arrivals=parse_arrivals("burst:2/s"))


@pytest.mark.parametrize(
    "arm", ["direct", "unlimited", "agentsched", "agentsched+srpt+belady", "direct+belady"]
)
def test_nothing_beats_the_bound(arm: str) -> None:
    outcome = run_arm(parse_arm(arm), scenario(), seed=1)
    bound = outcome.bound
    for run in outcome.runs:
        assert run.ended_at is not None
        took_s = (run.ended_at - run.started_at) / 1e9
        assert took_s >= bound.programs_s[run.plan.program]
    assert in_seconds(outcome.makespan_ns) >= bound.makespan_s
    size = outcome.tally.prompt_tokens - outcome.tally.cached_tokens
    assert size >= bound.computed_tokens


@pytest.mark.parametrize("shared", [0, 40])
def test_what_programs_do_not_share_is_counted_once_and_only_if_it_is_there(shared: int) -> None:
    """Limited sharing cuts streams in the middle: what lies before the cut is in no prompt."""
    made = scenario()
    made = replace(made, plans=[limit_shared(plan, tokens=shared) for plan in made.plans])

    outcome = run_arm(parse_arm("unlimited"), made, seed=1)

    pieces = {
        (piece.stream, piece.start, piece.tokens)
        for plan in made.plans
        for talk in plan.conversations
        for call in talk.calls
        for piece in call.pieces
    }
    assert outcome.bound.computed_tokens <= sum(tokens for _, _, tokens in pieces)
    computed = outcome.tally.prompt_tokens - outcome.tally.cached_tokens
    assert computed >= outcome.bound.computed_tokens


def hashed(name: str) -> PlannedProgram:
    """A program whose prompt is known by its blocks, most of which others have as well."""
    pieces = [Piece(stream=f"hash/t/{number}", tokens=64) for number in range(60)]
    pieces.append(Piece(stream=f"own/{name}/0", tokens=32))
    call = PlannedCall(
        base=None, keep_tokens=0, echo_tokens=0, pieces=tuple(pieces), prompt_tokens=3_872,
        output_tokens=4, pause_s=1.0,
    )  # fmt: skip
    # The second prompt was rewritten, from blocks of the first.
    again = replace(call, pieces=(*pieces[30:60], *pieces[:30], pieces[60]))
    return PlannedProgram(
        program=name, main=PlannedConversation(conversation=name, calls=(call, again))
    )


@pytest.mark.parametrize("arrivals", ["burst:0.01/s", "burst:100/s"])
def test_nothing_beats_the_bound_where_blocks_are_known_by_their_hashes(arrivals: str) -> None:
    made = replace(scenario(), plans=[hashed(f"p{n}") for n in range(4)])
    made = replace(made, arrivals=parse_arrivals(arrivals))

    outcome = run_arm(parse_arm("unlimited"), made, seed=1)

    for run in outcome.runs:
        assert run.ended_at is not None
        took_s = (run.ended_at - run.started_at) / 1e9
        assert took_s >= outcome.bound.programs_s[run.plan.program]
    assert in_seconds(outcome.makespan_ns) >= outcome.bound.makespan_s


def test_the_bound_is_near_what_a_program_takes_alone() -> None:
    made = scenario()
    quiet = alone(made)
    bound = run_arm(parse_arm("unlimited"), made, seed=1).bound
    for program, least_s in bound.programs_s.items():
        assert 0.3 * quiet[program] < least_s <= quiet[program]


def test_engines_of_one_kind_are_counted_as_often_as_they_are_there() -> None:
    """The least time for all is that of the sum of the engines' speeds."""
    made = scenario()
    programs = [(plan, "") for plan in made.plans]
    quick = made.engines[0]
    slow = replace(quick, cost=quick.cost.slower(3.0), max_num_seqs=2)
    work = {kind: _work_s(programs, kind.cost, kind.max_num_seqs) for kind in (quick, slow)}
    fleet = [quick, slow, quick]
    bound = bound_of(programs, fleet)
    together = 1 / sum(1 / work[kind] for kind in fleet)
    assert together < 0.6 * work[quick]
    assert bound.makespan_s == max(together, *bound.programs_s.values())
    assert bound.programs_s == bound_of(programs, [quick]).programs_s
    # Copies are work again, but the same paths.
    twice = bound_of([*programs, *((plan, "1") for plan in made.plans)], fleet)
    assert twice.programs_s == bound.programs_s
    assert twice.makespan_s == pytest.approx(max(2 * together, *bound.programs_s.values()))


def test_a_cache_that_knows_the_returns_computes_less_again() -> None:
    made = scenario(blocks=360, programs=14)
    again = {
        arm: sum(run_arm(parse_arm(arm), made, seed=seed).tally.again_tokens for seed in (1, 2, 3))
        for arm in ("direct", "direct+belady")
    }
    assert again["direct+belady"] < 0.8 * again["direct"]


@pytest.mark.slow
@pytest.mark.parametrize("engines", [1, 2, 4])
def test_what_goes_on_elsewhere_or_is_over_keeps_no_block_of_a_knowing_cache(engines: int) -> None:
    """What its claims kept was needed soonest of all, and for ever: worse than knowing nothing."""
    made = scenario(blocks=360, programs=20)
    made = replace(made, engines=list(made.engines) * engines)
    again = {False: 0, True: 0}
    for knows, seed in itertools.product(again, (1, 2, 3)):
        host = SimHost(
            build_scheduler(SchedulerConfig(profile="passthrough")),
            engines=made.engines,
            traits=[EngineTraits(is_clairvoyant=knows)] * engines,
        )
        host.run(starts_of(made, seed=seed))
        again[knows] += host.tally.again_tokens
        caches = [engine.model.cache for engine in host.engines.values()]
        assert not any(cache._claims for cache in caches if isinstance(cache, BeladyCache))

    assert again[True] < again[False]


def test_the_work_left_is_that_of_the_calls_without_an_answer() -> None:
    """Also of a program that waits for a sub-agent, and of one whose sub-agent is over."""
    made = scenario()
    main, other = made.plans[:2]
    helper = replace(
        other.main, parent=main.main.conversation, parent_call=1, joins=True, start_delay_s=0.5
    )
    plan = replace(main, children=(helper,))
    cost = made.engines[0].cost
    answered: dict[str, int] = {}
    seen: list[tuple[float, float]] = []

    def look(entry: JournalEntry) -> None:
        match entry.event:
            case StepArrived():
                talks[entry.event.step] = entry.event.conversation
            case StepFinished():
                key = talks[entry.event.step]
                answered[key] = answered.get(key, 0) + 1
            case _:
                pass
        if not host.clients.runs:
            return  # it is told of its engines first
        truth = sum(
            call_s(call, cost)
            for index, talk in enumerate(plan.conversations)
            for call in talk.calls[answered.get(f"p0/{index}", 0) :]
        )
        told = host.clients.work_left_s(ProgramId("p0"))
        assert told is not None
        seen.append((told, truth))

    talks: dict[str, str] = {}
    host = SimHost(
        build_scheduler(SchedulerConfig(profile="passthrough")), engines=made.engines, on_turn=look
    )
    host.run([Start(plan=plan, at=Instant(0))])

    assert len(seen) > 2 * plan.calls
    assert [told for told, _ in seen] == pytest.approx([truth for _, truth in seen])


@pytest.mark.parametrize("arm", ["agentsched+srpt", "agentsched+steps+returns", "kvflow+returns"])
def test_oracles_serve_everyone(arm: str) -> None:
    made = scenario()
    outcome = run_arm(parse_arm(arm), made, seed=2)
    assert all(run.ended_at is not None and not run.is_failed for run in outcome.runs)


class _Nobody:
    """Knows nothing of what comes."""

    def steps_left(self, program: ProgramId) -> int | None:
        return None

    def work_left_s(self, program: ProgramId) -> float | None:
        return None

    def returns_at(self, conversation: ConversationId) -> Instant | None:
        return None


def test_an_oracle_that_knows_nothing_is_its_profile() -> None:
    """Its graphs were not told what is decided: where a step goes, who is turned away."""
    limits = Limits(ready_steps_max=1, running_steps_per_engine_max=1)
    config = SchedulerConfig(profile="agentsched", limits=limits)
    graphs, plain = build_graphs(config), build_graphs(config)
    seen = TrueGraphs(graphs, _Nobody(), steps=False, returns=False)
    policies = build_policies(config)
    oracle = Scheduler(policies=policies, limits=limits, graph=seen)
    profile = build_scheduler(config, graph=plain)
    for event in (reported(), *(arrived(name, name) for name in ("goes", "waits", "no room"))):
        assert oracle.handle(event, now=at(1)) == profile.handle(event, now=at(1))

    for program in map(ProgramId, ("goes", "waits", "no room")):
        ours, theirs = graphs.graph(program), plain.graph(program)
        assert ours is not None
        assert theirs is not None
        assert ours.steps == theirs.steps
    sent = graphs.graph(ProgramId("goes"))
    assert sent is not None
    assert [node.engine for node in sent.steps.values()] == ["e"]
    for each in (seen, plain):
        each.set_limits(replace(limits, programs_max=1))
        each.observe(arrived("late", "late"), now=at(2))
    assert list(graphs.programs) == list(plain.programs)
    assert len(graphs.programs) == 3


def test_what_an_arm_knows_is_written_after_a_plus() -> None:
    arm = parse_arm("agentsched+srpt+belady,admit.patience=3")
    assert arm.knows == {Knows.SRPT, Knows.BELADY}
    assert arm.choices["admit"].params == {"patience": 3}
    with pytest.raises(ConfigError, match="belady"):
        parse_arm("agentsched+tarot")


def test_what_is_needed_last_goes_first() -> None:
    cache = BeladyCache(blocks=6, block_size=1)
    for name, needed_at in (("soon", 10), ("late", 90), ("middle", 50)):
        blocks = cache.take(2)
        hashes = [hash((name, index)) for index in range(2)]
        cache.register_all(blocks, hashes)
        cache.release(blocks)
        cache.claim(name, hashes, needed_at=Instant(needed_at))
    cache.take(3)
    left = [name for name in ("soon", "late", "middle") if cache.resident(hash((name, 0)))]
    assert left == ["soon", "middle"]
    assert cache.resident(hash(("soon", 1)))
    assert not cache.resident(hash(("middle", 1)))
    cache.check()


@settings(max_examples=100, deadline=None)
@given(turns=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5), st.booleans()), max_size=40))
def test_a_knowing_cache_keeps_its_books(turns: list[tuple[int, int, bool]]) -> None:
    cache = BeladyCache(blocks=12, block_size=1)
    for number, (who, length, claims) in enumerate(turns):
        key, hashes = str(who), [hash((who, index)) for index in range(length)]
        cache.unclaim(key, is_back=number % 2 == 0)
        hit = cache.lookup(hashes, limit=length)
        cache.touch(hit.blocks)
        fresh = cache.take(length - len(hit.blocks))
        cache.register_all(fresh, hashes[len(hit.blocks) :])
        cache.check()
        cache.release([*hit.blocks, *fresh])
        if claims:
            cache.claim(key, hashes, needed_at=Instant(number))
        cache.check()
    assert cache.used == 0
    # Every block can still be had.
    assert len(set(cache.take(12))) == 12
