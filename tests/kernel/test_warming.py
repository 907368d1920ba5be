"""Warm-ups: only with slack, within bounds, and never in the way of real work."""

from __future__ import annotations

from typing import Any

import pytest
from shorthand import arrived, at, prefetch

from agentsched.kernel.warming import WarmLedger
from agentsched.model import (
    CallId,
    EngineId,
    EngineLost,
    HintAnswered,
    HintOutcome,
    Instant,
    Prefetch,
    ProgramClosed,
    ProgramId,
    Reject,
    StepFinished,
    StepId,
    TenantConfigured,
    TenantId,
    TenantLimits,
    ToolFinished,
    ToolName,
    ToolStarted,
    Unpin,
    UnpinReason,
    Usage,
)


@pytest.fixture
def warm(rig: Any) -> Any:
    """A rig that would warm every pause at once; the engine's capacity is not known."""
    rig.policy.warm = lambda pause: Instant(0)
    rig.engine(pins=False)
    return rig


def pause(rig: Any, name: str, *, tenant: str = "t1", tokens: int = 500) -> Any:
    rig.arrive(name, program=name, tenant=tenant, tokens=tokens)
    return rig.finish(name, tools={f"k-{name}": "bash"}, prompt=tokens, output=10)


def answer(rig: Any, command: Any, outcome: HintOutcome = HintOutcome.ACCEPTED) -> Any:
    return rig.push(HintAnswered(pin=command.pin, outcome=outcome))


def account(rig: Any) -> tuple[int, int, int, int, int]:
    a = rig.scheduler.warm_accounts[EngineId("e1")]
    return a.issued, a.hit, a.wasted, a.cancelled, a.failed


def come_back(rig: Any, name: str, *, cached: int | None) -> None:
    rig.arrive(f"{name}2", program=name, tokens=600)
    usage = Usage(prompt_tokens=600, cached_tokens=cached, output_tokens=5)
    rig.push(StepFinished(step=StepId(f"{name}2"), usage=usage, finish_reason="stop"))


def test_one_at_a_time_and_the_next_when_it_is_done(warm: Any) -> None:
    [first] = pause(warm, "a")
    assert pause(warm, "b")[:-1] == ()  # dispatching b stops a's; then b's own begins
    stopped = [c for c in warm.commands if isinstance(c, Unpin)]
    assert [(c.pin, c.reason) for c in stopped] == [(first.pin, UnpinReason.YIELDED)]
    assert account(warm) == (1_020, 0, 0, 510, 0)


def test_it_waits_for_slack(warm: Any) -> None:
    warm.arrive("busy", program="busy", tokens=4_000)
    warm.arrive("a", program="a")
    assert warm.finish("a", tools={"k": "bash"}) == ()  # somebody's prompt is being computed
    [begun] = warm.start("busy")
    assert isinstance(begun, Prefetch)
    assert begun.program == "a"


def test_it_is_dropped_when_its_program_was_faster(warm: Any) -> None:
    warm.arrive("busy", program="busy", tokens=4_000)
    warm.arrive("a", program="a")
    warm.finish("a", tools={"k": "bash"})
    warm.arrive("a2", program="a")
    assert not [c for c in warm.start("busy") if isinstance(c, Prefetch)]


def test_its_own_step_ends_it_too(warm: Any) -> None:
    [begun] = pause(warm, "a")
    commands = warm.arrive("a2", program="a")
    assert [c for c in commands if isinstance(c, Unpin)] == [
        Unpin(pin=begun.pin, engine=EngineId("e1"), reason=UnpinReason.RESUMED)
    ]
    assert answer(warm, begun) == ()  # too late: it has ended once


@pytest.mark.parametrize(("cached", "hit"), [(400, 510), (255, 510), (254, 0), (100, 0)])
def test_whether_it_paid_is_seen_with_the_next_step(warm: Any, cached: int, hit: int) -> None:
    [begun] = pause(warm, "a")
    answer(warm, begun)
    warm.policy.warm = lambda pause: None
    come_back(warm, "a", cached=cached)
    assert account(warm) == (510, hit, 510 - hit, 0, 0)
    assert (warm.scheduler.engines[EngineId("e1")].warm_paid == 1.0) == bool(hit)


@pytest.mark.parametrize("moves", [False, True])
def test_an_engine_that_tells_no_cached_tokens_says_nothing_of_what_was_warmed(
    warm: Any, *, moves: bool
) -> None:
    """vLLM without --enable-prompt-tokens-details. What another engine serves was wasted still."""
    [begun] = pause(warm, "a")
    answer(warm, begun)
    warm.policy.warm = lambda pause: None
    if moves:
        warm.engine("e2", pins=False)
        warm.policy.score_of = lambda step, engine: float(engine.engine == "e2")
    come_back(warm, "a", cached=None)
    known = warm.scheduler.warm_accounts[EngineId("e1")]
    assert (known.unknown, known.wasted) == ((0, 510) if moves else (510, 0))
    assert (known.paid == 1.0) is not moves


def tool_done(name: str) -> ToolFinished:
    call = CallId(f"k-{name}")
    return ToolFinished(program=ProgramId(name), call_id=call, tool=ToolName("bash"))


@pytest.fixture
def planned(rig: Any) -> Any:
    """a's memory is gone to b's, and it is to be warmed at 10 s."""
    rig.engine(pins=False, kv_tokens=1_000)
    pause(rig, "a", tokens=500)
    pause(rig, "b", tokens=600)
    rig.policy.warm = lambda pause: at(10)
    assert rig.push(tool_done("a"), at=1) == ()
    assert rig.scheduler.next_deadline() == at(10)
    return rig


def test_none_is_sent_once_the_gate_has_closed(planned: Any) -> None:
    planned.push(ProgramClosed(program=ProgramId("b"), reason="done"), at=2)
    assert not planned.scheduler.engines[EngineId("e1")].is_contended
    assert planned.timer(at=10) == ()
    assert planned.scheduler.next_deadline() is None


def test_a_dry_run_warms_nothing(planned: Any) -> None:
    probe = arrived("x", "x", conversation="a/main")  # another's, so that it is turned away
    plan = planned.scheduler.plan(probe, now=at(10))
    assert isinstance(plan.verdict, Reject)
    talk = planned.scheduler.programs[ProgramId("a")].conversations["a/main"]
    assert not talk.is_warmed
    [begun] = planned.timer(at=10)
    assert isinstance(begun, Prefetch)


@pytest.mark.parametrize(("second", "is_asked"), [(4.9, False), (5, True)])
def test_one_that_waited_for_slack_for_long_is_asked_about_again(
    warm: Any, *, second: float, is_asked: bool
) -> None:
    warm.arrive("busy", program="busy", tokens=400_000, at=0)
    warm.arrive("a", program="a")
    warm.finish("a", tools={"k": "bash"})
    warm.policy.warm = lambda pause: at(20)
    begun = warm.start("busy", at=second)
    assert [type(command) for command in begun] == ([] if is_asked else [Prefetch])
    if is_asked:
        assert [type(command) for command in warm.timer(at=20)] == [Prefetch]


def test_no_more_are_kept_warm_than_a_tenant_is_granted_however_they_were_planned(
    make_rig: Any,
) -> None:
    rig = make_rig(warm_ups_per_engine_max=9, warm_ups_per_tenant_max=9)
    limits = TenantLimits(warm_max=1)
    rig.push(TenantConfigured(tenant=TenantId("t1"), limits=limits))
    rig.engine(pins=False)
    seconds = {"a": 11, "b": 12, "c": 13}
    rig.policy.warm = lambda pause: at(seconds[pause.program])
    for name in seconds:
        pause(rig, name)
    for second in seconds.values():
        for begun in rig.timer(at=second):
            answer(rig, begun)
    assert [c.program for c in rig.commands if isinstance(c, Prefetch)] == ["a"]


def test_an_engine_that_is_forgotten_has_no_account_any_more(
    warm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched.kernel.books._GONE_MAX", 0)
    [begun] = pause(warm, "a")
    answer(warm, begun)
    assert list(warm.scheduler.warm_accounts) == ["e1"]
    warm.push(EngineLost(engine=EngineId("e1"), reason="crash"))
    warm.engine("e2", pins=False)
    assert list(warm.scheduler.engines) == ["e2"]
    warm.push(ProgramClosed(program=ProgramId("a"), reason="done"))
    assert not warm.scheduler.warm_accounts


def test_what_a_tenant_began_counts_for_a_minute() -> None:
    """What began within a second counts as one, from its latest on: never for too short a time."""
    ledger, tenant = WarmLedger(), TenantId("t1")
    for number, second in enumerate((0, 0.5, 1, 30)):
        command = prefetch(f"w{number}", conversation=f"c{number}", tokens=100)
        ledger.begin(command, tenant=tenant, now=at(second))
    # In stretches: 200 at 0 to 0.5, 100 at 1, 100 at 30.
    for second, tokens in ((30, 400), (60.4, 400), (60.5, 200), (61, 100), (90, 0)):
        assert ledger.begun_tokens(tenant, now=at(second)) == tokens
    other = TenantId("t2")
    assert ledger.begun_tokens(other, now=at(30)) == 0
    # What is older than that is forgotten with the next one that begins, whosever it is.
    for number, second in enumerate((95, 160)):
        command = prefetch(f"v{number}", conversation=f"d{number}", tokens=7)
        ledger.begin(command, tenant=other, now=at(second))
        assert {name: len(spent) for name, spent in ledger._spent.items()} == {other: 1}


def test_what_nobody_came_for_is_waste(warm: Any) -> None:
    [begun] = pause(warm, "a")
    answer(warm, begun)
    warm.push(ProgramClosed(program=ProgramId("a"), reason="done"))
    assert account(warm) == (510, 0, 510, 0, 0)


def test_a_refusal_is_counted_and_not_repeated(warm: Any) -> None:
    [begun] = pause(warm, "a")
    assert answer(warm, begun, HintOutcome.UNSUPPORTED) == ()
    assert account(warm) == (510, 0, 0, 0, 510)


def test_it_ends_with_its_program_and_with_its_engine(warm: Any) -> None:
    [begun] = pause(warm, "a")
    [ended] = warm.push(ProgramClosed(program=ProgramId("a"), reason="done"))
    assert (ended.pin, ended.reason) == (begun.pin, UnpinReason.CLOSED)
    [again] = pause(warm, "b")
    [lost] = warm.push(EngineLost(engine=EngineId("e1"), reason="crash"))
    assert (lost.pin, lost.reason) == (again.pin, UnpinReason.ENGINE_LOST)


def test_a_tenant_has_so_many_under_way(make_rig: Any) -> None:
    rig = make_rig(warm_ups_per_engine_max=9, warm_ups_per_tenant_max=1)
    rig.engine(pins=False)
    for name, tenant in (("a", "t1"), ("b", "t1"), ("c", "t2")):
        pause(rig, name, tenant=tenant)
    rig.policy.warm = lambda pause: Instant(0)
    begun = []
    for name in "abc":
        event = ToolFinished(
            program=ProgramId(name), call_id=CallId(f"k-{name}"), tool=ToolName("bash")
        )
        begun += [c.program for c in rig.push(event) if isinstance(c, Prefetch)]
    assert begun == ["a", "c"]


def test_what_a_tenant_is_granted_is_never_more_than_what_all_are(make_rig: Any) -> None:
    rig = make_rig(warm_ups_per_engine_max=9, warm_ups_per_tenant_max=1)
    limits = TenantLimits(warm_max=5)
    rig.push(TenantConfigured(tenant=TenantId("t1"), limits=limits))
    rig.engine(pins=False)
    for name in "ab":
        pause(rig, name)
    rig.policy.warm = lambda pause: Instant(0)
    begun = []
    for name in "ab":
        event = ToolFinished(
            program=ProgramId(name), call_id=CallId(f"k-{name}"), tool=ToolName("bash")
        )
        begun += [c.program for c in rig.push(event) if isinstance(c, Prefetch)]
    assert begun == ["a"]


def test_a_done_one_makes_the_conversation_resident(make_rig: Any) -> None:
    rig = make_rig()
    rig.engine(pins=False, kv_tokens=1_000)
    for name in "abc":
        pause(rig, name)
    talk = rig.scheduler.programs[ProgramId("a")].conversations["a/main"]
    assert not talk.is_resident
    rig.policy.warm = lambda pause: Instant(0)
    event = ToolFinished(program=ProgramId("a"), call_id=CallId("k-a"), tool=ToolName("bash"))
    [begun] = rig.push(event)
    assert not talk.is_resident
    answer(rig, begun)
    assert talk.is_resident


def test_what_a_warm_up_brings_back_is_charged_by_time_again(make_rig: Any) -> None:
    """The pause goes on, and with it what its tenant pays for the memory that it keeps."""
    rig = make_rig()
    rig.engine(pins=False, kv_tokens=1_000)
    pause(rig, "a")
    pause(rig, "b", tenant="t2")  # two do not fit: a's tokens are gone
    account = rig.scheduler._books.shares.accounts()["t1"]
    assert account.idle_tokens == 0
    rig.policy.warm = lambda pause: Instant(0)
    event = ToolFinished(program=ProgramId("a"), call_id=CallId("k-a"), tool=ToolName("bash"))
    [begun] = rig.push(event)
    answer(rig, begun)
    assert account.idle_tokens == 510


def test_a_tool_that_only_its_runner_spoke_of_warms_as_well(rig: Any) -> None:
    rig.engine(pins=False)
    rig.arrive("a", program="a")
    rig.finish("a")
    call = {"program": ProgramId("a"), "call_id": CallId("told"), "tool": ToolName("bash")}
    assert rig.push(ToolStarted(**call)) == ()
    rig.policy.warm = lambda pause: Instant(0)
    [begun] = rig.push(ToolFinished(**call))
    assert isinstance(begun, Prefetch)
    rig.arrive("a2", program="a")
    assert not rig.scheduler.programs[ProgramId("a")].conversations["a/main"].tools


def test_what_is_cached_is_touched_and_is_the_latest_used(warm: Any) -> None:
    """A warm-up of what is there keeps it from being the next that is dropped."""
    warm.policy.warm = lambda pause: None
    warm.engine(pins=False, kv_tokens=1_100, prefix_cache=True)
    pause(warm, "a")
    pause(warm, "b")
    warm.policy.warm = lambda pause: Instant(0)
    done = ToolFinished(program=ProgramId("a"), call_id=CallId("k-a"), tool=ToolName("bash"))
    [touch] = warm.push(done)
    assert isinstance(touch, Prefetch)
    answer(warm, touch)
    warm.policy.warm = lambda pause: None
    pause(warm, "c")
    talks = {
        name: next(iter(warm.scheduler.programs[ProgramId(name)].conversations.values()))
        for name in ("a", "b", "c")
    }
    assert [name for name, talk in talks.items() if talk.is_resident] == ["a", "c"]
    come_back(warm, "a", cached=510)
    assert account(warm) == (510, 510, 0, 0, 0)  # it was of use
