"""Pins and warm-ups, from the pause to their end."""

from __future__ import annotations

from typing import Any

import pytest
from shorthand import prefix

from agentsched.model import (
    SECOND,
    ConversationId,
    EngineDrained,
    EngineId,
    EngineLoad,
    EngineLost,
    EngineReported,
    HintAnswered,
    HintOutcome,
    Instant,
    Lineage,
    Nanos,
    Pin,
    PinId,
    Prefetch,
    ProgramClosed,
    ProgramId,
    StepCancelled,
    StepClass,
    StepId,
    ToolFinished,
    ToolStarted,
    Unpin,
    UnpinReason,
)
from agentsched.model.ids import CallId, ToolName
from agentsched.policy import Retention


@pytest.fixture
def pinned(rig: Any) -> Any:
    """One program that pauses with a pin of ten seconds; `rig.pin` is the pin."""
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(10 * SECOND), value=2.5)
    rig.engine()
    rig.arrive("s1", at=1)
    rig.start("s1")
    [rig.pin] = rig.finish("s1", at=2, tools={"k1": "bash"}, prompt=100, output=10)
    return rig


def ended(commands: Any) -> list[UnpinReason]:
    return [c.reason for c in commands if isinstance(c, Unpin)]


def test_a_pause_asks_with_all_that_there_is_to_know(rig: Any) -> None:
    asked = []
    rig.policy.retention = lambda pause: asked.append(pause)
    rig.engine()
    rig.arrive("s1", at=1)
    rig.finish("s1", at=2, tools={"k1": "bash"})
    [pause] = asked
    assert (pause.program, pause.conversation, pause.tenant) == ("p1", "p1/main", "t1")
    assert (dict(pause.tools), pause.since, pause.engine) == ({"k1": "bash"}, 2 * SECOND, "e1")
    assert (pause.prefix.prefix, pause.prefix.tokens) == ("x-s1", 110)


def test_the_pin(pinned: Any) -> None:
    pin = pinned.pin
    assert isinstance(pin, Pin)
    assert (pin.engine, pin.conversation, pin.value) == ("e1", "p1/main", 2.5)
    assert (pin.prefix.tokens, pin.expires_at) == (110, 12 * SECOND)
    assert pinned.scheduler.engines["e1"].pinned_tokens == 110


def test_it_expires(pinned: Any) -> None:
    [unpin] = pinned.timer()
    assert unpin == Unpin(pin=pinned.pin.pin, engine=EngineId("e1"), reason=UnpinReason.EXPIRED)
    assert pinned.now == 12 * SECOND
    assert pinned.scheduler.engines["e1"].pinned_tokens == 0
    assert pinned.scheduler.next_deadline() is None


def test_it_ends_when_the_next_step_has_started(pinned: Any) -> None:
    assert ended(pinned.arrive("s2", at=5)) == []
    assert ended(pinned.start("s2", at=6)) == [UnpinReason.RESUMED]


def test_it_ends_when_the_next_answer_comes_whole(pinned: Any) -> None:
    pinned.policy.retention = lambda pause: None
    pinned.arrive("s2", at=5)
    assert ended(pinned.finish("s2", at=6)) == [UnpinReason.RESUMED]
    assert pinned.scheduler.statistics().pins == 0


@pytest.mark.parametrize("shows_a_first_token", [True, False])
def test_an_engine_that_its_conversation_left_is_told_to_let_go(
    pinned: Any, *, shows_a_first_token: bool
) -> None:
    pinned.policy.retention = lambda pause: None
    pinned.engine("e2")
    pinned.policy.score_of = lambda step, engine: float(engine.engine == "e2")
    pinned.arrive("s2", at=5)
    begin = pinned.start if shows_a_first_token else pinned.finish
    [unpin] = begin("s2", at=6)
    assert (unpin.engine, unpin.reason) == ("e1", UnpinReason.SUPERSEDED)


def test_it_outlives_a_cancelled_step(pinned: Any) -> None:
    pinned.arrive("s2", at=5)
    assert pinned.push(StepCancelled(step=StepId("s2"), reason="client")) == ()
    assert pinned.scheduler.statistics().pins == 1


def test_it_ends_with_its_program(pinned: Any) -> None:
    commands = pinned.push(ProgramClosed(program=ProgramId("p1"), reason="done"))
    assert ended(commands) == [UnpinReason.CLOSED]


def test_it_ends_with_its_engine(pinned: Any) -> None:
    commands = pinned.push(EngineLost(engine=EngineId("e1"), reason="crash"))
    assert ended(commands) == [UnpinReason.ENGINE_LOST]
    conversation = pinned.scheduler.programs["p1"].conversations["p1/main"]
    assert not conversation.is_resident


@pytest.mark.parametrize(
    "outcome", [HintOutcome.REFUSED, HintOutcome.UNSUPPORTED, HintOutcome.FAILED]
)
def test_it_ends_when_the_engine_will_not(pinned: Any, outcome: HintOutcome) -> None:
    answer = HintAnswered(pin=pinned.pin.pin, outcome=outcome)
    assert ended(pinned.push(answer, at=3)) == [UnpinReason.REFUSED]
    assert pinned.push(answer, at=4) == ()


def test_a_clipped_pin_ends_earlier_and_never_later(pinned: Any) -> None:
    def clip(until: float) -> HintAnswered:
        outcome = HintOutcome.CLIPPED
        return HintAnswered(
            pin=pinned.pin.pin, outcome=outcome, until=Instant(round(until * SECOND))
        )

    assert pinned.push(clip(5), at=3) == ()
    assert pinned.scheduler.next_deadline() == 5 * SECOND
    assert pinned.push(clip(99), at=3) == ()
    assert pinned.scheduler.next_deadline() == 12 * SECOND
    assert ended(pinned.push(clip(4), at=4)) == [UnpinReason.REFUSED]


def test_a_pin_that_is_clipped_nobody_says_how_far_stands_until_its_own_end(pinned: Any) -> None:
    """As engines' plugins answer: they keep fewer blocks, or for less long, and not nothing."""
    clipped = HintAnswered(pin=pinned.pin.pin, outcome=HintOutcome.CLIPPED)
    assert pinned.push(clipped, at=3) == ()
    assert pinned.scheduler.next_deadline() == 12 * SECOND
    closed = pinned.push(ProgramClosed(program=ProgramId("p1"), reason="done"), at=4)
    assert ended(closed) == [UnpinReason.CLOSED]  # so that the engine is told


def test_an_accepted_pin_stays(pinned: Any) -> None:
    assert pinned.push(HintAnswered(pin=pinned.pin.pin, outcome=HintOutcome.ACCEPTED)) == ()
    assert pinned.scheduler.statistics().pins == 1


def test_a_long_pin_is_clipped_and_one_without_length_is_none(make_rig: Any) -> None:
    rig = make_rig(pin_ttl_ns_max=Nanos(SECOND))
    rig.engine()
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(99 * SECOND))
    rig.arrive("s1", at=0)
    [pin] = rig.finish("s1", at=1)
    assert pin.expires_at == 2 * SECOND
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(0))
    rig.arrive("s2", program="p2")
    assert rig.finish("s2") == ()


def test_the_budget_gives_way_to_value(make_rig: Any) -> None:
    rig = make_rig(pins_per_engine_max=1)
    rig.engine()
    for program, value in (("p1", 1.0), ("p2", 2.0), ("p3", 1.5)):
        rig.policy.retention = lambda pause, v=value: Retention(ttl=Nanos(SECOND), value=v)
        rig.arrive(f"s-{program}", program=program)
        commands = rig.finish(f"s-{program}")
        if program == "p2":
            assert ended(commands) == [UnpinReason.BUDGET]
    assert commands == ()
    assert rig.scheduler.statistics().pins == 1


@pytest.mark.parametrize("event", ["cannot pin", "draining", "no prefix", "no work"])
def test_where_nothing_can_be_kept_nobody_is_asked(rig: Any, event: str) -> None:
    asked = []
    rig.policy.retention = lambda pause: asked.append(pause)
    rig.engine(pins=event != "cannot pin")
    more: dict[str, Any] = {}
    if event == "no prefix":
        more["prefixes"] = ()
    if event == "no work":
        more["step_class"] = StepClass.AUXILIARY
    rig.arrive("s1", **more)
    if event == "draining":
        rig.push(EngineDrained(engine=EngineId("e1"), is_draining=True))
    assert rig.finish("s1") == ()
    assert asked == []


class TestWarmUps:
    @pytest.fixture
    def warmed(self, rig: Any) -> Any:
        """A program that pauses at 2 s and is to be warmed at 5 s."""
        rig.policy.warm = lambda pause: Instant(5 * SECOND)
        rig.engine()
        rig.arrive("s1", at=1)
        assert rig.finish("s1", at=2, tools={"k1": "bash"}) == ()
        return rig

    def test_it_comes_in_time_and_once(self, warmed: Any) -> None:
        [prefetch] = warmed.timer()
        assert isinstance(prefetch, Prefetch)
        assert (warmed.now, prefetch.engine, prefetch.prefix.tokens) == (5 * SECOND, "e1", 110)
        assert warmed.timer(at=6) == ()
        done = ToolFinished(program=ProgramId("p1"), call_id=CallId("k1"), tool=ToolName("bash"))
        assert warmed.push(done, at=7) == ()

    def test_a_tool_that_ends_early_has_it_asked_again(self, warmed: Any) -> None:
        warmed.policy.warm = lambda pause: Instant(0)
        done = ToolFinished(program=ProgramId("p1"), call_id=CallId("k1"), tool=ToolName("bash"))
        [prefetch] = warmed.push(done, at=3)
        assert isinstance(prefetch, Prefetch)
        assert warmed.scheduler.next_deadline() is None

    def test_it_is_asked_again_only_for_the_conversation_that_waits_for_that_tool(
        self, warmed: Any
    ) -> None:
        warmed.arrive("s2", conversation="p1/side", at=3)
        warmed.finish("s2", at=3, tools={"k2": "bash"})
        asked: list[str] = []
        warmed.policy.warm = lambda pause: asked.append(pause.conversation)
        done = ToolFinished(program=ProgramId("p1"), call_id=CallId("k1"), tool=ToolName("bash"))
        assert warmed.push(done, at=4) == ()
        assert asked == ["p1/main"]

    def test_a_second_opinion_may_be_never(self, warmed: Any) -> None:
        warmed.policy.warm = lambda pause: None
        done = ToolFinished(program=ProgramId("p1"), call_id=CallId("k1"), tool=ToolName("bash"))
        assert warmed.push(done, at=3) == ()
        assert warmed.scheduler.next_deadline() is None

    def test_the_next_step_makes_it_needless(self, warmed: Any) -> None:
        warmed.arrive("s2", at=3)
        assert warmed.scheduler.next_deadline() is None
        warmed.finish("s2", at=4)
        assert warmed.scheduler.next_deadline() == 5 * SECOND

    def test_a_forgotten_conversation_is_not_warmed(self, make_rig: Any) -> None:
        rig = make_rig(conversations_per_program_max=1)
        rig.policy.warm = lambda pause: Instant(5 * SECOND)
        rig.engine()
        rig.arrive("s1", conversation="a", at=1)
        rig.finish("s1", at=2)
        rig.arrive("s2", conversation="b", at=3)
        assert rig.scheduler.next_deadline() is None
        assert rig.timer(at=6) == ()

    def test_nor_one_on_an_engine_that_is_away_or_cannot(self, warmed: Any) -> None:
        warmed.push(EngineLost(engine=EngineId("e1"), reason="crash"), at=3)
        assert warmed.timer() == ()
        assert warmed.scheduler.next_deadline() is None

    def test_planned_warm_ups_do_not_pile_up(self, rig: Any) -> None:
        rig.policy.warm = lambda pause: Instant(10**15)
        rig.engine()
        for number in range(300):
            rig.arrive(f"s{number}")
            rig.finish(f"s{number}")
        assert len(rig.scheduler._retention._warm._heap) < 100


def test_pins_and_warm_ups_have_ids_of_their_own(rig: Any) -> None:
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(SECOND))
    rig.policy.warm = lambda pause: Instant(0)
    rig.engine()
    rig.arrive("s1")
    pin, prefetch = rig.finish("s1")
    assert {pin.pin, prefetch.pin} == {PinId("pin-1"), PinId("warm-2")}


def test_a_pin_outlives_its_time_while_its_program_waits(pinned: Any) -> None:
    pinned.policy.room = lambda engine: False
    pinned.arrive("s2", at=5)
    [extended] = pinned.timer(at=12)
    assert isinstance(extended, Pin)
    assert extended.pin == pinned.pin.pin
    assert extended.expires_at > 12 * SECOND
    pinned.policy.room = lambda engine: True
    pinned.timer(at=13)
    assert ended(pinned.start("s2", at=14)) == [UnpinReason.RESUMED]


def test_a_part_of_the_context_may_be_kept(rig: Any) -> None:
    head = prefix("head", 40)
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(SECOND), prefix=head)
    rig.engine()
    rig.arrive("s1", prefixes=(head, prefix("x", 100)))
    [pin] = rig.finish("s1", tools={"k": "bash"})
    assert pin.prefix == head
    assert rig.scheduler.engines["e1"].pinned_tokens == 40


def test_a_compaction_ends_what_is_kept_of_the_old_prefix(pinned: Any) -> None:
    commands = pinned.arrive(
        "s2",
        at=3,
        conversation="p1/new",
        lineage=Lineage.COMPACTS,
        parent_conversation=ConversationId("p1/main"),
    )
    assert ended(commands) == [UnpinReason.SUPERSEDED]


class TestWhatNobodyComesBackTo:
    """Nothing is kept or warmed, whoever asks about it later."""

    @pytest.fixture
    def kept(self, rig: Any) -> Any:
        """a/main paused with a tool while the gate was closed, and counts as resident."""
        rig.policy.retention = lambda pause: Retention(ttl=Nanos(100 * SECOND))
        rig.engine(kv_tokens=1_000)
        rig.arrive("a1", program="a", tokens=20, at=1)
        rig.finish("a1", tools={"k": "bash"}, prompt=20, at=2)
        assert rig.commands[1:] == []
        return rig

    def open_the_gate(self, rig: Any) -> list[str]:
        """Who is kept then."""
        commands = rig.arrive("b1", program="b", tokens=900)
        assert rig.scheduler.engines["e1"].is_contended
        return [c.conversation for c in commands if isinstance(c, Pin)]

    def rewrite(self, rig: Any) -> Any:
        more = {"lineage": Lineage.COMPACTS, "parent_conversation": ConversationId("a/main")}
        rig.arrive("a2", program="a", conversation="a/new", tokens=20, **more)
        rig.finish("a2", tools={"l": "bash"}, prompt=20)
        return rig.scheduler.programs["a"].conversations["a/main"]

    def test_what_was_rewritten_under_another_id(self, kept: Any) -> None:
        old = self.rewrite(kept)
        assert old.is_resident  # the two share a beginning
        assert not old.tools
        assert self.open_the_gate(kept) == ["a/new"]
        kept.policy.warm = lambda pause: Instant(0)
        done = ToolFinished(program=ProgramId("a"), call_id=CallId("k"), tool=ToolName("bash"))
        assert kept.push(done) == ()
        assert reading(kept, "a/main") == ()

    def test_unless_it_goes_on_after_all(self, kept: Any) -> None:
        self.rewrite(kept)
        kept.arrive("a3", program="a", tokens=20)
        kept.finish("a3", tools={"m": "bash"}, prompt=20)
        assert sorted(self.open_the_gate(kept)) == ["a/main", "a/new"]

    def test_a_program_that_waits_for_its_last_step(self, kept: Any) -> None:
        kept.arrive("a2", program="a", conversation="a/side", tokens=20)
        kept.push(ProgramClosed(program=ProgramId("a"), reason="done"))
        assert self.open_the_gate(kept) == []


def test_a_fork_that_is_over_keeps_nothing_and_its_sibling_does(pinned: Any) -> None:
    pinned.policy.retention = lambda pause: Retention(ttl=Nanos(SECOND)) if pause.tools else None
    pinned.arrive("s2", at=3, conversation="p1/fork", lineage=Lineage.FORKS)
    assert ended(pinned.finish("s2", at=4)) == []  # it had none, and gets none
    assert pinned.scheduler.statistics().pins == 1


def test_a_newer_turn_replaces_the_pin_of_the_older(pinned: Any) -> None:
    pinned.arrive("s2", at=5)
    commands = pinned.finish("s2", at=6, tools={"k2": "bash"}, prompt=200)
    assert ended(commands) == [UnpinReason.RESUMED]
    assert [c.prefix.tokens for c in commands if isinstance(c, Pin)] == [210]


def reading(rig: Any, *gone: str, engine: str = "e1") -> Any:
    capabilities = rig.scheduler.engines[EngineId(engine)].capabilities
    load = EngineLoad(gone=tuple(ConversationId(name) for name in gone))
    return rig.push(EngineReported(engine=EngineId(engine), capabilities=capabilities, load=load))


class TestWhatAnEngineSaysItHasNoMore:
    def talk(self, rig: Any) -> Any:
        program = rig.scheduler.programs[ProgramId("p1")]
        return program.conversations[ConversationId("p1/main")]

    def test_its_pin_ends_once_and_it_counts_no_more(self, pinned: Any) -> None:
        assert self.talk(pinned).is_resident
        assert ended(reading(pinned, "p1/main", "unheard of")) == [UnpinReason.REFUSED]
        assert not self.talk(pinned).is_resident
        assert reading(pinned, "p1/main") == ()

    def test_what_runs_or_lives_elsewhere_is_left_alone(self, pinned: Any) -> None:
        pinned.engine("e2")
        assert reading(pinned, "p1/main", engine="e2") == ()
        assert self.talk(pinned).is_resident
        pinned.arrive("s2", program="p1")
        assert reading(pinned, "p1/main") == ()
        assert self.talk(pinned).is_resident

    def test_it_is_warmed_again_where_a_policy_wants_that(self, pinned: Any) -> None:
        pinned.policy.warm = lambda pause: Instant(0)
        commands = reading(pinned, "p1/main")
        assert [type(c) for c in commands] == [Unpin, Prefetch]


class TestToolsThatOnlyTheirRunnerSpokeOf:
    """No answer was seen to call them; the conversation that pauses waits for them."""

    @pytest.fixture
    def talked(self, rig: Any) -> Any:
        """p1 said its last word at 2 s, as far as its answer tells."""
        rig.asked = []
        rig.policy.retention = lambda pause: rig.asked.append(dict(pause.tools))
        rig.engine()
        rig.arrive("s1", at=1)
        rig.finish("s1", at=2, finish_reason="stop")
        rig.asked.clear()
        return rig

    def tell(self, rig: Any, call: str, *, program: str = "p1", talk: str | None = None) -> Any:
        event = ToolStarted(
            program=ProgramId(program),
            call_id=CallId(call),
            tool=ToolName("bash"),
            conversation=ConversationId(talk) if talk is not None else None,
        )
        return rig.push(event)

    def tools(self, rig: Any, talk: str = "p1/main") -> list[str]:
        return list(rig.scheduler.programs[ProgramId("p1")].conversations[talk].tools)

    def test_it_is_waited_for_from_now_on_and_its_pause_is_asked_about_anew(
        self, talked: Any
    ) -> None:
        self.tell(talked, "k1")
        assert talked.asked == [{"k1": "bash"}]
        talk = talked.scheduler.programs[ProgramId("p1")].conversations["p1/main"]
        assert not talk.is_over
        self.tell(talked, "k1")  # told again: known
        assert len(talked.asked) == 1

    def test_one_that_was_answered_already_wakes_nobody(self, rig: Any) -> None:
        """A report that comes twice, or late."""
        rig.engine()
        rig.arrive("s1", at=1)
        rig.finish("s1", at=2, tools={"k1": "bash"})
        rig.arrive("s2", at=3, answers=(CallId("k1"),))
        rig.finish("s2", at=4, finish_reason="stop")
        asked: list[Any] = []
        rig.policy.retention = lambda pause: asked.append(pause)
        self.tell(rig, "k1", talk="p1/main")
        self.tell(rig, "k1")
        talk = rig.scheduler.programs[ProgramId("p1")].conversations["p1/main"]
        assert talk.is_over
        assert not talk.tools
        assert asked == []

    def test_of_more_than_may_be_the_oldest_is_forgotten(self, make_rig: Any) -> None:
        rig = make_rig(tools_per_program_max=2)
        rig.engine()
        rig.arrive("s1", at=1)
        rig.finish("s1", at=2, tools={"a": "bash", "b": "bash", "c": "bash"})
        assert self.tools(rig) == ["b", "c"]
        self.tell(rig, "d")
        assert self.tools(rig) == ["c", "d"]

    def test_none_of_several_is_waited_for_once_its_conversation_goes_on(self, talked: Any) -> None:
        self.tell(talked, "k1")
        self.tell(talked, "k2")
        assert self.tools(talked) == ["k1", "k2"]
        talked.arrive("s2", at=3)
        assert self.tools(talked) == []

    def test_whoever_runs_waits_for_nothing(self, talked: Any) -> None:
        talked.arrive("s2", at=3)
        self.tell(talked, "k1")
        self.tell(talked, "k2", talk="p1/main")
        assert self.tools(talked) == []
        assert talked.asked == []

    def test_it_is_the_named_conversation_else_the_one_that_paused_last(self, talked: Any) -> None:
        talked.arrive("s2", conversation="p1/side", at=3)
        talked.finish("s2", at=4)
        self.tell(talked, "k1")
        self.tell(talked, "k2", talk="p1/main")
        self.tell(talked, "k3", talk="p1/unknown")
        self.tell(talked, "k4", program="nobody")
        assert self.tools(talked) == ["k2"]
        assert self.tools(talked, "p1/side") == ["k1", "k3"]


def test_it_expires_while_its_own_step_runs(pinned: Any) -> None:
    """Its engine's own references keep the blocks; only while a step waits nothing else does."""
    pinned.arrive("s2", at=5)
    assert ended(pinned.timer(at=12)) == [UnpinReason.EXPIRED]


@pytest.mark.parametrize(("ttl_s", "kept_s"), [(60, 20), (15, 15)])
def test_what_is_kept_for_a_step_that_waits_is_kept_for_as_long_as_that_may_wait(
    make_rig: Any, ttl_s: int, kept_s: int
) -> None:
    rig = make_rig(wait_ns_max=Nanos(20 * SECOND), pin_ttl_ns_max=Nanos(ttl_s * SECOND))
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(10 * SECOND))
    rig.engine()
    rig.arrive("s1", at=1)
    rig.finish("s1", at=2)
    rig.policy.room = lambda engine: False
    rig.arrive("s2", at=5)
    [extended] = rig.timer(at=12)
    assert isinstance(extended, Pin)
    assert extended.expires_at == (12 + kept_s) * SECOND


def test_a_beginning_that_several_keep_is_pinned_once(rig: Any) -> None:
    head = prefix("head", 40)
    rig.policy.retention = lambda pause: Retention(ttl=Nanos(SECOND), prefix=head)
    rig.engine()
    for name in ("a", "b"):
        rig.arrive(name, program=name, prefixes=(head, prefix(name, 100)))
        [pin] = rig.finish(name, tools={name: "bash"})
        assert pin.prefix == head
    assert rig.scheduler.engines["e1"].pinned_tokens == 40
