"""Admission by memory and the order by remaining work, through a scheduler of the profile."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
from desk import HEAD, Desk, sent
from hypothesis import given, settings
from hypothesis import strategies as st
from shorthand import answered, arrived, at, finished, prefix, reported

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.model import (
    SECOND,
    Capabilities,
    ConversationId,
    EngineId,
    EngineLost,
    Instant,
    Nanos,
    PolicyError,
    ProgramId,
    Reject,
    RejectReason,
    StepId,
    TimerFired,
    seconds,
)
from agentsched.policy import Held
from agentsched_policies.admit.working_set import WorkingSet
from agentsched_policies.live_programs import LivePrograms


def test_nobody_is_held_while_things_fit() -> None:
    desk = Desk()
    for number, name in enumerate("abcd"):
        assert desk.ask(name, 3_000, at=number / 10) == [f"{name}0"]


def test_shared_tokens_are_counted_once() -> None:
    desk = Desk()
    # Eight programs of 2,000 tokens would be 16,000; they share 1,000 each: 9,000.
    for name in "abcdefgh":
        assert desk.ask(name, 2_000, at=0.1) == [f"{name}0"]
    assert desk.ask("i", 2_000, at=0.2) == []


def test_a_resident_conversation_goes_on_though_the_house_is_full() -> None:
    desk = Desk()
    desk.turn("a", 4_000, at=0)
    assert desk.ask("b", 6_000, at=1) == ["b0"]
    assert desk.ask("c", 5_000, at=1.1) == []
    assert desk.ask("a", 4_100, at=1.2) == ["a1"]


def test_a_pause_is_kept_for_twice_its_reload_and_no_longer() -> None:
    desk = Desk(ageing=1.0, patience=2.0, reserve_steps=0.0)
    desk.turn("a", 6_000, at=0)  # taught: 50 ms for 6,000 tokens, and then a pause from 0.1 on
    assert desk.ask("b", 4_000, at=0.1) == ["b0"]
    assert desk.ask("c", 4_000, at=0.11) == []
    assert desk.scheduler.next_deadline() is not None
    deadline = desk.scheduler.next_deadline()
    assert deadline is not None
    # 5,010 tokens of its own at 8.4 us each are 42 ms: twice that after the pause began.
    assert deadline / SECOND == pytest.approx(0.1 + 2 * 5_010 * 0.05 / 6_000, abs=0.01)
    assert desk.tick(at=deadline / SECOND) == ["c0"]


def test_on_an_idle_engine_whoever_pauses_gives_way_however_short_its_pause() -> None:
    desk = Desk()
    desk.turn("a", 6_000, at=0)
    assert desk.ask("b", 8_000, at=0.12) == ["b0"]
    resident = [c.conversation for c in desk.scheduler.world.resident(EngineId("e"))]
    assert resident == ["b"]


def test_who_said_the_last_word_is_let_go_at_once() -> None:
    desk = Desk(patience=1_000.0)
    desk.ask("a", 6_000, at=0)
    desk.answer("a", 6_000, at=0.1, is_last=True)
    assert desk.ask("b", 4_000, at=0.2) == ["b0"]
    assert desk.ask("c", 4_000, at=0.3) == ["c0"]


def test_what_has_outgrown_the_cache_is_gone() -> None:
    desk = Desk()
    desk.turn("a", 4_000, at=0)
    desk.ask("b", 4_000, at=1)
    desk.answer("b", 8_500, at=1.1)  # 7,500 of its own: with a's 3,000 more than there is
    assert (
        not desk.scheduler.programs[ProgramId("a")].conversations[ConversationId("a")].is_resident
    )
    assert desk.ask("b", 8_600, at=1.2) == ["b1"]
    assert desk.ask("a", 4_100, at=1.3) == []


def test_an_oversize_program_runs_alone() -> None:
    desk = Desk()
    desk.turn("a", 2_000, at=0)
    assert desk.ask("b", 12_000, at=1) == ["b0"]


def test_one_cold_start_at_a_time() -> None:
    desk = Desk(cold_tokens=2_000)
    assert desk.ask("a", 7_000, at=0) == ["a0"]
    assert desk.ask("b", 2_500, at=0.1) == []
    assert desk.start("a", at=0.2) == ["b0"]


def test_without_a_first_token_to_see_a_cold_start_ends_by_the_clock() -> None:
    desk = Desk(cold_tokens=2_000)
    assert desk.ask("a", 7_000, at=0) == ["a0"]
    assert desk.ask("b", 2_500, at=0.1) == []
    deadline = desk.scheduler.next_deadline()
    assert deadline is not None
    # Nothing is known yet: twice 7,000 tokens at the first guess of 100 us.
    assert deadline / SECOND == pytest.approx(1.4)
    assert desk.tick(at=deadline / SECOND) == ["b0"]


def test_who_waits_for_long_gets_the_memory_of_whoever_pauses() -> None:
    desk = Desk(wait_s=10, patience=1_000.0)
    desk.turn("a", 6_000, at=0)
    assert desk.ask("b", 4_000, at=0.2) == ["b0"]
    assert desk.ask("c", 4_000, at=0.3) == []
    assert desk.tick(at=5.0) == []
    assert desk.tick(at=9.4) == ["c0"]


def test_a_step_goes_at_its_bound_whatever_fits() -> None:
    desk = Desk(wait_s=10)
    desk.turn("a", 4_000, at=0)
    desk.ask("b", 9_900, at=1)
    assert desk.ask("a", 4_100, at=1.1) == []
    assert desk.tick(at=11.1) == ["a1"]


def test_a_new_program_is_turned_away_where_the_bound_cannot_be_kept() -> None:
    desk = Desk(wait_s=0.5, swap_share=0.0001)
    for number, name in enumerate("abc"):
        desk.turn(name, 3_500, at=number)
    assert desk.ask("a", 9_000, at=3) == ["a1"]
    assert desk.ask("z", 3_500, at=3.1) == []
    commands = desk.feed(TimerFired(), 3.6)
    assert [type(command) for command in commands] == [Reject]
    assert isinstance(commands[0], Reject)
    assert commands[0].reason is RejectReason.WAIT_BOUND
    assert commands[0].retry_after is not None


def test_a_program_that_was_served_before_is_never_turned_away() -> None:
    desk = Desk(wait_s=0.5, swap_share=0.0001)
    for number, name in enumerate("abc"):
        desk.turn(name, 3_500, at=number)
    assert desk.ask("a", 9_900, at=3) == ["a1"]
    assert desk.ask("b", 9_000, at=3.1) == []
    assert desk.tick(at=3.6) == ["b1"]


def test_a_child_of_a_program_that_was_served_is_never_turned_away() -> None:
    desk = Desk(wait_s=0.5, swap_share=0.0001)
    for number, name in enumerate("abc"):
        desk.turn(name, 3_500, at=number)
    assert desk.ask("a", 9_000, at=3) == ["a1"]
    desk.feed(arrived("new", "new", tokens=3_500), 3.1)
    desk.feed(arrived("kid", "kid", tokens=3_500, parent=ProgramId("a")), 3.1)
    held = {step.step: step.held_for for step in desk.scheduler.steps.values()}
    assert held == {"a1": "", "new": "programs", "kid": "memory"}
    assert desk.tick(at=3.6) == ["kid"]


def test_an_engine_of_unknown_size_is_left_alone() -> None:
    scheduler = build_scheduler(SchedulerConfig(profile="agentsched"))
    scheduler.handle(reported(), now=Instant(0))
    for number in range(50):
        event = arrived(f"s{number}", f"p{number}", tokens=100_000)
        assert sent(scheduler.handle(event, now=Instant(number))) == [f"s{number}"]


def test_least_remaining_work_goes_first() -> None:
    desk = Desk()
    desk.ask("a", 9_000, at=0)
    assert desk.ask("b", 6_000, at=0.1) == []
    assert desk.ask("c", 3_000, at=0.2) == []
    desk.answer("a", 9_010, at=0.3, is_last=True)
    assert desk.steps == {"a": 0, "b": 0, "c": 0}
    waiting = {s.step for s in desk.scheduler.steps.values() if s.engine is None}
    running = set(desk.scheduler.steps) - waiting
    assert "c0" in running


@pytest.mark.parametrize(
    "params",
    [
        {"cheap_reload": -1},
        {"engine_queue": -1},
        {"patience": -1},
        {"fill": 0},
        {"fill": 1.1},
        {"cold_tokens": -1},
        {"ageing": 0},
    ],
)
def test_parameters_that_make_no_sense(params: dict[str, object]) -> None:
    with pytest.raises(PolicyError):
        Desk(**params)


def test_steps_that_were_turned_away_are_not_under_way() -> None:
    live = LivePrograms()
    first = arrived_at(live, "s1")
    live.observe(finished(first, prompt=1_000, output=10), now=Instant(2))
    refused = arrived_at(live, "s2")
    live.decided([Reject(step=refused, reason=RejectReason.WAIT_BOUND)], now=Instant(3))
    later = Instant(3 + seconds(61))
    assert live.peak_tokens(now=later) == 0  # silent, and nothing of it runs
    assert not live._steps


def arrived_at(live: LivePrograms, step: str) -> StepId:
    event = arrived(step, tokens=1_000)
    live.observe(event, now=Instant(1))
    return event.step


def over_a_tier(**params: object) -> Desk:
    """An engine that has shown that what comes back costs it a fraction of computing."""
    desk = Desk(**params)  # type: ignore[arg-type]
    cost = desk.scheduler.engines[EngineId("e")].cost
    cost.has_tier = True
    for number in range(60):
        new = 500 + 250 * (number % 8)
        cost.learn(
            uncached_tokens=new,
            prompt_tokens=new,
            output_tokens=1,
            to_first_token=Nanos(new * 60_000),
            to_last_token=Nanos(0),
        )
    for _ in range(20):
        cost.learn(
            uncached_tokens=100,
            given_up_tokens=2_000,
            fresh_tokens=100,
            prompt_tokens=2_100,
            output_tokens=1,
            to_first_token=Nanos(100 * 60_000 + 2_000 * 6_000),
            to_last_token=Nanos(0),
        )
    return desk


def test_over_a_tier_nobody_waits_for_memory() -> None:
    desk = over_a_tier()
    for name in "abcdef":
        assert desk.ask(name, 6_000, at=1) == [f"{name}0"]


def test_without_one_they_do() -> None:
    desk = Desk()
    assert desk.ask("a", 6_000, at=1) == ["a0"]
    assert desk.ask("b", 6_000, at=1) == []


def test_over_a_tier_the_queue_in_the_engine_is_bounded() -> None:
    desk = over_a_tier(engine_queue=2.0)
    sent_at_once = [name for name in "abcdef" if desk.ask(name, 6_000, at=1)]
    assert sent_at_once == ["a", "b", "c"]
    # Whose prefill is over makes room in that queue; the one that waits goes then.
    assert desk.start("a", at=2) == ["d0"]


def test_cheap_reloads_can_be_left_out_of_account() -> None:
    desk = over_a_tier(cheap_reload=0)
    assert desk.ask("a", 6_000, at=1) == ["a0"]
    assert desk.ask("b", 6_000, at=1) == []


def test_a_cold_start_that_fits_waits_only_where_others_would_suffer() -> None:
    """Half of the pool is the mark: below it the engine's own queue does as well."""
    for running, starts in ((3_000, ["b0"]), (6_000, [])):
        desk = Desk(cold_tokens=2_000)
        desk.ask("a", running, at=0)
        assert desk.ask("b", 2_500, at=0.1) == starts
    # Nor does it where it would not fit either: the cold start is what it hears of first.
    desk = Desk(cold_tokens=2_000)
    desk.ask("a", 6_000, at=0)
    assert desk.ask("b", 6_000, at=0.1) == []
    engine, admit = desk.scheduler.engines[EngineId("e")], desk.scheduler.policies.admit
    answer = admit.admit(
        desk.scheduler.steps[StepId("b0")], engine, desk.scheduler._books, now=Instant(10**8)
    )
    assert answer == Held(reason="cold start", until=engine.cold_until(now=Instant(10**8)))


def test_a_program_that_outgrew_the_house_needs_what_its_own_growth_says() -> None:
    desk = Desk(reserve_steps=1.0)
    for number in range(3):
        desk.turn("a", 2_000 + 1_000 * number, at=number)
    desk.ask("b", 8_000, at=4)
    desk.answer("b", 9_990, at=4.1)  # a's tokens are gone
    talk = desk.scheduler.programs[ProgramId("a")].conversations[ConversationId("a")]
    assert not talk.is_resident
    assert talk.steps_done == 3
    # From 2,010 to 4,010 in two steps: a thousand tokens for the next one.
    admit = desk.scheduler.policies.admit
    assert admit._reserve(talk) == pytest.approx(1_000)
    young = replace(talk, steps_done=1)
    assert admit._reserve(young) == pytest.approx(0.04 * talk.context_tokens)


class Waiting:
    """The outlook of a program that waits for its sub-agents, or does not."""

    def __init__(self, *, waits: bool, lasts: dict[str, float]) -> None:
        self.waits = waits
        self.lasts = lasts

    def is_waiting_for_children(self) -> bool:
        return self.waits

    def last_pause_chance(self, conversation: str) -> float:
        return self.lasts.get(conversation, 0.0)


class Village:
    """A world of one program with a parent and its sub-agent, each paused for a second."""

    def __init__(self, *, waits: bool) -> None:
        self.waits = waits
        self.lasts: dict[str, float] = {}
        self.talks = {
            "main": self._talk("main", None),
            "kid": self._talk("kid", "main"),
            "other": self._talk("other", "main"),
        }
        self.programs = {"p": SimpleNamespace(conversations=self.talks)}

    def _talk(self, name: str, parent: str | None) -> Any:
        return SimpleNamespace(
            conversation=name,
            program="p",
            parent=parent,
            paused_at=Instant(0),
            is_over=False,
            active_steps=0,
        )

    def graph(self, program: str) -> Waiting:
        return Waiting(waits=self.waits, lasts=self.lasts)

    def own_tokens(self, conversation: str) -> int:
        return 1_000

    def resident(self, engine: str) -> list[Any]:
        return list(self.talks.values())


def test_whoever_waits_for_its_sub_agents_makes_room_first() -> None:
    """1,000 tokens at 1 us a token: after a second its pause is a thousand reloads long."""
    admit = WorkingSet()
    engine: Any = SimpleNamespace(engine="e", reload_ns=1_000.0)

    def staleness(world: Any, name: str) -> float:
        return admit._staleness(world.talks[name], engine, world, now=Instant(SECOND))

    waits, runs = Village(waits=True), Village(waits=False)
    assert staleness(waits, "main") == 1e9
    assert staleness(waits, "kid") == pytest.approx(1_000)  # it started nobody
    assert staleness(runs, "main") == pytest.approx(1_000)
    waits.talks["grandchild"] = waits._talk("grandchild", "kid")
    assert staleness(waits, "kid") == 1e9
    waits.talks["kid"].is_over = True
    assert staleness(waits, "kid") == inf
    waits.talks["other"].active_steps = 1
    order = admit._victims(engine, waits, 10_000.0, now=Instant(SECOND), threshold=0.0)  # type: ignore[arg-type]
    assert list(order) == ["kid", "main", "grandchild"]


def test_whoever_will_hardly_come_back_has_little_to_reload() -> None:
    """Of two with equal pauses the one whose tool mostly ends the work makes room, and sooner."""
    admit = WorkingSet(patience=2.0)
    engine: Any = SimpleNamespace(engine="e", reload_ns=1_000.0)
    world: Any = Village(waits=False)
    del world.talks["main"]
    world.lasts = {"other": 0.9}
    now = Instant(1_000_000)  # as long as 1,000 tokens take
    assert admit._staleness(world.talks["kid"], engine, world, now=now) == pytest.approx(1.0)
    assert admit._staleness(world.talks["other"], engine, world, now=now) == pytest.approx(10.0)
    assert list(admit._victims(engine, world, 500.0, now=now, threshold=2.0)) == ["other"]
    crossing = admit._next_crossing(engine, world, 2.0, now=Instant(0))
    assert crossing == Instant(200_000)


def test_where_programs_are_short_fewer_take_turns() -> None:
    """Half of six seconds, in place of a bound of twenty."""
    admit = WorkingSet(swap_share=0.5)
    world: Any = SimpleNamespace(wait_ns_max=20 * SECOND)

    def swapped() -> float:
        return admit._swapped_ns(world, now=at(200))

    assert swapped() == 10 * SECOND
    served(admit, "long", 1_000, at=0, took=60)
    served(admit, "now", 1_000, at=190, is_over=False)
    assert swapped() == 10 * SECOND
    for number in range(400):  # until the long one is forgotten
        served(admit, f"short {number}", 1_000, at=70 + number / 4, took=6)
    assert swapped() == pytest.approx(1.5 * SECOND, rel=0.02)
    # Who wants as much and takes too long to say: the mean of both.
    kind = (prefix("other", 0), prefix("x", 1_000))
    for number in range(64):
        served(admit, f"other {number}", 1_000, at=70 + number, took=60, prefixes=kind)
    served(admit, "other", 1_000, at=190, is_over=False, prefixes=kind)
    assert swapped() == pytest.approx((1.5 + 10) / 2 * SECOND, rel=0.2)


def served(
    admit: WorkingSet,
    name: str,
    tokens: int,
    *,
    at: float,
    took: float = 1.0,
    is_over: bool = True,
    **more: Any,
) -> None:
    """Two turns of a program, so many seconds apart."""
    for turn, when in enumerate((at, at + took)):
        now = Instant(round(when * SECOND))
        step = f"{name} {turn}"
        admit.observe(arrived(step, name, tokens=tokens, **more), now=now)
        admit.observe(answered(step, is_last=is_over and turn == 1, prompt=tokens), now=now)


def test_programs_of_another_model_crowd_other_engines() -> None:
    """Where each engine has a model of its own, one that is full keeps nobody off the other."""
    desk = Desk(wait_s=0.5, swap_share=0.0001)
    desk.feed(reported("large", kv_tokens=10_000, models=("large",)), 0)
    desk.feed(reported("small", kv_tokens=10_000, models=("small",)), 0)
    desk.feed(EngineLost(engine=EngineId("e"), reason="removed"), 0)

    def ask(name: str, tokens: int, time_s: float) -> list[str]:
        model = name.split("-")[0]
        return sent(desk.feed(arrived(name, name, tokens=tokens, model=model), time_s))

    for number in range(5):
        ask(f"large-{number}", 9_000, number)
        desk.feed(answered(f"large-{number}", prompt=9_000, cached=0, output=10), number + 0.1)
    assert ask("small-0", 2_000, 6) == ["small-0"]
    # Something runs there, and there is room: the other engine's programs have no part in it.
    assert ask("small-1", 2_000, 6.1) == ["small-1"]
    assert ask("large-9", 2_000, 6.2) == ["large-9"]
    assert ask("large-10", 2_000, 6.3) == []
    assert desk.scheduler.steps[StepId("large-10")].held_for == "programs"


def test_when_all_are_shut_out_each_is() -> None:
    """The short answer for everyone is never another than the long one for each."""
    desk = Desk(wait_s=0.5, swap_share=0.0001)
    for number, name in enumerate("abc"):
        desk.turn(name, 3_500, at=number)
    desk.ask("a", 9_000, at=3)
    scheduler = desk.scheduler
    admit, world = scheduler.policies.admit, scheduler._books
    engine = scheduler.engines[EngineId("e")]
    now = at(3.1)

    def shut(*engines: Any) -> Held | None:
        return admit.shuts_out(engines, world, now=now)  # type: ignore[attr-defined,no-any-return]

    assert shut(engine) is None  # the smallest of programs would fit
    for number in range(20):
        served(admit, f"big {number}", 10_000, at=1, prefixes=(HEAD, prefix("big", 10_000)))  # type: ignore[arg-type]
    crowded = shut(engine)
    assert crowded is not None
    assert desk.ask("z", 1_100, at=3.1) == []
    assert admit.admit(scheduler.steps[StepId("z0")], engine, world, now=now) == crowded
    # An engine on which nothing runs, or nobody to ask, shuts nobody out.
    idle = SimpleNamespace(capabilities=engine.capabilities, running_steps=0, peer_steps=0)
    assert shut(engine, idle) is None
    assert shut() is None
    assert WorkingSet(swap_share=0).shuts_out([engine], world, now=now) is None
    cheap = WorkingSet(cheap_reload=1e9)
    assert cheap.shuts_out([engine], world, now=now) is None


MODELS = st.sampled_from([(), ("a",), ("b",), ("a", "b")])


@settings(deadline=None, max_examples=40)
@given(
    engines=st.lists(st.tuples(MODELS, st.integers(1, 50_000)), min_size=1, max_size=4),
    programs=st.lists(
        st.tuples(st.sampled_from(["", "a", "b"]), st.integers(1, 40_000)), max_size=8
    ),
    ended=st.lists(st.integers(1, 40_000), max_size=3),
    need=st.integers(0, 60_000),
    reload_ns=st.integers(1, 10**7),
)
def test_whoever_is_shut_out_would_be_held_on_each_engine_that_has_its_model(
    engines: list[tuple[tuple[str, ...], int]],
    programs: list[tuple[str, int]],
    ended: list[int],
    need: int,
    reload_ns: int,
) -> None:
    """The answer for all of them at once may only be shorter than the one for each."""
    admit = WorkingSet(swap_share=0.001, cheap_reload=0.0)
    for number, (model, tokens) in enumerate([*programs, *(("", size) for size in ended)]):
        is_over = number >= len(programs)
        served(admit, f"p{number}", tokens, at=0, took=0, is_over=is_over, model=model)
    up: dict[str, Any] = {}
    for number, (models, capacity) in enumerate(engines):
        up[f"e{number}"] = SimpleNamespace(
            engine=f"e{number}",
            is_up=True,
            capabilities=Capabilities(kv_tokens=capacity, models=models),
            running_steps=1,
            peer_steps=0,
            reload_ns=float(reload_ns),
            prefill_ns=1.0,
        )
    new = {"new": SimpleNamespace(was_served=False, parent=None)}
    world: Any = SimpleNamespace(engines=up, wait_ns_max=SECOND, programs=new)
    now = Instant(len(programs) + len(ended) + 1)
    if admit.shuts_out(list(up.values()), world, now=now) is None:
        return
    for engine in up.values():
        for model in engine.capabilities.models or ("", "a", "b"):
            step: Any = SimpleNamespace(
                program=ProgramId("new"), tenant="t", model=model, prefixes=()
            )
            capacity = engine.capabilities.kv_tokens
            assert admit._is_crowded(step, engine, world, capacity, need, now=now)
