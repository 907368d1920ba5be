"""Single questions beside agents: they take no turns, so they do not wait for any."""

from __future__ import annotations

from typing import Any

import pytest
from shorthand import answered, arrived, at, finished, prefix, reported

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import Scheduler
from agentsched.model import (
    Command,
    Dispatch,
    Limits,
    ProgramClosed,
    ProgramId,
    Reject,
    RejectReason,
    StepStarted,
    seconds,
)
from agentsched.policy import Choice, Held

AGENT = prefix("agent", 1_000)
CHAT = prefix("chat", 1)
POOL = 10_000


class House:
    """One engine of 10,000 tokens on which two kinds of programs are served; seconds."""

    def __init__(self, *, chats: int = 20, bypasses_max: int = 1_000, **params: object) -> None:
        admit = Choice(name="working-set", params=params)
        self.scheduler: Scheduler = build_scheduler(
            SchedulerConfig(
                profile="agentsched",
                choices={"admit": admit},
                limits=Limits(wait_ns_max=seconds(10), bypasses_max=bypasses_max),
            )
        )
        self.now = 0.0
        self.feed(reported(kv_tokens=POOL, cached_tokens=True))
        for number in range(chats):
            assert self.ask(f"taught {number}", 5, CHAT)
            self.feed(finished(f"taught {number}", finish_reason="length", prompt=5))
            self.now += 1
        self.now += 20  # nobody came back

    def feed(self, event: Any) -> tuple[Command, ...]:
        commands = self.scheduler.handle(event, now=at(self.now))
        self.scheduler.check()
        return commands

    def ask(self, step: str, tokens: int, head: Any, *, program: str = "") -> bool:
        """Whether it is sent at once."""
        program = program or step
        event = arrived(step, program, tokens=tokens, prefixes=(head, prefix(step, tokens)))
        return any(isinstance(c, Dispatch) and c.step == step for c in self.feed(event))

    def held_for(self, step: str) -> str:
        return next(s.held_for for s in self.scheduler.steps.values() if s.step == step)

    def turn(self, step: str, tokens: int, *, program: str = "") -> None:
        assert self.ask(step, tokens, AGENT, program=program)
        self.feed(StepStarted(step=step))  # type: ignore[arg-type]
        self.feed(answered(step, prompt=tokens, output=10))


def crowded(*, chats: int = 20, bypasses_max: int = 1_000) -> House:
    """Three agents want more than there is, one of them runs, and no further one may begin."""
    house = House(chats=chats, bypasses_max=bypasses_max, swap_share=0.0001, cold_tokens=100_000)
    for step in ("over", "and out"):
        house.turn(step, 4_200, program="over")
    house.feed(ProgramClosed(program=ProgramId("over"), reason="done"))
    for step in ("a", "b", "c"):
        house.turn(step, 4_200)
        house.now += 1
    assert house.ask("a2", 4_300, AGENT, program="a")
    assert not house.ask("d", 1_500, AGENT)
    assert house.held_for("d") == "programs"
    return house


def test_a_question_does_not_wait_until_programs_are_over() -> None:
    house = crowded()
    assert house.ask("q", 450, CHAT)


def test_who_may_be_an_agent_waits_like_one() -> None:
    """Before anything is known of a kind, and where as many go on as do not."""
    house = crowded(chats=0)
    assert not house.ask("q", 450, CHAT)
    assert house.held_for("q") == "programs"


def test_while_a_question_waits_newcomers_are_asked_for_one_by_one() -> None:
    house = crowded()
    admit: Any = house.scheduler.policies.admit
    engines, world = list(house.scheduler.engines.values()), house.scheduler.world
    shut = admit.shuts_out(engines, world, now=at(house.now))
    assert isinstance(shut, Held)
    event = arrived("q", "q", tokens=200, prefixes=(CHAT, prefix("q", 200)))
    admit.observe(event, now=at(house.now))
    assert admit.shuts_out(engines, world, now=at(house.now)) is None


@pytest.mark.parametrize(("tokens", "goes"), [(600, True), (1_200, False)])
def test_what_is_set_aside_for_growth_is_a_questions_to_use(tokens: int, *, goes: bool) -> None:
    """A twentieth of the cache and what agents will grow by; not what somebody has."""
    house = House(swap_share=0.0, cold_tokens=100_000)
    house.turn("a", 9_000)
    house.now += 1
    assert house.ask("a2", 9_010, AGENT, program="a")
    assert not house.ask("d", AGENT.tokens + tokens, AGENT)
    assert house.ask("q", tokens, CHAT) is goes


def test_what_is_no_small_part_of_the_cache_is_no_question() -> None:
    house = crowded()
    assert not house.ask("q", 4_400, CHAT)
    assert house.held_for("q") == "programs"


def test_a_plan_knows_a_question_that_was_not_asked_yet() -> None:
    house = crowded()
    event = arrived("q", "q", tokens=450, prefixes=(CHAT, prefix("q", 450)))
    plan = house.scheduler.plan(event, now=at(house.now))
    assert isinstance(plan.verdict, Dispatch)
    assert house.ask("q", 450, CHAT)


def test_who_is_passed_too_often_by_questions_is_told_so() -> None:
    """The bound on bypasses brings its turn, and there is no more room for it than before."""
    house = crowded(bypasses_max=15)
    told: list[Reject] = []
    for number in range(40):
        step = f"q{number}"
        event = arrived(step, step, tokens=50, prefixes=(CHAT, prefix(step, 50)))
        commands = house.feed(event)
        told += [c for c in commands if isinstance(c, Reject)]
        assert not any(isinstance(c, Dispatch) and c.step == "d" for c in commands)
        house.feed(finished(step, finish_reason="length", prompt=50, output=10))
        house.now += 0.01
    assert [(r.step, r.reason) for r in told] == [("d", RejectReason.WAIT_BOUND)]


def test_a_program_that_was_forgotten_here_was_served_all_the_same() -> None:
    house = crowded()
    admit: Any = house.scheduler.policies.admit
    for known in (admit._live._live, admit._live._over):
        known.clear()
    admit._live._peak = None
    for step in ("x", "y", "z"):  # these are known, and want all there is
        admit.observe(arrived(step, step, tokens=9_000), now=at(house.now))
        admit.observe(answered(step, prompt=9_000, output=10), now=at(house.now))
    house.ask("b2", 9_000, AGENT, program="b")
    assert house.held_for("b2") == "memory"


@pytest.mark.parametrize(("tokens", "goes"), [(500, True), (1_500, False)])
def test_a_small_question_is_no_cold_start(tokens: int, *, goes: bool) -> None:
    house = House(cold_tokens=2_000)
    assert house.ask("a", 6_000, AGENT)
    assert not house.ask("d", AGENT.tokens + 1_500, AGENT)
    assert house.held_for("d") == "cold start"
    assert house.ask("q", tokens, CHAT) is goes


def test_a_question_that_goes_on_is_a_program_from_then_on() -> None:
    house = crowded()
    assert house.ask("q", 200, CHAT)
    house.feed(finished("q", finish_reason="length", prompt=200, output=10))
    admit: Any = house.scheduler.policies.admit
    before = admit._live.peak_tokens(now=at(house.now))
    house.now += 30
    # It was served: whoever goes on is not counted as one that begins.
    house.ask("q2", 900, CHAT, program="q")
    assert admit._live.peak_tokens(now=at(house.now)) > before
