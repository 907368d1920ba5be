"""Folding a journal gives the scheduler that wrote it; an image is that scheduler."""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from shorthand import NEVER, arrived, finished, reported

from agentsched.compose import SchedulerConfig, build_scheduler, journal_header
from agentsched.kernel import JournalEntry, Scheduler, decode, encode
from agentsched.model import (
    Capabilities,
    EngineDrained,
    EngineId,
    EngineLoad,
    EngineLost,
    EngineReported,
    Event,
    Instant,
    Limits,
    PeerReported,
    ProgramClosed,
    ProgramId,
    Reconfigured,
    ServedElsewhere,
    StepArrived,
    StepCancelled,
    StepId,
    TenantConfigured,
    TenantId,
    TimerFired,
)
from agentsched.store.database import StoreError
from agentsched.store.fold import Fold, end_steps, fresh, settle
from agentsched.store.image import code_mark, read_image, take_image
from agentsched_bench.replay.swarm import Swarm, SwarmShape
from agentsched_policies.order.program_fcfs import ProgramFcfs

CONFIG = SchedulerConfig(profile="agentsched")
SEEDS = (1, 2, 3)


def recorded(
    seed: int, *, config: SchedulerConfig = CONFIG
) -> tuple[Scheduler, list[JournalEntry]]:
    """A scheduler after a swarm of random programs, and its journal, through its byte form."""
    scheduler = build_scheduler(CONFIG)
    entries: list[JournalEntry] = []
    Swarm(scheduler, seed=seed, shape=SwarmShape(), on_turn=entries.append).run()
    return scheduler, [decode(encode(entry)) for entry in entries]


def state(scheduler: Scheduler) -> Any:
    """What can be asked of a scheduler."""
    programs, engines = scheduler.programs.items(), scheduler.engines.items()
    return (
        scheduler.statistics(),
        {key: (p.steps_done, p.served_tokens, p.last_at) for key, p in programs},
        {key: (a.steps, a.served_tokens, a.weight) for key, a in scheduler.tenants.items()},
        {key: (e.cost.samples, e.is_alive, e.running_tokens) for key, e in engines},
        list(scheduler.steps),
        scheduler.next_deadline(),
        scheduler.next_seq,
    )


def go_on(scheduler: Scheduler, entries: list[JournalEntry]) -> Iterator[Any]:
    return (scheduler.handle(entry.event, now=entry.now) for entry in entries)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("part", [0.0, 0.3, 0.8])
def test_an_image_and_the_journal_since_are_the_scheduler(seed: int, part: float) -> None:
    original, entries = recorded(seed)
    cut = int(part * len(entries))
    fold = Fold(fresh(journal_header(CONFIG)))
    assert fold.feed_all(entries[:cut], until=float("inf"))
    second = Fold(read_image(take_image(fold.scheduler)))
    # Entries that the image holds are passed over.
    assert second.feed_all(entries[max(0, cut - 10) :], until=float("inf"))
    assert second.report.entries == len(entries) - cut
    assert (second.report.missing, second.report.unlike) == (0, 0)
    assert state(second.scheduler) == state(original)
    second.scheduler.check()


@pytest.mark.slow
def test_an_image_decides_as_the_original() -> None:
    """Also what policies and graphs learnt is in it: the rest of the journal comes out the same."""
    _, entries = recorded(7)
    half = len(entries) // 2
    fold = Fold(fresh(journal_header(CONFIG)))
    fold.feed_all(entries[:half], until=float("inf"))
    copy = read_image(take_image(fold.scheduler))
    rest = entries[half:]
    assert list(go_on(copy, rest)) == [entry.commands for entry in rest]
    assert list(go_on(fold.scheduler, rest)) == [entry.commands for entry in rest]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_missing_entries_cost_the_steps_that_were_live(seed: int) -> None:
    _, entries = recorded(seed)
    fold = Fold(fresh(journal_header(CONFIG)))
    third = len(entries) // 3
    fold.feed_all([*entries[:third], *entries[third + 20 :]], until=float("inf"))
    assert fold.report.missing == 20
    assert not fold.report.is_whole
    assert fold.scheduler.next_seq == len(entries)
    assert not fold.scheduler.steps  # none is left over that nobody will ever end
    fold.scheduler.check()


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("part", [0.2, 0.5, 0.7])
def test_settling_ends_what_ran_and_is_part_of_the_journal(seed: int, part: float) -> None:
    _, entries = recorded(seed)
    known = entries[: int(part * len(entries))]
    fold = Fold(fresh(journal_header(CONFIG)))
    fold.feed_all(known, until=float("inf"))
    served = {key: a.served_tokens for key, a in fold.scheduler.tenants.items()}
    now = Instant(fold.now + 10_000)
    more = settle(fold.scheduler, wanted=CONFIG, engines=[EngineId("e0")], now=now)
    assert not fold.scheduler.steps
    # What engines did of the steps that ended is charged; nothing is forgotten.
    assert all(fold.scheduler.tenants[key].served_tokens >= n for key, n in served.items())
    alive = {e.engine for e in fold.scheduler.engines.values() if e.is_alive}
    assert alive <= {EngineId("e0")}
    assert [e.seq for e in more] == list(range(len(known), len(known) + len(more)))
    again = Fold(fresh(journal_header(CONFIG)))
    again.feed_all([*known, *(decode(encode(e)) for e in more)], until=float("inf"))
    assert state(again.scheduler) == state(fold.scheduler)
    assert again.report.unlike == 0


def test_a_retry_after_the_restart_keeps_its_place() -> None:
    scheduler = build_scheduler(SchedulerConfig(profile="fcfs"))
    arrived = arrival("s1")
    scheduler.handle(arrived, now=Instant(1_000))
    assert scheduler.steps[StepId("s1")].arrived_at == 1_000
    end_steps(scheduler, now=Instant(2_000))
    copy = read_image(take_image(scheduler))
    copy.handle(arrival("s2", retries="s1"), now=Instant(3_000))
    assert copy.steps[StepId("s2")].arrived_at == 1_000


def arrival(step: str, *, retries: str | None = None) -> StepArrived:
    from agentsched.model import ConversationId, ProgramId

    return StepArrived(
        step=StepId(step),
        program=ProgramId("p"),
        conversation=ConversationId("p#0"),
        tenant=TenantId("t"),
        prompt_tokens=10,
        retries=StepId(retries) if retries else None,
    )


def test_a_policy_that_failed_costs_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it raised is of no class that an image may hold."""

    def broken(*_: object, **__: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(ProgramFcfs, "rank", broken)
    scheduler = build_scheduler(SchedulerConfig(profile="fcfs"))
    scheduler.handle(reported("e"), now=Instant(0))
    scheduler.handle(arrived("s"), now=Instant(1))
    assert isinstance(scheduler.latest_policy_error, ValueError)
    copy = read_image(take_image(scheduler))
    assert copy.policy_errors == scheduler.policy_errors == {"order.rank": 1}
    assert state(copy) == state(scheduler)


def test_another_configuration_is_an_event() -> None:
    scheduler = build_scheduler(SchedulerConfig(profile="fcfs"))
    wanted = SchedulerConfig(profile="passthrough", limits=Limits(programs_max=7))
    [entry] = settle(scheduler, wanted=wanted, engines=(), now=Instant(5))
    assert isinstance(entry.event, Reconfigured)
    assert scheduler.policies.profile == "passthrough"
    assert scheduler.limits.programs_max == 7
    assert settle(scheduler, wanted=wanted, engines=(), now=Instant(6)) == []
    again = fresh(journal_header(SchedulerConfig(profile="fcfs")))
    Fold(again).feed(decode(encode(entry)))
    assert again.policies.profile == "passthrough"


def restarted(events: list[Event], *, engines: list[str]) -> Scheduler:
    """A scheduler that took these in, in the next process: settled, and journalled exactly."""
    config = SchedulerConfig(profile="fcfs")
    scheduler = build_scheduler(config)
    entries = []
    for number, event in enumerate(events):
        scheduler.handle(event, now=Instant(number))
        assert scheduler.latest is not None
        entries.append(scheduler.latest)
    copy = read_image(take_image(scheduler))
    known = [EngineId(engine) for engine in engines]
    entries += settle(copy, wanted=config, engines=known, now=Instant(len(events)))
    assert settle(copy, wanted=config, engines=known, now=Instant(len(events))) == []
    again = Fold(fresh(journal_header(config)))
    again.feed_all([decode(encode(entry)) for entry in entries], until=float("inf"))
    assert state(again.scheduler) == state(copy)
    assert again.report.unlike == 0
    copy.check()
    return copy


def drained(*, is_lasting: bool = False) -> EngineDrained:
    return EngineDrained(engine=EngineId("e"), is_draining=True, is_lasting=is_lasting)


REMOVED = EngineLost(engine=EngineId("e"), reason="removed")


@pytest.mark.parametrize("more", [[], [REMOVED]], ids=["ejected", "removed"])
def test_an_ejection_or_a_removal_ends_with_its_process(more: list[Event]) -> None:
    scheduler = restarted([reported("e"), drained(), *more], engines=["e"])
    scheduler.handle(reported("e"), now=Instant(9))  # the new process's first look
    assert scheduler.engines[EngineId("e")].is_up


def test_an_operators_drain_outlasts_its_process() -> None:
    scheduler = restarted([reported("e"), drained(is_lasting=True)], engines=["e"])
    scheduler.handle(reported("e"), now=Instant(9))
    assert scheduler.engines[EngineId("e")].is_draining
    back = EngineDrained(engine=EngineId("e"), is_draining=False)
    scheduler.handle(back, now=Instant(10))
    assert scheduler.engines[EngineId("e")].is_up
    scheduler.handle(drained(), now=Instant(11))
    assert not scheduler.engines[EngineId("e")].is_drain_lasting


@pytest.mark.parametrize("last", [drained(), REMOVED], ids=["drained", "lost"])
def test_an_engine_that_went_comes_back_undrained(last: Event) -> None:
    """Where an operator drained it before he took it away."""
    events = [reported("e"), drained(is_lasting=True), last]
    scheduler = restarted(events, engines=[] if last is REMOVED else ["e"])
    assert not scheduler.engines[EngineId("e")].is_draining


def test_what_others_said_to_a_process_is_not_believed_by_the_next() -> None:
    e, t = EngineId("e"), TenantId("t")
    heard: list[Event] = [
        reported("e", kv_tokens=4_000),
        PeerReported(engine=e, peer="gone", running_steps=2, resident_tokens=3_900),
        ServedElsewhere(tenant=t, uncached_tokens=5, output_tokens=0, waits=True),
        ServedElsewhere(tenant=TenantId("u"), uncached_tokens=7, output_tokens=0),
    ]
    scheduler = restarted(heard, engines=["e"])
    assert scheduler.engines[e].peer_steps == 0
    assert scheduler.world.resident_tokens(e) == 0
    assert not any(account.waits_elsewhere for account in scheduler.tenants.values())
    assert scheduler.tenants[t].uncached_tokens == 5  # what was served stays served


def test_the_ends_of_steps_and_programs_are_news_of_these_programs() -> None:
    """Also where their beginnings were folded before."""
    scheduler = build_scheduler(SchedulerConfig(profile="fcfs"))
    p, q = ProgramId("p"), ProgramId("q")
    began: list[Event] = [reported("e"), arrived("s", "p"), arrived("r", "q")]
    for event in began:
        scheduler.handle(event, now=Instant(1))

    def folded(*events: Event, at: int) -> Fold:
        copy = read_image(take_image(scheduler))
        fold = Fold(copy)
        for one in events:
            scheduler.handle(one, now=Instant(at))
            assert scheduler.latest is not None
            fold.feed(scheduler.latest)
        return fold

    [told] = folded(finished("s"), at=2).changed()
    assert (told.program, told.steps_done) == (p, 1)
    fold = folded(ProgramClosed(program=p, reason="said so"), finished("r"), at=3)
    assert {one.program: one.steps_done for one in fold.changed()} == {p: 1, q: 1}
    assert set(fold.scheduler.programs) == {q}
    assert folded(TimerFired(), at=4).changed() == []
    fold = folded(TimerFired(), at=NEVER)  # it is forgotten for its age, without a word
    assert [one.program for one in fold.changed()] == [q]
    assert not fold.scheduler.programs


def test_there_is_an_end_to_the_time() -> None:
    _, entries = some_turns()
    fold = Fold(fresh(journal_header(CONFIG)))
    assert not fold.feed_all(entries, until=0.0)
    assert fold.report.entries == 1
    assert not fold.report.is_whole


def some_turns() -> tuple[Scheduler, list[JournalEntry]]:
    scheduler = build_scheduler(CONFIG)
    entries = []
    events: list[Event] = [
        TenantConfigured(tenant=TenantId("t"), weight=2.0),
        EngineReported(engine=EngineId("e0"), capabilities=Capabilities(), load=EngineLoad()),
        arrival("s1"),
        StepCancelled(step=StepId("s1"), reason="gone"),
    ]
    for number, event in enumerate(events):
        scheduler.handle(event, now=Instant(number))
        assert scheduler.latest is not None
        entries.append(scheduler.latest)
    return scheduler, entries


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.getpid, ())


class _Reach:
    """Takes the road from a bound method to everything that its module has imported."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self._parts = (scheduler, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return (getattr, self._parts)


@pytest.mark.parametrize(
    "content",
    [
        _Evil(),
        _Reach(build_scheduler(CONFIG), "__class__"),
        _Reach(build_scheduler(CONFIG), "_books"),
        StoreError,
        eval,
        getattr,
        pickle.loads,
        {"not": "a scheduler"},
    ],
    ids=lambda content: type(content).__name__,
)
def test_an_image_holds_nothing_but_schedulers(content: object) -> None:
    with pytest.raises(StoreError, match="image"):
        read_image(zlib.compress(pickle.dumps(content, protocol=5)))


@pytest.mark.parametrize("data", [b"", b"\x00", zlib.compress(b"garbage"), zlib.compress(b"")])
def test_garbage_is_no_image(data: bytes) -> None:
    with pytest.raises(StoreError, match="not an image"):
        read_image(data)


def test_what_cannot_be_read_back_is_not_taken() -> None:
    scheduler, _ = some_turns()
    scheduler.stranger = _Evil()  # type: ignore[attr-defined]  # as a stranger's policy may be
    with pytest.raises(StoreError, match="may not hold"):
        take_image(scheduler)


def test_the_mark_is_of_this_code() -> None:
    assert code_mark() == code_mark()
    assert len(code_mark()) == 32
