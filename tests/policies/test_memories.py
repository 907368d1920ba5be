"""What policies remember of events: right by hand, forgotten in order, never more than so much."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shorthand import arrived as arrives
from shorthand import at, pin, prefetch, prefix, reported, tool_call, unpin
from shorthand import finished as finishes

from agentsched.model import (
    SECOND,
    ContinuedElsewhere,
    ConversationId,
    Dispatch,
    EngineId,
    EngineLost,
    HintAnswered,
    HintOutcome,
    PinId,
    ProgramClosed,
    ProgramId,
    Reject,
    RejectReason,
    StepArrived,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    TenantId,
    ToolName,
)
from agentsched_policies.bounded import Bounded
from agentsched_policies.gone import GoneEngines
from agentsched_policies.homes import Homes
from agentsched_policies.order.continuum import Continuum
from agentsched_policies.order.dlpm import Dlpm
from agentsched_policies.order.hexgen import Hexgen as OrderHexgen
from agentsched_policies.order.kvflow import Kvflow
from agentsched_policies.order.saga import Saga as OrderSaga
from agentsched_policies.pauses import MULTI_TOOL, USER_TURN, PauseWatch
from agentsched_policies.pin.continuum import Turns
from agentsched_policies.place.dlpm import Dlpm as PlaceDlpm
from agentsched_policies.place.hexgen import Hexgen as PlaceHexgen
from agentsched_policies.place.saga import Saga as PlaceSaga
from agentsched_policies.samples import Samples, SamplesByKey
from agentsched_policies.step_log import StepLog
from agentsched_policies.uncached import UncachedLog

E1, E2 = EngineId("e1"), EngineId("e2")


def arrived(step: str, program: str = "p", *, tokens: int = 1_000, head: int = 0) -> StepArrived:
    own = prefix(f"{program}/{tokens}", tokens)
    prefixes = (prefix("head", head), own) if head else (own,)
    tenant = f"tenant of {program}"
    return arrives(step, program, tenant=tenant, tokens=tokens, prefixes=prefixes)


def finished(
    step: str, *tools: str, prompt: int = 1_000, cached: int = 0, output: int = 10
) -> StepFinished:
    calls = (tool_call(tool, tool) for tool in tools)
    reason = "tool_calls" if tools else "stop"
    usage = {"prompt": prompt, "cached": cached, "output": output}
    return finishes(step, *calls, finish_reason=reason, **usage)


def failed(step: str, *, is_retryable: bool = False) -> StepFailed:
    return StepFailed(step=StepId(step), reason="x", is_retryable=is_retryable)


def cancelled(step: str) -> StepCancelled:
    return StepCancelled(step=StepId(step), reason="left")


def sent(step: str, engine: EngineId = E1) -> Dispatch:
    return Dispatch(step=StepId(step), engine=engine)


def turned_away(step: str) -> Reject:
    return Reject(step=StepId(step), reason=RejectReason.QUEUE_FULL)


class TestBounded:
    def test_what_was_set_longest_ago_goes_and_asking_keeps_nothing(self) -> None:
        kept: Bounded[str, int] = Bounded(size_max=2)
        kept.set("a", 1)
        kept.set("b", 2)
        kept.set("a", 3)
        assert kept.get("b") == 2
        kept.set("c", 4)
        assert list(kept.items()) == [("a", 3), ("c", 4)]
        assert "b" not in kept
        assert kept.pop("b") is None
        assert kept.pop("a") == 3
        assert list(kept) == ["c"]

    @given(st.lists(st.integers(0, 9)), st.integers(1, 5))
    def test_it_holds_the_latest_keys_whatever_comes(self, keys: list[int], most: int) -> None:
        kept: Bounded[int, int] = Bounded(size_max=most)
        for number, key in enumerate(keys):
            kept.set(key, number)
        latest = list(dict.fromkeys(reversed(keys)))[:most]
        assert list(kept) == latest[::-1]
        assert len(kept) <= most


class TestSamples:
    @given(st.lists(st.integers(0, 20).map(float), min_size=1), st.integers(1, 6))
    def test_a_window_is_the_latest_in_order(self, values: list[float], most: int) -> None:
        window = Samples(samples_max=most)
        for value in values:
            window.add(value)
        latest = sorted(values[-most:])
        assert list(window.in_order) == latest
        assert window.mean == pytest.approx(sum(latest) / len(latest))
        assert window.quantile(0.0) == latest[0]
        assert window.quantile(1.0) == latest[-1]

    def test_the_key_unused_for_longest_goes(self) -> None:
        windows = SamplesByKey(samples_max=3, keys_max=2)
        for key in ("a", "b", "a", "c"):
            windows.add(key, 1.0)
        assert windows.get("b") is None
        kept = windows.get("a")
        assert kept is not None
        assert len(kept) == 2

    def test_nothing_has_the_mean_nothing(self) -> None:
        assert Samples(samples_max=1).mean == 0.0


class TestStepLog:
    def test_a_step_from_its_arrival_to_its_end(self) -> None:
        log = StepLog()
        assert log.observe(arrived("s"), now=at(1)) is None
        step = log.get(StepId("s"))
        assert step is not None
        assert (step.took(now=at(9)), step.waited(now=at(3))) == (0, 2 * SECOND)
        log.decided([sent("s")], now=at(4))
        assert (step.took(now=at(9)), step.waited(now=at(9))) == (5 * SECOND, 3 * SECOND)
        assert log.observe(finished("s"), now=at(9)) is step
        assert log.get(StepId("s")) is None

    def test_one_that_may_be_sent_again_is_back_in_the_line(self) -> None:
        log = StepLog()
        log.observe(arrived("s"), now=at(1))
        log.decided([sent("s")], now=at(4))
        assert log.observe(failed("s", is_retryable=True), now=at(6)) is None
        step = log.get(StepId("s"))
        assert step is not None
        assert step.engine is None
        assert step.waited(now=at(8)) == 7 * SECOND

    @pytest.mark.parametrize("end", [failed("s"), cancelled("s"), finished("s")])
    def test_each_end_ends_it_once(self, end: Any) -> None:
        log = StepLog()
        log.observe(arrived("s"), now=at(1))
        assert log.observe(end, now=at(2)) is not None
        assert log.observe(end, now=at(3)) is None

    def test_a_failure_of_an_unknown_step_is_nothing(self) -> None:
        assert StepLog().observe(failed("s", is_retryable=True), now=at(1)) is None

    def test_what_is_turned_away_is_forgotten_and_what_is_unknown_ignored(self) -> None:
        log = StepLog()
        log.observe(arrived("s"), now=at(1))
        log.decided([turned_away("s"), sent("never seen")], now=at(1))
        assert log.get(StepId("s")) is None

    def test_what_is_no_word_about_a_step_changes_nothing(self) -> None:
        log = StepLog()
        log.observe(arrived("s"), now=at(0))
        log.decided([unpin()], now=at(1))
        step = log.get(StepId("s"))
        assert step is not None
        assert step.engine is None

    def test_an_arrival_that_is_told_twice_counts_once(self) -> None:
        log = StepLog()
        log.observe(arrived("s"), now=at(1))
        log.observe(arrived("s"), now=at(5))
        step = log.get(StepId("s"))
        assert step is not None
        assert step.arrived_at == at(1)


class TestUncachedLog:
    def test_a_guess_at_dispatch_is_corrected_at_the_end(self) -> None:
        log = UncachedLog(prompt_weight=1.0, output_weight=2.0)
        log.observe(arrived("s1", tokens=1_000), now=at(1))
        (charge,) = log.decided([sent("s1")], now=at(1))
        assert (charge.engine, charge.tokens) == (E1, 1_000)
        # 600 were cached after all: 400 + 2 x 50 is what it cost.
        settled = log.observe(finished("s1", "bash", cached=600, output=50), now=at(2))
        assert settled is not None
        assert settled.tokens == 500 - 1_000

    def test_where_no_engine_says_what_was_cached_the_guess_stands(self) -> None:
        log = UncachedLog(output_weight=2.0)
        for step, tokens, guess in (("s1", 1_000, 1_000), ("s2", 1_300, 250), ("s3", 1_350, 0)):
            log.observe(arrived(step, tokens=tokens), now=at(1))
            (charge,) = log.decided([sent(step)], now=at(1))
            assert charge.tokens == guess
            settled = log.observe(finishes(step, prompt=tokens, output=50), now=at(2))
            assert settled is not None
            assert settled.tokens == 2 * 50

    def test_its_context_counts_where_it_is_and_nowhere_else(self) -> None:
        log = UncachedLog()
        log.observe(arrived("s1"), now=at(1))
        log.decided([sent("s1")], now=at(1))
        log.observe(finished("s1", "bash", output=50), now=at(2))
        for step, engine, tokens in (("s2", E1, 1_300 - 1_050), ("s3", E2, 1_300)):
            log.observe(arrived(step, tokens=1_300), now=at(3))
            (charge,) = log.decided([sent(step, engine)], now=at(3))
            assert charge.tokens == tokens

    def test_what_was_under_way_is_not_given_back(self) -> None:
        log = UncachedLog()
        log.observe(arrived("s1"), now=at(1))
        log.decided([sent("s1")], now=at(1))
        assert log.observe(cancelled("s1"), now=at(2)) is None

    def test_other_commands_and_unknown_steps_cost_nothing(self) -> None:
        log = UncachedLog()
        log.observe(arrived("s1"), now=at(1))
        assert log.decided([turned_away("s1"), sent("never seen")], now=at(1)) == []
        assert log.observe(finished("never seen"), now=at(2)) is None

    def test_an_end_without_a_dispatch_is_all_there_is_to_charge(self) -> None:
        log = UncachedLog(output_weight=2.0)
        log.observe(arrived("s1"), now=at(1))
        settled = log.observe(finished("s1", "bash", output=50), now=at(2))
        assert settled is not None
        assert (settled.engine, settled.tokens) == (None, 1_100)


class TestHomes:
    def settle(self, homes: Homes, program: str, *, now: float, engine: EngineId = E1) -> None:
        homes.observe(arrived(f"s {program}", program, head=100), now=at(now))
        homes.decided([sent(f"s {program}", engine)], now=at(now))

    def test_a_conversation_counts_without_its_head(self) -> None:
        homes = Homes()
        self.settle(homes, "p", now=0)
        assert homes.tokens(E1) == 900
        homes.observe(finished("s p", "bash", prompt=1_000, output=50), now=at(1))
        assert homes.tokens(E1) == 950
        assert homes.output_tokens == pytest.approx(200 + 0.02 * (50 - 200))

    @pytest.mark.parametrize(
        "end",
        [
            ProgramClosed(program=ProgramId("p"), reason="done"),
            ContinuedElsewhere(program=ProgramId("p"), conversation=ConversationId("p")),
            EngineLost(engine=E1, reason="crash"),
            finished("s p"),
        ],
    )
    def test_it_leaves_with_its_end(self, end: Any) -> None:
        homes = Homes()
        self.settle(homes, "p", now=0)
        self.settle(homes, "q", now=0, engine=E2)
        homes.observe(end, now=at(1))
        assert homes.tokens(E1) == 0
        assert homes.tokens(E2) == 900

    def test_after_a_minute_of_silence_it_counts_no_more(self) -> None:
        homes = Homes()
        self.settle(homes, "p", now=0)
        self.settle(homes, "q", now=59)
        homes.observe(failed("other"), now=at(60))
        assert homes.tokens(E1) == 900

    def test_an_answer_that_took_longer_counts_where_it_was_computed(self) -> None:
        homes = Homes()
        for program in ("p", "q"):
            self.settle(homes, program, now=0, engine=E1 if program == "p" else E2)
        homes.observe(failed("other"), now=at(70))
        homes.observe(EngineLost(engine=E2, reason="crash"), now=at(80))
        for program in ("p", "q"):
            done = finished(f"s {program}", "bash", prompt=1_000, output=50)
            homes.observe(done, now=at(90))
        assert (homes.tokens(E1), homes.tokens(E2)) == (950, 0)

    def test_engines_that_nobody_lives_at_are_forgotten(self) -> None:
        homes = Homes()
        for program in ("p", "q"):
            homes.observe(arrived(f"s {program}", program, tokens=100, head=100), now=at(0))
            homes.decided([sent(f"s {program}")], now=at(0))
        homes.observe(EngineLost(engine=E1, reason="crash"), now=at(1))
        assert not homes._tokens

    def test_of_too_many_the_one_silent_for_longest_leaves(self) -> None:
        homes = Homes(conversations_max=2)
        for number, program in enumerate("abc"):
            self.settle(homes, program, now=number, engine=EngineId(f"e-{program}"))
        homes.observe(failed("other"), now=at(4))
        assert [homes.tokens(EngineId(f"e-{p}")) for p in "abc"] == [0, 900, 900]

    def test_a_conversation_that_moves_is_counted_once(self) -> None:
        homes = Homes()
        self.settle(homes, "p", now=0)
        self.settle(homes, "p", now=1, engine=E2)
        assert (homes.tokens(E1), homes.tokens(E2)) == (0, 900)

    def test_what_it_never_heard_of_counts_nothing(self) -> None:
        homes = Homes()
        homes.decided([sent("never"), turned_away("nor this")], now=at(0))
        homes.observe(finished("never", "bash"), now=at(1))
        homes.observe(arrived("waits"), now=at(1))
        homes.observe(finished("waits", "bash"), now=at(2))  # it was never sent
        assert homes.tokens(E1) == 0

    def test_a_program_may_live_in_several_conversations(self) -> None:
        homes = Homes()
        for name in ("main", "kid"):
            event = arrives(name, conversation=name, tokens=500, prefixes=(prefix(name, 500),))
            homes.observe(event, now=at(0))
            homes.decided([sent(name)], now=at(0))
        assert homes.tokens(E1) == 1_000
        gone = ContinuedElsewhere(program=ProgramId("p"), conversation=ConversationId("kid"))
        homes.observe(gone, now=at(1))
        assert homes.tokens(E1) == 500
        homes.observe(ProgramClosed(program=ProgramId("p"), reason="done"), now=at(2))
        assert homes.tokens(E1) == 0


class TestGoneEngines:
    def lost(self, gone: GoneEngines, names: str) -> list[str | None]:
        return [gone.observe(EngineLost(engine=EngineId(name), reason="x")) for name in names]

    def test_of_too_many_the_one_lost_longest_ago_is_forgotten(self) -> None:
        gone = GoneEngines(engines_max=2)
        assert self.lost(gone, "abcd") == [None, None, "a", "b"]

    def test_one_that_is_lost_twice_counts_once_and_one_that_is_back_not_at_all(self) -> None:
        gone = GoneEngines(engines_max=2)
        assert self.lost(gone, "aba") == [None, None, None]
        assert gone.observe(reported("b")) is None
        assert gone.observe(failed("other")) is None
        assert self.lost(gone, "cd") == [None, "a"]


class TestPauseWatch:
    @pytest.mark.parametrize(
        ("tools", "counted"),
        [((), USER_TURN), (("bash",), ToolName("bash")), (("bash", "read"), MULTI_TOOL)],
    )
    def test_a_gap_is_from_an_answer_to_the_next_request(
        self, tools: tuple[str, ...], counted: ToolName
    ) -> None:
        watch = PauseWatch()
        assert watch.observe(arrived("s1"), now=at(1)) is None
        assert watch.observe(finished("s1", *tools, output=50), now=at(3)) is None
        gap = watch.observe(arrived("s2", tokens=1_200), now=at(8))
        assert gap is not None
        assert (gap.tool, gap.since, gap.span) == (counted, at(3), 5 * SECOND)
        assert (gap.grown_tokens, gap.context_tokens) == (150, 1_050)
        assert watch.observe(arrived("s3"), now=at(9)) is None

    @pytest.mark.parametrize("end", [failed("s1"), cancelled("s1")])
    def test_a_step_without_an_answer_begins_no_pause(self, end: Any) -> None:
        watch = PauseWatch()
        watch.observe(arrived("s1"), now=at(1))
        watch.observe(end, now=at(2))
        watch.observe(finished("s1", "bash"), now=at(3))
        assert watch.observe(arrived("s2"), now=at(8)) is None

    def test_of_too_many_the_oldest_are_forgotten(self) -> None:
        watch = PauseWatch(watched_max=2)
        for program in "abc":
            watch.observe(arrived(f"s {program}", program), now=at(1))
            watch.observe(finished(f"s {program}", "bash"), now=at(2))
        gaps = [watch.observe(arrived(f"t {p}", p), now=at(3)) for p in "abc"]
        assert [gap is not None for gap in gaps] == [False, True, True]

    def test_nor_are_more_live_steps_remembered(self) -> None:
        watch = PauseWatch(watched_max=1)
        watch.observe(arrived("s a", "a"), now=at(1))
        watch.observe(arrived("s b", "b"), now=at(1))
        watch.observe(finished("s a", "bash"), now=at(2))
        assert watch.observe(arrived("t a", "a"), now=at(3)) is None


class World:
    """Programs by their ordinals, and nothing else."""

    def __init__(self, *programs: str) -> None:
        self.programs = {p: Ordinal(number) for number, p in enumerate(programs)}


class Ordinal:
    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal


class Asked:
    """A step as orders see it."""

    def __init__(self, program: str) -> None:
        self.program, self.conversation, self.arrived_at = program, program, at(0)


class TestOrders:
    def rank(self, order: Any, program: str, *, now: float) -> Any:
        return order.rank(Asked(program), World("a", "b"), now=at(now))

    def test_continuum_puts_what_is_pinned_first_while_it_is(self) -> None:
        order = Continuum()
        order.decided([pin("1", "b", until=at(10))], now=at(0))
        assert self.rank(order, "b", now=10) < self.rank(order, "a", now=10)
        assert self.rank(order, "b", now=10.1) > self.rank(order, "a", now=10.1)
        order.decided([unpin("1")], now=at(1))
        assert self.rank(order, "b", now=2) > self.rank(order, "a", now=2)

    def test_the_end_of_an_older_pin_does_not_end_the_one_that_replaced_it(self) -> None:
        order = Continuum()
        order.decided([pin("1", "b", until=at(10)), pin("2", "b", until=at(20))], now=at(0))
        order.decided([unpin("1"), unpin("never seen"), sent("s")], now=at(1))
        assert self.rank(order, "b", now=15) < self.rank(order, "a", now=15)

    def test_kvflow_holds_back_what_is_being_loaded_until_it_is_or_seems_lost(self) -> None:
        order = Kvflow(loading_s_max=5)
        order.decided([sent("s"), prefetch("w", "a")], now=at(0))
        assert self.rank(order, "a", now=4.9) > self.rank(order, "b", now=4.9)
        assert self.rank(order, "a", now=5) == self.rank(order, "b", now=5)
        order.observe(HintAnswered(pin=PinId("other"), outcome=HintOutcome.ACCEPTED), now=at(1))
        order.observe(failed("s"), now=at(1))
        assert self.rank(order, "a", now=1) > self.rank(order, "b", now=1)
        order.observe(HintAnswered(pin=PinId("w"), outcome=HintOutcome.ACCEPTED), now=at(2))
        assert self.rank(order, "a", now=2) == self.rank(order, "b", now=2)

    def test_a_refill_gives_each_only_what_it_lacks(self) -> None:
        order = Dlpm(quantum=1_000, output_weight=0.0)
        log: list[tuple[str, int]] = [("a", 2_500), ("b", 1_500), ("a", 10)]
        for number, (program, tokens) in enumerate(log):
            order.observe(arrived(f"s{number}", program, tokens=tokens), now=at(number))
            order.decided([sent(f"s{number}")], now=at(number))
        # a: 1,000 - 2,500, two rounds, - 10; b: 1,000 - 1,500, the one of those that it lacks.
        assert order._deficit(TenantId("tenant of a")) == 490
        assert order._deficit(TenantId("tenant of b")) == 500

    def test_a_correction_is_no_credit_beyond_a_quantum(self) -> None:
        order = Dlpm(quantum=1_000, output_weight=0.0)
        order.observe(arrived("s", "a", tokens=500), now=at(0))
        order.decided([sent("s")], now=at(0))
        order.observe(finished("s", "bash", prompt=500, cached=500), now=at(1))
        assert order._deficit(TenantId("tenant of a")) == 1_000

    def test_whoever_needs_no_round_is_given_none(self) -> None:
        policy = Dlpm(quantum=1_000)
        policy._deficits.set(TenantId("rich"), 300.0)
        policy._deficits.set(TenantId("poor"), -1_500.0)
        policy._refill(2)
        assert policy._deficits.get(TenantId("rich")) == 300.0
        assert policy._deficits.get(TenantId("poor")) == 500.0


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (OrderHexgen, lambda agent: agent),
        (OrderSaga, lambda agent: agent),
        (PlaceHexgen, lambda agent: (E1, agent)),
    ],
)
def test_times_are_kept_of_so_many_agents(make: Any, key: Any) -> None:
    """The first 256 that ended a step; those are followed further, further ones are not known."""
    policy = make()

    def run(agent: str, took: float) -> None:
        policy.observe(replace(arrived(f"of {agent}"), agent=agent), now=at(0))
        policy.decided([sent(f"of {agent}")], now=at(0))
        policy.observe(finished(f"of {agent}", "bash"), now=at(took))

    for number in range(257):
        run(f"agent {number}", 2.0)
    run("agent 0", 12.0)
    times = policy._times
    assert len(times) == 256
    assert key("agent 256") not in times
    assert times[key("agent 0")] == pytest.approx(3.0 * SECOND)  # 2 s and a tenth of the way to 12


@pytest.mark.parametrize(
    ("make", "known"),
    [
        (PlaceHexgen, lambda policy: policy._times),
        (PlaceDlpm, lambda policy: policy._used.get(TenantId("tenant of p"))),
        (PlaceSaga, lambda policy: policy._busy | policy._idle_since),
    ],
)
def test_what_was_learnt_of_engines_that_went_is_forgotten(make: Any, known: Any) -> None:
    """Each engine has a name of its own; the last 256 may come back."""
    policy = make()
    for number in range(300):
        engine, step = EngineId(f"e{number}"), f"s{number}"
        policy.observe(reported(engine), now=at(number))
        policy.observe(arrived(step), now=at(number))
        policy.decided([sent(step, engine)], now=at(number))
        policy.observe(finished(step, "bash"), now=at(number + 0.5))
        policy.observe(EngineLost(engine=engine, reason="scaled in"), now=at(number + 0.6))
    assert len(known(policy)) == 256


def test_memoryfulness_is_one_for_programs_of_one_length_and_none_for_geometric_ones() -> None:
    fixed, geometric = Turns(), Turns()
    assert fixed.memoryfulness == 1.0
    for _ in range(5):
        fixed.ended(10)
    for turns in range(1, 40):
        for _ in range(round(10_000 * 0.8**turns)):
            geometric.ended(turns)
    assert fixed.memoryfulness == pytest.approx(1.0)
    assert abs(geometric.memoryfulness) < 0.02


def test_programs_of_one_turn_say_nothing_about_the_next() -> None:
    turns = Turns()
    for _ in range(5):
        turns.ended(1)  # turns done and turns to come never vary: there is nothing to correlate
    assert turns.memoryfulness == 1.0


def test_samples_keep_the_latest() -> None:
    samples = Samples(samples_max=3)
    for sample in (5.0, 1.0, 3.0, 3.0, 2.0):
        samples.add(sample)
    assert list(samples.in_order) == [2.0, 3.0, 3.0]
    assert samples.mean == pytest.approx(8.0 / 3.0)
    assert (samples.quantile(0.01), samples.quantile(0.5), samples.quantile(1.0)) == (2.0, 3.0, 3.0)
