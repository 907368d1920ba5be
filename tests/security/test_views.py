"""What of the scheduler's turns one tenant sees: all of its own, and nothing that names another."""

from __future__ import annotations

import pytest
from shorthand import arrived

from agentsched.compose import SchedulerConfig, build_policies
from agentsched.kernel import JournalEntry, Scheduler
from agentsched.model import (
    Command,
    Dispatch,
    EngineId,
    EngineLost,
    Event,
    Instant,
    Limits,
    StepArrived,
    StepFailed,
    StepId,
    TenantConfigured,
    TenantId,
    TenantLimits,
    TimerFired,
)
from agentsched.proxy.access import views
from agentsched.proxy.access.principal import OPERATOR, READ, Principal
from agentsched.proxy.access.views import OwnPart, own_parts

RED = Principal(name="key", scopes=frozenset({READ}), tenant=TenantId("red"))


def entry(event: Event, *commands: Command, seq: int = 0) -> JournalEntry:
    return JournalEntry(seq=seq, now=Instant(seq), event=event, commands=commands)


def asked(step: str, tenant: str) -> StepArrived:
    return arrived(step, f"{tenant}/p-{step}", tenant=tenant)


def failed(step: str) -> StepFailed:
    return StepFailed(step=StepId(step), reason="x")


def sent(step: str) -> Dispatch:
    return Dispatch(step=StepId(step), engine=EngineId("e1"))


@pytest.fixture
def scheduler() -> Scheduler:
    policies = build_policies(SchedulerConfig(profile="fcfs"))
    return Scheduler(policies=policies, limits=Limits())


def test_what_ran_before_its_owner_looked_is_its_own(scheduler: Scheduler) -> None:
    for step, tenant in (("r", "red"), ("b", "blue")):
        scheduler.handle(asked(step, tenant), now=Instant(0))
    own = OwnPart(RED, scheduler)
    assert own.of(entry(failed("r"))) == entry(failed("r"))
    assert own.of(entry(failed("b"))) is None


def test_what_anothers_end_brings_has_no_cause(scheduler: Scheduler) -> None:
    own = OwnPart(RED, scheduler)
    assert own.of(entry(asked("r", "red"))) is not None
    assert own.of(entry(asked("b", "blue"))) is None
    both = entry(failed("b"), sent("r"), sent("b2"))
    assert own.of(both) == entry(TimerFired(), sent("r"))


def test_settings_of_tenants_and_the_state_of_engines(scheduler: Scheduler) -> None:
    own = OwnPart(RED, scheduler)
    for tenant, is_shown in (("red", True), ("blue", False)):
        settings = TenantConfigured(tenant=TenantId(tenant), weight=1.0, limits=TenantLimits())
        assert (own.of(entry(settings)) is not None) is is_shown
    assert own.of(entry(EngineLost(engine=EngineId("e1"), reason="gone"))) is None


def test_what_is_remembered_as_ones_own_is_bounded_and_then_not_shown(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "_OWN_MAX", 2)
    own = OwnPart(RED, scheduler)
    for step in ("first", "second", "third"):
        own.of(entry(asked(step, "red")))
    assert own.of(entry(failed("first"))) is None
    assert own.of(entry(failed("third"))) == entry(failed("third"))


def test_an_operator_sees_every_turn_as_it_was(scheduler: Scheduler) -> None:
    turns = [entry(asked("b", "blue"), seq=0), entry(failed("b"), sent("r"), seq=1)]
    assert own_parts(turns, OPERATOR, scheduler) == turns
    assert own_parts(turns, RED, scheduler) == []
