"""The feed alone: what it tells, to whom, and what it costs the scheduler's turns."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from live import eventually
from shorthand import arrived, at, finished, reported

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.dashboard.feed import Feed
from agentsched.dashboard.shapes import Frame
from agentsched.model import (
    EngineDrained,
    EngineId,
    EngineLost,
    EngineUnanswered,
    Event,
    Limits,
    ProgramClosed,
    ProgramId,
    ProgramOpened,
    ServedElsewhere,
    StepCancelled,
    StepId,
    TenantConfigured,
    TenantId,
    TimerFired,
    seconds,
)

BASH = [{"type": "function", "function": {"name": "bash"}}]
FIXED = {"pin": {"name": "fixed"}}


@pytest.fixture
def feed(board: Any) -> Feed:
    return feed_of(board)


def feed_of(board: Any) -> Feed:
    made = Feed(
        board.gateway.host.scheduler,
        members=board.gateway.fleet.members.values,
        is_draining=lambda: False,
    )
    board.gateway.host.watch(made)
    return made


def beat(feed: Feed, board: Any) -> None:
    feed.beat(now=board.gateway.host.now())


def frames(watcher: Any) -> list[Frame]:
    found = []
    while not watcher.frames.empty():
        found.append(msgspec.json.decode(watcher.frames.get_nowait(), type=Frame))
    return found


async def test_only_what_changed(feed: Feed, board: Any) -> None:
    watcher = feed.watch()
    await board.chat("a", "x")
    await board.chat("b", "x")
    beat(feed, board)
    [first] = frames(watcher)
    assert (first.is_full, len(first.programs)) == (True, 2)
    beat(feed, board)
    await board.chat("b", "x", "well", "y")
    beat(feed, board)
    [quiet, busy] = frames(watcher)
    assert (quiet.programs, quiet.decisions) == ((), ())
    assert [row.program for row in busy.programs] == ["red/b"]
    assert busy.programs[0].steps == 2


async def test_who_reads_slowly_gets_everything_again(feed: Feed, board: Any) -> None:
    watcher = feed.watch()
    for number in range(10):
        await board.chat(f"p{number}", "x")
        beat(feed, board)
    early = frames(watcher)
    assert len(early) == 4
    beat(feed, board)
    [late] = frames(watcher)
    assert late.is_full
    assert len(late.programs) == 10


async def test_since_when_an_engine_stands_still(feed: Feed, board: Any) -> None:
    host, engine = board.gateway.host, board.engines[0]
    host.feed(EngineDrained(engine=EngineId("gpu-1"), is_draining=True))
    watchers = feed.watch(), feed.watch("red")
    engine.hold()
    asked = asyncio.create_task(board.chat("a", "x"))
    await engine.until(lambda load: load.waiting == 1)
    looked_at = host.now()
    host.feed(EngineUnanswered(engine=EngineId("gpu-0"), since=looked_at, reason="no answer"))
    beat(feed, board)
    for watcher in watchers:
        [frame] = frames(watcher)
        still, well = frame.engines
        assert still.silent_since is not None
        assert 0 < still.silent_since <= round(looked_at / 1e9, 3) <= frame.now
        assert well.silent_since is None
    engine.release()
    await asked
    beat(feed, board)
    assert [row.silent_since for row in frames(watchers[0])[-1].engines] == [None, None]


async def test_a_tenant_sees_its_own(feed: Feed, board: Any) -> None:
    everyone, red, nobody = feed.watch(), feed.watch("red"), feed.watch("")
    await board.chat("a", "x", tools=BASH)
    await board.chat("secret", "x", tenant="blue", tools=BASH)
    feed.sample(now=board.gateway.host.now())
    beat(feed, board)
    board.gateway.host.feed(ProgramClosed(program=ProgramId("blue/secret"), reason="released"))
    await board.chat("hidden", "x", tenant="blue")
    beat(feed, board)
    assert any("secret" in frame.gone[0] for frame in frames(everyone) if frame.gone)
    own = frames(red)
    assert [row.program for frame in own for row in frame.programs] == ["red/a"]
    assert own[0].overview.steps_total == 1
    assert own[0].tenants[0].tenant == "red"
    for watched, is_red in ((own, True), (frames(nobody), False)):
        text = str(watched)
        assert "blue" not in text
        assert "secret" not in text
        assert "hidden" not in text
        assert "gpu-0.test" not in text  # where engines are
        assert ("red" in text) == is_red


async def test_a_tenants_pins_are_told_in_every_frame(start: Any) -> None:
    async with start(count=1, blocks=30, policies=FIXED) as board:
        feed = feed_of(board)
        red, blue = feed.watch("red"), feed.watch("blue")
        await board.chat("a", "hello", tools=BASH)
        beat(feed, board)
        beat(feed, board)
        assert board.gateway.host.scheduler.statistics().pins == 1
        assert [frame.overview.pins for frame in frames(red)] == [1, 1]
        assert [frame.overview.pins for frame in frames(blue)] == [0, 0]


async def test_a_quiet_tenant_beside_many(
    feed: Feed, board: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched.dashboard.feed.PROGRAMS_MAX", 2)
    monkeypatch.setattr("agentsched.dashboard.feed._TENANTS_MAX", 2)
    for program in ("a", "b"):
        await board.chat(program, "x")
    for number in range(3):
        for step in range(3):
            await board.chat(f"p{step}", "y", tenant=f"t{number}")
    watcher = feed.watch("red")
    beat(feed, board)
    beat(feed, board)
    first, second = frames(watcher)
    assert {row.program for row in first.programs} == {"red/a", "red/b"}
    for frame in (first, second):
        assert frame.programs_total == 2
        assert [(row.tenant, row.steps) for row in frame.tenants] == [("red", 2)]
        assert (frame.overview.steps_total, frame.overview.prompt_tokens_total > 0) == (2, True)
    assert feed.full(now=board.gateway.host.now()).programs_total == 11


async def test_what_is_not_told_to_a_tenant_is_no_zero(start: Any) -> None:
    async with start(count=1, limits={"running_steps_per_engine_max": 1}) as board:
        feed, host, [engine] = feed_of(board), board.gateway.host, board.engines
        watched = feed.watch("red"), feed.watch("blue")
        engine.hold()
        asked = [asyncio.create_task(board.chat("a", "x"))]
        await engine.until(lambda load: load.running + load.waiting == 1)
        asked.append(asyncio.create_task(board.chat("b", "x")))
        await eventually(lambda: host.scheduler.statistics().waiting_steps == 1)
        feed.sample(now=host.now())
        beat(feed, board)
        [own], [others] = map(frames, watched)
        assert own.overview.oldest_wait_s is not None
        assert others.overview.oldest_wait_s is None
        for frame in (own, others):
            [row], told, [moment] = frame.engines, frame.overview, frame.history
            assert (row.running_steps, row.pins, row.held_tokens) == (None, None, None)
            assert (row.pinned_tokens, row.wanted_tokens) == (None, None)
            assert (told.rejected_total, told.retried_total) == (None, None)
            assert (told.yielded_total, told.policy_errors_total) == (None, None)
            assert (moment.waiting_steps, moment.running_steps, moment.pins) == (None, None, None)
        engine.release()
        await asyncio.gather(*asked)


@pytest.mark.parametrize("turn", ["an arrival", "a timer"])
def test_a_rejection_is_its_own_programs(turn: str) -> None:
    """Whoever waits too long is told no in any turn, also in that of another one's arrival."""
    limits = Limits(running_steps_per_engine_max=1, wait_ns_max=seconds(10))
    scheduler = build_scheduler(SchedulerConfig(profile="fcfs", limits=limits))
    made = Feed(scheduler, members=lambda: (), is_draining=lambda: False)

    def take(event: Event, time_s: float) -> None:
        scheduler.handle(event, now=at(time_s))
        assert scheduler.latest is not None
        made.write(scheduler.latest)

    take(reported("e0"), 0)
    take(arrived("r1", "red/a", tenant="red"), 0)  # runs
    take(arrived("b1", "blue/a", tenant="blue"), 1)  # is held
    is_timer = turn == "a timer"
    take(TimerFired() if is_timer else arrived("r2", "red/b", tenant="red"), 12)
    [no] = [d for d in made.full(now=at(12)).decisions if d.kind == "reject"]
    assert (no.step, no.program, no.tenant) == ("b1", "blue/a", "blue")
    for tenant, is_told in (("red", False), ("blue", True)):
        shown = made.full(now=at(12), tenant=tenant).decisions
        assert (no in shown) is is_told


async def test_an_ejection_is_no_operators_deed(feed: Feed, board: Any) -> None:
    health, engine = board.gateway.fleet.health, EngineId("gpu-0")
    engines = board.gateway.host.scheduler.engines
    await eventually(lambda: sum(known.is_up for known in engines.values()) == 2)
    for _ in range(20):
        health.failed(engine, "status 500")
    assert health.ejected == [engine]
    health.drained(EngineId("gpu-1"), is_draining=True)
    decisions = feed.full(now=board.gateway.host.now()).decisions
    assert [(d.engine, d.reason) for d in decisions if d.kind == "drain"] == [
        ("gpu-0", "by its breaker, or to be removed"),
        ("gpu-1", "by an operator"),
    ]


async def test_operators_deeds_are_told(feed: Feed, board: Any) -> None:
    host, engine = board.gateway.host, EngineId("gpu-0")
    host.feed(EngineDrained(engine=engine, is_draining=True))
    host.feed(EngineDrained(engine=engine, is_draining=False))
    host.feed(TenantConfigured(tenant=TenantId("red"), weight=2.0))
    host.feed(EngineLost(engine=engine, reason="refused"))
    kinds = [d.kind for d in feed.full(now=host.now()).decisions]
    assert kinds == ["drain", "undrain", "tenant", "lost"]


async def test_bounded(feed: Feed, board: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsched.dashboard.feed.PROGRAMS_MAX", 20)
    host = board.gateway.host
    watcher = feed.watch()
    for number in range(50):
        key = ProgramId(f"p{number}")
        host.feed(ProgramOpened(program=key, tenant=TenantId("red")))
    beat(feed, board)
    [frame] = frames(watcher)
    assert (len(frame.programs), frame.programs_total) == (20, 50)
    assert frame.programs[0].program == "p49"


async def test_shares_follow_weights(feed: Feed, board: Any) -> None:
    host = board.gateway.host
    host.feed(TenantConfigured(tenant=TenantId("red"), weight=3.0))
    for engine in board.engines:
        engine.hold()
    asked = [asyncio.create_task(board.chat("a", "x", tenant=t)) for t in ("red", "blue")]
    async with asyncio.timeout(60):
        while len(host.scheduler.steps) < 2:
            await board.get("/overview")
    rows = {r.tenant: r.entitled for r in feed.full(now=host.now()).tenants}
    assert rows == {"red": 0.75, "blue": 0.25}
    for engine in board.engines:
        engine.release()
    await asyncio.gather(*asked)


async def test_tokens_of_other_replicas_are_charged_and_not_shown_as_served_here(
    feed: Feed, board: Any
) -> None:
    host = board.gateway.host
    await board.chat("a", "x")
    [before] = feed.full(now=host.now()).tenants
    assert before.output_tokens > 0
    host.feed(
        ServedElsewhere(
            tenant=TenantId("red"), uncached_tokens=5_000, output_tokens=700, waits=True
        )
    )
    frame = feed.full(now=host.now())
    [after] = frame.tenants
    served = [(r.uncached_tokens, r.output_tokens, r.served_tokens) for r in (before, after)]
    assert served[0] == served[1]
    assert sum(served[0][:2]) == served[0][2]
    assert after.charged_tokens >= before.charged_tokens + 5_000
    assert frame.overview.cached_tokens_total == before.prompt_tokens - before.uncached_tokens
    listed = (await board.get("/tenants"))["tenants"][0]
    assert (listed["output_tokens"], listed["served_tokens"]) == served[0][1:]


def test_what_a_client_did_not_wait_for_takes_nothing_from_the_part_that_was_cached() -> None:
    """It is charged as computed, and nobody knows how long its prompt was."""
    scheduler = build_scheduler(SchedulerConfig(profile="fcfs"))
    feed = Feed(scheduler, members=tuple, is_draining=lambda: False)
    scheduler.handle(reported("e"), now=at(0))
    scheduler.handle(arrived("s1", "p", tokens=1_000), now=at(1))
    scheduler.handle(finished("s1", prompt=1_000, cached=900), now=at(2))
    scheduler.handle(arrived("s2", "q", tokens=5_000), now=at(3))
    scheduler.handle(StepCancelled(step=StepId("s2"), reason="client went away"), now=at(900))
    for tenant in (None, "t"):
        frame = feed.full(now=at(901), tenant=tenant)
        assert [row.uncached_tokens for row in frame.tenants] == [5_100]
        told = frame.overview
        assert (told.prompt_tokens_total, told.cached_tokens_total) == (1_000, 900)


def test_what_no_engine_said_to_be_cached_is_told_apart() -> None:
    scheduler = build_scheduler(SchedulerConfig(profile="fcfs"))
    feed = Feed(scheduler, members=tuple, is_draining=lambda: False)
    scheduler.handle(reported("e"), now=at(0))
    scheduler.handle(arrived("s1", "p", tokens=1_000), now=at(1))
    scheduler.handle(finished("s1", prompt=1_000), now=at(2))
    # vLLM tells with a flag, and leaves the number out where nothing was cached.
    scheduler.handle(reported("e", cached_tokens=True), now=at(3))
    scheduler.handle(arrived("s2", "p", tokens=1_500), now=at(4))
    scheduler.handle(finished("s2", prompt=1_500), now=at(5))
    scheduler.handle(arrived("s3", "p", tokens=2_000), now=at(6))
    scheduler.handle(finished("s3", prompt=2_000, cached=1_500), now=at(7))
    for tenant in (None, "t"):
        frame = feed.full(now=at(8), tenant=tenant)
        [row] = frame.programs
        assert (row.prompt_tokens, row.cached_tokens, row.untold_tokens) == (4_500, 1_500, 1_000)
        told = frame.overview
        assert (told.prompt_tokens_total, told.untold_tokens_total) == (4_500, 1_000)


def calls(work: Callable[[], None]) -> int:
    """How many functions a piece of work calls, Python's own with them: its cost on any machine."""
    count = 0

    def note(frame: object, kind: str, argument: object) -> None:
        nonlocal count
        count += kind in ("call", "c_call")

    before = sys.getprofile()
    gc.disable()  # what other tests left to be told of a collection is no cost of this
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


async def test_nobody_watches_at_little_cost(feed: Feed, board: Any) -> None:
    """The feed rides on every turn of the scheduler, so it must be cheap."""
    await board.chat("a", "x")
    scheduler = board.gateway.host.scheduler
    bare = [e for e in scheduler.story(ProgramId("red/a")) if not e.commands]
    assert bare

    def write() -> None:
        for entry in bare:
            feed.write(entry)

    first = calls(write)
    for _ in range(2_000):
        write()
    assert calls(write) <= first  # what was told before costs nothing
    assert first <= 40 * len(bare)
