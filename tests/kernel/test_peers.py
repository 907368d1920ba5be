"""What other replicas hold and serve counts here as well."""

from __future__ import annotations

from typing import Any

import pytest
from shorthand import arrived, finished, reported

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import Scheduler
from agentsched.model import (
    ContinuedElsewhere,
    ConversationId,
    Dispatch,
    EngineId,
    Instant,
    PeerReported,
    ProgramId,
    ServedElsewhere,
    StepArrived,
    StepId,
    TenantId,
    WorkflowDeclared,
    seconds,
)

ENGINE = EngineId("e")


def made(*engines: str, kv_tokens: int = 4_000) -> Scheduler:
    scheduler = build_scheduler(SchedulerConfig(profile="agentsched"))
    for engine in engines or (ENGINE,):
        report = reported(engine, kv_tokens=kv_tokens, prefix_cache=True)
        scheduler.handle(report, now=Instant(0))
    return scheduler


def first(name: str, *, tokens: int = 1_500, **more: Any) -> StepArrived:
    """The first step of a program of its own."""
    return arrived(name, name, conversation=f"{name}#0", tokens=tokens, **more)


def peer(running: int, tokens: int, name: str = "other") -> PeerReported:
    return PeerReported(engine=ENGINE, peer=name, running_steps=running, resident_tokens=tokens)


def test_memory_that_another_replica_uses_is_not_free() -> None:
    alone, shared = made(), made()
    shared.handle(peer(2, 3_000), now=Instant(1))
    assert shared.world.resident_tokens(ENGINE) == 3_000
    assert any(isinstance(c, Dispatch) for c in alone.handle(first("a"), now=Instant(2)))
    assert not shared.handle(first("a"), now=Instant(2))
    # The other replica is done, or gone: what waits goes at once.
    commands = shared.handle(peer(0, 0), now=Instant(3))
    assert [c.step for c in commands if isinstance(c, Dispatch)] == ["a"]
    assert shared.engines[ENGINE].peer_steps == 0
    shared.check()


def test_peers_add_up_and_each_tells_its_whole_state() -> None:
    scheduler = made()
    for said in (peer(1, 500, "x"), peer(2, 700, "y"), peer(3, 100, "x")):
        scheduler.handle(said, now=Instant(1))
    assert scheduler.engines[ENGINE].peer_steps == 5
    assert scheduler.engines[ENGINE].peer_tokens == 800


def test_service_elsewhere_is_charged_here() -> None:
    scheduler = made()
    event = ServedElsewhere(tenant=TenantId("t"), uncached_tokens=100, output_tokens=20)
    scheduler.handle(event, now=Instant(1))
    scheduler.handle(event, now=Instant(2))
    assert scheduler.tenants[TenantId("t")].served_tokens == 240
    assert scheduler.world.served(TenantId("t")) == 240


def test_a_workflow_declared_at_run_time() -> None:
    scheduler = made()
    text = '{"name": "fix", "start": "a", "steps": {"a": {"next": ["b"]}, "b": {}}}'
    scheduler.handle(WorkflowDeclared(text=text), now=Instant(1))
    scheduler.handle(WorkflowDeclared(text="nonsense"), now=Instant(1))
    scheduler.handle(first("p", agent="fix"), now=Instant(seconds(1)))
    view = scheduler.world.graph(ProgramId("p"))
    assert view is not None
    assert view.steps_left() == 2.0


def test_a_conversation_that_goes_on_elsewhere_is_not_counted_here_any_more() -> None:
    scheduler = made()
    scheduler.handle(first("a"), now=Instant(1))
    gone = ContinuedElsewhere(program=ProgramId("a"), conversation=ConversationId("a#0"))
    ignored = scheduler.statistics().ignored_total
    scheduler.handle(gone, now=Instant(2))
    # It runs here: whoever says otherwise is late.
    assert scheduler.statistics().ignored_total == ignored + 1
    scheduler.handle(finished("a", prompt=1_500, cached=0, output=20), now=Instant(3))
    assert scheduler.world.resident_tokens(ENGINE) == 1_520
    scheduler.handle(gone, now=Instant(4))
    assert scheduler.world.resident_tokens(ENGINE) == 0
    assert ProgramId("a") in scheduler.programs
    scheduler.check()


def test_a_conversation_comes_back_to_where_another_replica_left_it() -> None:
    names = [f"e{number}" for number in range(4)]
    scheduler = made(*names, kv_tokens=40_000)
    for number, home in enumerate(names):
        step = first(f"s{number}", tokens=9_000, home=home, home_tokens=8_900)
        # Eager tests would be right by chance: the hash alone names some engine, too.
        commands = scheduler.handle(step, now=Instant(1))
        sent = [c for c in commands if isinstance(c, Dispatch)]
        assert [c.engine for c in sent] == [home]
        assert scheduler.steps[StepId(f"s{number}")].missing_tokens == 100
    scheduler.check()


def test_a_home_that_nobody_knows_is_no_home() -> None:
    scheduler = made()
    step = first("a", home="elsewhere", home_tokens=1_400)
    commands = scheduler.handle(step, now=Instant(1))
    assert [c.engine for c in commands if isinstance(c, Dispatch)] == [ENGINE]
    assert scheduler.steps[StepId("a")].missing_tokens == 1_500
    scheduler.check()


def test_a_new_program_goes_where_the_others_left_room() -> None:
    scheduler = made("a", "b")
    full = PeerReported(engine=EngineId("a"), peer="other", running_steps=2, resident_tokens=3_900)
    scheduler.handle(full, now=Instant(1))
    for number in range(2):
        commands = scheduler.handle(first(f"n{number}"), now=Instant(2 + number))
        assert [c.engine for c in commands if isinstance(c, Dispatch)] == ["b"]
    scheduler.check()


@pytest.mark.parametrize(("theirs", "engine"), [(2_000, "b"), (2_400, "a")])
def test_an_engine_of_others_is_tried_once_where_they_left_room(theirs: int, engine: str) -> None:
    """Of 4,000 tokens 3,800 may be used; a prompt of 1,500 beside them finds its place, or not."""
    scheduler = made("a", "b")
    scheduler.handle(first("n0"), now=Instant(1))
    scheduler.handle(finished("n0", prompt=1_500, cached=0, output=20), now=Instant(2))
    said = PeerReported(engine=EngineId("b"), peer="other", running_steps=1, resident_tokens=theirs)
    scheduler.handle(said, now=Instant(3))
    commands = scheduler.handle(first("n1"), now=Instant(4))
    assert [c.engine for c in commands if isinstance(c, Dispatch)] == [engine]
