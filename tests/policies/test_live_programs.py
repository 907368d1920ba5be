"""The memory that programs under way will want: by hand, and against plain sums."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shorthand import answered, arrived, at, finished, prefix

from agentsched.model import (
    SECOND,
    ContinuedElsewhere,
    ConversationId,
    Dispatch,
    EngineId,
    Instant,
    Lineage,
    ProgramClosed,
    ProgramId,
    StepCancelled,
    StepClass,
    StepFailed,
    StepId,
    TenantId,
)
from agentsched_policies.live_programs import LivePrograms
from agentsched_policies.usual_ends import Kind


class Town:
    """Feeds events at seconds; the sums that it keeps are checked after each."""

    def __init__(self, **limits: int) -> None:
        self.live = LivePrograms(**limits)
        self.now = 0.0

    def see(self, event: Any, at: float | None = None) -> None:
        self.now = self.now if at is None else at
        self.live.observe(event, now=self.instant)
        self.live.check(now=self.instant)

    @property
    def instant(self) -> Instant:
        return at(self.now)

    def arrive(
        self, step: str, program: str = "p", *, at: float | None = None, **more: Any
    ) -> None:
        head = more.pop("head", 0)
        if head:
            more["prefixes"] = (prefix("h", head), prefix(step, 99))
        talk = more.pop("talk", program)
        self.see(arrived(step, program, conversation=talk, tokens=99, **more), at)

    def finish(
        self, step: str, tokens: int = 1_000, *, at: float | None = None, is_last: bool = False
    ) -> None:
        self.see(answered(step, is_last=is_last, prompt=tokens - 10, output=10), at)

    def go(self, step: str) -> None:
        """It is sent to an engine."""
        self.live.decided([sent(step)], now=self.instant)

    def turn(self, step: str, program: str, tokens: int, **more: Any) -> None:
        self.arrive(step, program, **more)
        self.go(step)
        self.finish(step, tokens)

    def usual(self, kind: str = "") -> float:
        return self.live.ends.tokens(Kind(TenantId("t"), kind))

    def chance(self, kind: str = "") -> float:
        return self.live.ends.chance_of_more(Kind(TenantId("t"), kind))

    @property
    def peak(self) -> float:
        return self.live.peak_tokens(now=self.instant)


def taught(final: int) -> Town:
    """One program ended at so many tokens, after two answers."""
    town = Town()
    town.turn("first", "first", final)
    town.turn("second", "first", final)
    town.see(ProgramClosed(program=ProgramId("first"), reason="done"))
    assert (town.usual(), town.peak) == (final, 0)
    return town


def test_a_small_program_grows_to_the_mean_and_a_large_one_is_what_it_is() -> None:
    town = taught(5_000)
    town.turn("a", "small", 1_000, at=1)
    assert town.peak == 5_000
    town.turn("b", "large", 8_000, at=2)
    assert town.peak == 5_000 + 8_000
    # The small one outgrows the mean while the sums are known.
    town.turn("a2", "small", 6_000, at=3)
    assert town.peak == 6_000 + 8_000


def test_a_program_that_is_new_is_added_to_the_sums() -> None:
    """Not all of them are gone through again for each that comes: ten thousand may be under way."""
    town = taught(5_000)
    town.turn("a", "a", 8_000, at=1)
    assert town.peak == 8_000
    sums = town.live._peak
    for number in range(20):
        town.turn(f"s{number}", f"p{number}", 9_000, at=2 + number)
    assert sums is not None
    assert town.live._peak is sums
    assert town.peak == 8_000 + 20 * 9_000
    assert sums.until == Instant(61 * SECOND)
    # The first falls silent, and the next a second later.
    town.now = 61
    assert town.peak == 20 * 9_000
    town.now = 62
    assert town.peak == 19 * 9_000


def test_one_too_many_is_forgotten_and_left_out_of_the_sums() -> None:
    town = Town(programs_max=2)
    for number in range(4):
        town.turn(f"s{number}", f"p{number}", 1_000 * (number + 1), at=number)
        assert town.peak == sum(1_000 * (n + 1) for n in range(max(0, number - 1), number + 1))


def test_the_head_is_left_out_and_a_smaller_prompt_shrinks_nothing() -> None:
    town = Town()
    town.turn("a", "p", 1_000, head=300)
    assert town.peak == 700
    town.turn("a2", "p", 500, head=300)
    assert town.peak == 700


def test_a_mean_over_those_that_ended() -> None:
    town = taught(4_000)
    town.turn("a", "a", 1_000)
    town.turn("a2", "a", 2_000)
    town.see(ProgramClosed(program=ProgramId("a"), reason="done"))
    assert town.usual() == 3_000
    town.turn("b", "b", 3_000)
    town.arrive("b2", "b")
    town.finish("b2", 6_000, is_last=True)  # its last word ends it like its end
    assert town.usual() == 4_000
    town.see(ProgramClosed(program=ProgramId("b"), reason="done"))
    assert town.usual() == 4_000


@pytest.mark.parametrize(("second", "is_over"), [(61, False), (62, True)])
def test_who_goes_for_room_has_not_ended_unless_it_was_silent(
    second: float, *, is_over: bool
) -> None:
    """Where more agents live than programs may, the idlest pauses for a tool."""
    town = taught(4_000)
    town.turn("a", "a", 1_000, at=1)
    town.turn("a2", "a", 2_000, at=2)
    town.see(ProgramClosed(program=ProgramId("a"), reason="forgotten for room"), at=second)
    assert town.usual() == (3_000 if is_over else 4_000)
    assert ProgramId("a") not in town.live


def test_who_goes_on_after_its_last_word_had_not_ended() -> None:
    """Agents whose tools are called in plain text say a last word with every answer."""
    town = taught(4_000)
    town.turn("a", "a", 1_000, at=1)
    town.arrive("a2", "a", at=2)
    town.go("a2")
    town.finish("a2", 1_100, is_last=True, at=3)
    assert town.usual() == pytest.approx((1_100 + 4_000) / 2)
    assert town.peak == 0
    town.arrive("a3", "a", at=30)
    assert town.peak == 0  # it may be turned away
    town.go("a3")
    assert (town.usual(), town.peak) == (4_000, 4_000)
    town.finish("a3", 1_500, is_last=True, at=31)
    assert (town.usual(), town.peak) == (4_000, 4_000)
    assert ProgramId("a") in town.live
    # It is over when it is silent for long, or closed.
    town.now = 92
    assert town.peak == 0
    town.see(ProgramClosed(program=ProgramId("a"), reason="idle"))
    assert town.usual() == 2_750
    assert ProgramId("a") not in town.live


def test_a_first_last_word_is_no_question_before_there_was_time_to_come_back() -> None:
    town = taught(4_000)
    for number in range(12):
        town.arrive(f"a{number}", f"a{number}", at=1)
        town.finish(f"a{number}", 500, is_last=True, at=2)
    assert town.peak == 0
    assert town.chance() == 0.5
    for number in range(6):
        town.arrive(f"b{number}", f"a{number}", at=8)
        town.go(f"b{number}")
    town.see(answered("nothing"), at=12)
    assert town.chance() == pytest.approx((1 + 6 + 4) / (1 + 12 + 8))  # the other six did not


def test_another_answer_to_the_same_question_is_no_going_on() -> None:
    town = Town()
    for number in range(20):
        name = f"q{number}"
        town.arrive(name, name, at=number)
        town.finish(name, 100, is_last=True, at=number)
        town.arrive(f"{name}/again", name, at=number + 0.5, retries=name)
        town.go(f"{name}/again")
        town.finish(f"{name}/again", 100, is_last=True, at=number + 0.6)
        assert town.peak == 0
    town.see(answered("nothing"), at=40)
    assert town.chance() < 0.2


def test_who_goes_on_from_elsewhere_is_no_question() -> None:
    """At another replica, before a restart, or before this policy was in force."""
    town = Town()
    for number in range(12):
        name = f"a{number}"
        town.arrive(name, name, at=number, lineage=Lineage.EXTENDS)
        town.finish(name, 900, is_last=True, at=number)
    assert town.usual() == 900
    assert town.chance() == 0.5
    # One that is seen once here, and goes on there, has not ended.
    town.arrive("q", "q", at=20)
    town.finish("q", 100, is_last=True, at=20)
    town.see(answered("nothing"), at=31)
    single = town.chance()
    gone = ContinuedElsewhere(program=ProgramId("q"), conversation=ConversationId("q"))
    town.see(gone, at=32)
    assert town.chance() == 0.5
    assert single <= 0.5


def test_in_a_mixed_kind_size_is_that_of_who_goes_on() -> None:
    town = Town()
    for number in range(40):
        name = f"p{number}"
        town.arrive(name, name, at=number)
        if number % 5:
            town.finish(name, 200, is_last=True, at=number)
            continue
        town.finish(name, 1_000, at=number)
        town.turn(f"{name}/2", name, 50_000, at=number)
        town.see(ProgramClosed(program=ProgramId(name), reason="done"))
    assert town.usual() == pytest.approx(50_000)
    town.turn("new", "new", 1_000, at=50)
    assert town.peak == pytest.approx(50_000)


def test_a_program_is_heard_of_while_another_first_step_of_it_runs() -> None:
    town = Town()
    town.arrive("a", "p", at=0)
    town.arrive("b", "p", at=0)
    town.finish("a", 1_000, at=1)
    town.now = 100
    assert town.peak == 1_000
    town.see(ProgramClosed(program=ProgramId("p"), reason="said so"), at=100)
    town.finish("b", 1_000, at=101)
    town.see(ProgramClosed(program=ProgramId("p"), reason="said so"), at=101)
    assert ProgramId("p") not in town.live


def test_kinds_are_told_apart_by_the_head_of_their_prompts() -> None:
    town = Town()
    chat = {"prefixes": (prefix("chat", 10), prefix("c", 99))}
    agent = {"prefixes": (prefix("agent", 400), prefix("a", 99))}
    for number in range(40):
        town.arrive(f"c{number}", f"c{number}", at=number, **chat)
        town.finish(f"c{number}", 60, is_last=True)
        for turn in "abc":
            town.turn(f"a{number}{turn}", f"a{number}", 2_400, at=number, **agent)
        town.see(ProgramClosed(program=ProgramId(f"a{number}"), reason="done"))
    assert town.usual("agent") == pytest.approx(2_000)
    assert town.chance("chat") < 0.2 < 0.8 < town.chance("agent")
    assert town.usual("never seen") == 2_000  # as programs are that go on
    town.arrive("new", "new", at=50, **chat)
    cut(town, "new", 50, at=50)
    assert town.peak < 0.2 * 2_000
    town.turn("b", "b", 500, at=50, **agent)
    assert town.peak > 2_000


def test_a_kind_is_a_tenants_own() -> None:
    """Nobody else can make a tenant's agents look like questions."""
    town = Town()
    for number in range(40):
        for tenant, name in (("good", f"g{number}"), ("bad", f"b{number}")):
            town.arrive(name, name, at=number, tenant=tenant)
            town.finish(name, 500, at=number, is_last=tenant == "bad")
        town.turn(f"g{number}/2", f"g{number}", 9_000, at=number, tenant="good")
    town.see(answered("nothing"), at=60)
    ends = town.live.ends
    assert ends.is_question(Kind(TenantId("bad"), ""))
    assert not ends.is_question(Kind(TenantId("good"), ""))
    assert ends.chance_of_more(Kind(TenantId("good"), "")) > 0.8


def cut(town: Town, step: str, tokens: int, *, at: float) -> None:
    """An answer without tool calls that did not end by itself."""
    town.see(finished(step, finish_reason="length", prompt=tokens - 10, output=10), at)


def test_a_first_answer_that_calls_no_tool_leaves_open_whether_there_is_more() -> None:
    town = taught(4_000)
    town.arrive("q", "q", at=1)
    cut(town, "q", 500, at=2)
    assert town.peak == pytest.approx(town.chance() * 4_000)
    town.see(finished("nothing", finish_reason="stop"), at=12)  # ten seconds of silence
    assert town.peak == 0
    assert ProgramId("q") in town.live
    # It comes back after all: then it is one that takes its time, and no newcomer.
    town.arrive("q2", "q", at=40)
    town.go("q2")
    assert town.peak == 4_000
    cut(town, "q2", 600, at=41)
    assert town.peak == 4_000


def test_questions_that_never_come_back_want_nothing_soon() -> None:
    town = taught(4_000)
    for number in range(60):
        name = f"q{number}"
        town.arrive(name, name, at=1 + number)
        cut(town, name, 200, at=1 + number)
    # The last ten seconds' questions, by the chance of a few in a hundred.
    assert town.peak < 10 * 4_000 * 0.1
    assert town.chance() < 0.1
    assert len(town.live._open) <= 11


def test_a_question_whose_program_is_closed_was_one() -> None:
    town = Town()
    for number, name in enumerate("abc"):
        town.arrive(name, name, at=number)
        cut(town, name, 200, at=number)
        town.see(ProgramClosed(program=ProgramId(name), reason="done"), at=number)
    assert town.chance() == pytest.approx(4 / 11)
    assert (town.peak, town.usual()) == (0, 0)


def test_a_program_whose_first_steps_run_side_by_side_is_no_question() -> None:
    town = Town()
    for name in ("p", "q"):
        town.arrive(f"{name}1", name, at=1)
        town.arrive(f"{name}2", name, talk=f"{name}/kid", at=1)
        cut(town, f"{name}1", 500, at=2)
        cut(town, f"{name}2", 700, at=20)
    assert town.peak == 1_400
    for name in ("p", "q"):
        town.see(ProgramClosed(program=ProgramId(name), reason="done"), at=21)
    assert town.chance() > 0.5
    assert town.usual("other") == 700  # they count among programs


def test_a_last_word_that_is_said_beside_a_step_is_not_the_last() -> None:
    town = taught(4_000)
    town.turn("a", "p", 1_000, at=1)
    town.arrive("side", "p", talk="p/kid", at=2)
    town.arrive("main", "p", at=2)
    town.finish("main", 1_200, is_last=True, at=3)
    assert (town.peak, town.usual()) == (0, 2_600)
    town.finish("side", 300, at=4)
    assert (town.peak, town.usual()) == (4_000, 4_000)
    town.arrive("end", "p", at=5)
    town.finish("end", 1_300, is_last=True, at=6)
    assert town.peak == 0


def test_a_kind_of_one_program_teaches_nothing() -> None:
    """Prompts that begin with a name or a date are as many kinds as there are programs."""
    town = taught(4_000)
    for number in range(50):
        head = (prefix(f"hello {number}", 10), prefix("c", 99))
        town.turn(f"c{number}", f"c{number}", 60, at=1 + number, prefixes=head)
        town.see(ProgramClosed(program=ProgramId(f"c{number}"), reason="done"))
        assert town.usual(f"hello {number}") == 4_000
        town.turn(
            f"d{number}", f"d{number}", 60, at=1 + number, prefixes=(prefix(f"{number}", 9), *head)
        )
    assert len(town.live._known(now=town.instant).sums) == 1


def test_who_waits_to_begin_is_known_by_kind() -> None:
    town = Town()
    head = (prefix("agent", 400), prefix("a", 99))
    assert list(town.live.new_kinds()) == []
    town.arrive("a", "a", prefixes=head)
    town.arrive("b", "b", prefixes=head)
    town.arrive("title", "c", step_class=StepClass.AUXILIARY)
    assert {kind.head for kind in town.live.new_kinds()} == {"agent", ""}
    town.live.decided([sent("title"), sent("a")], now=town.instant)
    assert {kind.head for kind in town.live.new_kinds()} == {"agent"}
    town.see(StepCancelled(step=StepId("b"), reason="left"))
    assert list(town.live.new_kinds()) == []
    town.finish("a")
    town.arrive("a2", "a", prefixes=head)  # it has begun
    assert list(town.live.new_kinds()) == []


def test_a_sub_agents_last_word_ends_no_program() -> None:
    town = Town()
    town.turn("a", "p", 1_000)
    town.arrive("k", "p", talk="p/kid")
    town.finish("k", 300, is_last=True)
    assert ProgramId("p") in town.live
    assert town.usual() == 0


def test_the_silent_are_left_out_until_they_speak() -> None:
    town = Town()
    town.turn("a", "quiet", 1_000, at=0)
    town.turn("b", "busy", 200, at=30)
    assert town.peak == 1_200
    town.now = 61
    assert town.peak == 200
    town.arrive("a2", "quiet", at=62)
    assert town.peak == 1_200
    # While a step of it runs a program is heard of, however long that takes.
    town.now = 500
    assert town.peak == 1_000


@pytest.mark.parametrize(
    ("end", "is_over"),
    [
        (StepCancelled(step=StepId("a2"), reason="left"), True),
        (StepFailed(step=StepId("a2"), reason="x", is_retryable=False), True),
        (StepFailed(step=StepId("a2"), reason="x", is_retryable=True), False),
        (StepCancelled(step=StepId("unknown"), reason="left"), False),
    ],
)
def test_a_step_that_ended_otherwise_is_not_under_way(end: Any, is_over: bool) -> None:
    town = Town()
    town.turn("a", "p", 1_000, at=0)
    town.arrive("a2", "p", at=1)
    town.see(end, at=2)
    town.now = 100
    assert town.peak == (0 if is_over else 1_000)


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_program_is_heard_of_while_any_step_of_it_runs(is_answered: bool) -> None:
    town = Town()
    town.turn("a", "p", 1_000, at=0)
    for step in ("a2", "a3"):
        town.arrive(step, "p", at=1)
    if is_answered:
        town.finish("a2", at=2)
    else:
        town.see(StepCancelled(step=StepId("a2"), reason="left"), at=2)
    town.now = 500
    assert town.peak == 1_000


def test_answers_to_nothing_known_are_passed_over() -> None:
    town = Town()
    town.finish("never-seen")
    town.arrive("title", "p", step_class=StepClass.AUXILIARY)
    town.finish("title")
    assert town.peak == 0
    assert ProgramId("p") not in town.live


def test_a_conversation_that_is_rewritten_is_the_main_one_still() -> None:
    """Its last word ends the program, under whatever id it is said."""
    town = Town()
    town.turn("a", "p", 9_000)
    town.arrive("b", "p", talk="p/2", lineage=Lineage.COMPACTS, parent_conversation="p")
    town.finish("b", 2_000)
    assert ProgramId("p") in town.live
    town.arrive("c", "p", talk="p/2")
    town.finish("c", 3_000, is_last=True)
    assert town.peak == 0
    assert town.usual() == 9_000


def test_a_program_that_is_closed_while_a_step_runs_ends_once() -> None:
    """The kernel says so again when that step has ended."""
    town = Town()
    town.turn("a", "p", 9_000, at=0)
    town.arrive("b", "p", at=10)
    town.go("b")
    closed = ProgramClosed(program=ProgramId("p"), reason="said so")
    town.see(closed, at=11)
    town.finish("b", 9_100, at=12)
    town.see(closed, at=12)
    assert town.peak == 0
    assert town.usual() == 9_000
    assert town.live.ends._all.count == 1
    town.turn("c", "p", 500, at=13)  # it wakes, and is a new one
    assert town.peak == 9_000


def test_a_step_that_comes_twice_is_under_way_once() -> None:
    town = Town()
    town.turn("a", "p", 1_000, at=0)
    town.arrive("b", "p", at=1)
    town.arrive("b", "p", at=1)
    town.finish("b", at=2)
    assert town.peak == 1_000
    town.now = 63
    assert town.peak == 0


def test_sums_are_kept_for_each_model() -> None:
    town = taught(5_000)
    town.turn("a", "a", 1_000, at=1, model="small")
    town.turn("b", "b", 8_000, at=1, model="large")
    assert dict(town.live.peaks(now=town.instant)) == {"small": 5_000, "large": 8_000}
    town.turn("c", "c", 7_000, at=2, model="small")
    assert dict(town.live.peaks(now=town.instant)) == {"small": 12_000, "large": 8_000}
    assert town.peak == 20_000


def test_who_went_on_elsewhere_is_counted_there_unless_it_runs_here_too() -> None:
    town = Town()
    gone = ContinuedElsewhere(program=ProgramId("p"), conversation=ConversationId("p"))
    town.turn("a", "p", 1_000, at=0)
    town.arrive("a2", "p", at=1)
    town.see(gone, at=1)
    assert town.peak == 1_000
    town.finish("a2", at=2)
    side = ContinuedElsewhere(program=ProgramId("p"), conversation=ConversationId("p/kid"))
    town.see(side, at=2)
    assert town.peak == 1_000
    town.see(gone, at=3)
    assert town.peak == 0


def test_of_too_many_the_one_silent_for_longest_goes() -> None:
    town = Town(programs_max=2)
    for number, name in enumerate("abac"):
        town.turn(f"{name}{number}", name, 1_000, at=float(number))
    assert [ProgramId(name) in town.live for name in "abc"] == [True, False, True]


_ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "finish", "cut", "last", "cancel", "close", "wait"]),
        st.integers(0, 3),
        st.integers(1, 60),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(_ACTIONS)
def test_remembered_sums_are_those_of_a_newcomer(actions: list[tuple[str, int, int]]) -> None:
    """Whatever happened: what is kept up to date equals what adding all up gives."""
    town = Town()
    steps: dict[int, list[str]] = {}
    for number, (action, who, size) in enumerate(actions):
        name = f"p{who}"
        under_way = steps.setdefault(who, [])
        if action == "arrive":
            under_way.append(f"s{number}")
            town.arrive(f"s{number}", name, at=town.now + 0.5)
        elif action == "wait":
            town.now += size
        elif action == "close":
            town.see(ProgramClosed(program=ProgramId(name), reason="done"))
        elif under_way and action == "cancel":
            town.see(StepCancelled(step=StepId(under_way.pop(0)), reason="left"))
        elif under_way and action == "cut":
            cut(town, under_way.pop(0), 100 * size, at=town.now)
        elif under_way:
            town.finish(under_way.pop(0), 100 * size, is_last=action == "last")
        remembered = town.peak
        if number % 3 == 0:
            town.live._peak = None  # all is added up anew
            assert remembered == pytest.approx(town.peak)


def test_how_long_a_program_takes_leaves_out_what_it_was_held_for() -> None:
    town = Town()
    town.arrive("1", at=0)
    town.live.decided([sent("1")], now=at(10))
    town.finish("1", at=12)
    town.arrive("2", at=15)
    town.live.decided([sent("2")], now=at(20))
    assert town.live.ends.took_ns(Kind(TenantId("t"), "")) == 0.0
    town.finish("2", at=21, is_last=True)
    assert town.live.ends.took_ns(Kind(TenantId("t"), "")) == pytest.approx((21 - 10 - 5) * SECOND)
    for step in "ab":
        town.turn(step, "other", 1_000, at=30)
    town.see(ProgramClosed(program=ProgramId("other"), reason="done"), at=90)
    assert town.live.ends.took_ns(Kind(TenantId("t"), "")) == pytest.approx(
        3 * SECOND
    )  # one took six seconds, one none


def sent(step: str) -> Dispatch:
    return Dispatch(step=StepId(step), engine=EngineId("e"), priority=0)
