"""What other replicas hold and serve counts here as well."""

from __future__ import annotations

from dataclasses import replace

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.kernel import Scheduler
from agentsched.model import (
    Capabilities,
    ContinuedElsewhere,
    ConversationId,
    Dispatch,
    EngineId,
    EngineLoad,
    EngineReported,
    Instant,
    PeerReported,
    ProgramId,
    ServedElsewhere,
    StepArrived,
    StepFinished,
    StepId,
    TenantId,
    Usage,
    WorkflowDeclared,
    seconds,
)

ENGINE = EngineId("e")


def made() -> Scheduler:
    scheduler = build_scheduler(SchedulerConfig(profile="agentsched"))
    capabilities = Capabilities(kv_tokens=4_000, prefix_cache=True)
    report = EngineReported(engine=ENGINE, capabilities=capabilities, load=EngineLoad())
    scheduler.handle(report, now=Instant(0))
    return scheduler


def arrived(name: str, tokens: int = 1_500) -> StepArrived:
    return StepArrived(
        step=StepId(name),
        program=ProgramId(name),
        conversation=ConversationId(f"{name}#0"),
        tenant=TenantId("t"),
        prompt_tokens=tokens,
    )


def peer(running: int, tokens: int, name: str = "other") -> PeerReported:
    return PeerReported(engine=ENGINE, peer=name, running_steps=running, resident_tokens=tokens)


def test_memory_that_another_replica_uses_is_not_free() -> None:
    alone, shared = made(), made()
    shared.handle(peer(2, 3_000), now=Instant(1))
    assert shared.world.resident_tokens(ENGINE) == 3_000
    assert any(isinstance(c, Dispatch) for c in alone.handle(arrived("a"), now=Instant(2)))
    assert not shared.handle(arrived("a"), now=Instant(2))
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
    import dataclasses

    step = dataclasses.replace(arrived("p"), agent="fix")
    scheduler.handle(step, now=Instant(seconds(1)))
    view = scheduler.world.graph(ProgramId("p"))
    assert view is not None
    assert view.steps_left() == 2.0


def finish(scheduler: Scheduler, name: str, *, prompt: int, at: int) -> None:
    usage = Usage(prompt_tokens=prompt, cached_tokens=0, output_tokens=20)
    scheduler.handle(StepFinished(step=StepId(name), usage=usage), now=Instant(at))


def test_a_conversation_that_goes_on_elsewhere_is_not_counted_here_any_more() -> None:
    scheduler = made()
    scheduler.handle(arrived("a"), now=Instant(1))
    gone = ContinuedElsewhere(program=ProgramId("a"), conversation=ConversationId("a#0"))
    ignored = scheduler.statistics().ignored_total
    scheduler.handle(gone, now=Instant(2))
    # It runs here: whoever says otherwise is late.
    assert scheduler.statistics().ignored_total == ignored + 1
    finish(scheduler, "a", prompt=1_500, at=3)
    assert scheduler.world.resident_tokens(ENGINE) == 1_520
    scheduler.handle(gone, now=Instant(4))
    assert scheduler.world.resident_tokens(ENGINE) == 0
    assert ProgramId("a") in scheduler.programs
    scheduler.check()


def test_a_conversation_comes_back_to_where_another_replica_left_it() -> None:
    scheduler = build_scheduler(SchedulerConfig(profile="agentsched"))
    capabilities = Capabilities(kv_tokens=40_000, prefix_cache=True)
    names = [EngineId(f"e{number}") for number in range(4)]
    for name in names:
        report = EngineReported(engine=name, capabilities=capabilities, load=EngineLoad())
        scheduler.handle(report, now=Instant(0))
    for number, home in enumerate(names):
        step = arrived(f"s{number}", 9_000)
        # Eager tests would be right by chance: the hash alone names some engine, too.
        commands = scheduler.handle(replace(step, home=home, home_tokens=8_900), now=Instant(1))
        sent = [c for c in commands if isinstance(c, Dispatch)]
        assert [c.engine for c in sent] == [home]
        assert scheduler.steps[StepId(f"s{number}")].missing_tokens == 100
    scheduler.check()


def test_a_home_that_nobody_knows_is_no_home() -> None:
    scheduler = made()
    step = replace(arrived("a"), home=EngineId("elsewhere"), home_tokens=1_400)
    commands = scheduler.handle(step, now=Instant(1))
    assert [c.engine for c in commands if isinstance(c, Dispatch)] == [ENGINE]
    assert scheduler.steps[StepId("a")].missing_tokens == 1_500
    scheduler.check()
