"""A start: exact where it can be, bounded, and never in the way of serving."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text, update

from agentsched.compose import SchedulerConfig, build_scheduler, journal_header
from agentsched.kernel import JournalEntry, Scheduler, decode, encode_header
from agentsched.model import (
    EngineId,
    Instant,
    Reconfigured,
    ServedElsewhere,
    StepCancelled,
    TimerFired,
    WorkflowDeclared,
)
from agentsched.model.time import MINUTE
from agentsched.store.database import Database, StoreError
from agentsched.store.fold import Fold, end_steps, fresh
from agentsched.store.image import take_image
from agentsched.store.keeper import KeeperSettings, keep, run
from agentsched.store.pruning import partitions, prune
from agentsched.store.reader import Image, read_images, read_lines, read_streams, save_image
from agentsched.store.records import Record, StreamRecord, TurnRecord, journal_record
from agentsched.store.restore import RestoreConfig, Restored, restore
from agentsched.store.tables import ImageRow, ProgramRow, StreamRow
from agentsched.store.writing import Rows, renew_lease
from agentsched_bench.replay.swarm import Swarm, SwarmShape
from agentsched_graphs.builder import GraphBuilder
from agentsched_graphs.workflow import read_workflow

CONFIG = SchedulerConfig(profile="agentsched")
WANTED = RestoreConfig(
    scheduler=CONFIG,
    engines=frozenset({EngineId("e0"), EngineId("e1")}),
    replica="r1",
    owner="new",
    timeout_s=30.0,
    events_max=100_000,
    idle_ns=60 * MINUTE,
)
SHAPE = SwarmShape(programs=8)

pytestmark = pytest.mark.slow


class Past:
    """A process that was here before: its scheduler, and its journal in the database."""

    def __init__(self, *, seed: int = 1, stream: str = "a" * 32, replica: str = "r1") -> None:
        self.stream, self.replica = stream, replica
        self.scheduler = build_scheduler(CONFIG)
        self.entries: list[JournalEntry] = []
        Swarm(self.scheduler, seed=seed, shape=SHAPE, on_turn=self.entries.append).run()
        self.epoch_ns = time.time_ns() - 10 * MINUTE - self.entries[-1].now

    @property
    def opening(self) -> StreamRecord:
        return StreamRecord(
            stream=self.stream,
            replica=self.replica,
            header=encode_header(journal_header(CONFIG)).decode(),
            epoch_ns=self.epoch_ns,
            opened_ns=self.epoch_ns,
            owner="old",
        )

    async def store(self, database: Database, entries: Sequence[JournalEntry]) -> None:
        rows: list[Record] = [self.opening]
        rows += [journal_record(e, stream=self.stream, epoch_ns=self.epoch_ns) for e in entries]
        await Rows(database).insert(rows, timeout_s=30)


@pytest.fixture
def past() -> Past:
    return Past()


def served(scheduler: Scheduler) -> Any:
    return (
        {key: (p.steps_done, p.served_tokens) for key, p in scheduler.programs.items()},
        {key: (a.steps, a.served_tokens) for key, a in scheduler.tenants.items()},
    )


async def write_on(database: Database, restored: Restored) -> None:
    """What the writer would do with a start's entries."""
    rows: list[Record] = [restored.opening] if restored.opening else []
    entries = restored.entries if restored.is_continued else []
    rows += [journal_record(e, stream=restored.stream, epoch_ns=restored.epoch_ns) for e in entries]
    await Rows(database).insert(rows, timeout_s=30)


async def test_an_empty_database_is_a_beginning(database: Database) -> None:
    restored = await restore(database, WANTED)
    assert not restored.is_continued
    assert restored.scheduler.next_seq == 0
    assert abs(restored.epoch_ns + restored.clock.now() - time.time_ns()) < 10**9


async def test_the_stream_goes_on(database: Database, past: Past) -> None:
    await past.store(database, past.entries)
    restored = await restore(database, WANTED)
    assert restored.is_continued
    assert restored.stream == past.stream
    assert served(restored.scheduler) == served(past.scheduler)
    assert restored.report.unlike == restored.report.missing == 0
    # Ten minutes have passed for it, too.
    spent = restored.clock.now() - past.entries[-1].now
    assert 9.9 * MINUTE < spent < 12 * MINUTE
    assert restored.scheduler.next_seq == len(past.entries) + len(restored.entries)


async def test_a_crash_in_the_middle(database: Database, past: Past) -> None:
    half = past.entries[: len(past.entries) // 2]
    await past.store(database, half)
    restored = await restore(database, WANTED)
    assert not restored.scheduler.steps
    ended = [e for e in restored.entries if isinstance(e.event, StepCancelled)]
    assert ended
    await write_on(database, restored)
    # The journal over the restart replays exactly: the next start finds nothing to say.
    again = await restore(database, WANTED)
    assert (again.report.unlike, again.report.missing) == (0, 0)
    assert again.entries == []
    assert served(again.scheduler) == served(restored.scheduler)


async def test_an_image_saves_the_replay(database: Database, past: Past) -> None:
    cut = len(past.entries) * 2 // 3
    await past.store(database, past.entries[:cut])
    done = await keep(database, past.stream)
    assert done.entries == cut
    assert done.image_bytes > 1_000
    await past.store(database, past.entries[cut:])
    restored = await restore(database, WANTED)
    assert restored.report.entries == len(past.entries) - cut
    assert served(restored.scheduler) == served(past.scheduler)


async def test_images_of_other_code_are_passed_over(database: Database, past: Past) -> None:
    await past.store(database, past.entries)
    await keep(database, past.stream)
    async with database.writing() as connection:
        await connection.execute(update(ImageRow).values(code="an older version"))
    assert await read_images(database, past.stream) == []
    restored = await restore(database, WANTED)
    assert restored.report.entries == len(past.entries)
    assert served(restored.scheduler) == served(past.scheduler)


async def test_a_damaged_image_is_passed_over(database: Database, past: Past) -> None:
    await past.store(database, past.entries)
    await keep(database, past.stream)
    await save_image(database, past.stream, Image(seq=len(past.entries) + 1, data=b"damaged"))
    restored = await restore(database, WANTED)
    assert restored.report.entries == 0  # the older image will do
    assert served(restored.scheduler) == served(past.scheduler)


async def test_two_images_are_kept(database: Database, past: Past) -> None:
    data = take_image(past.scheduler)
    for seq in (5, 6, 7, 6):
        await save_image(database, past.stream, Image(seq=seq, data=data))
    assert [image.seq for image in await read_images(database, past.stream)] == [7, 6]


async def test_too_much_journal_is_left_out(database: Database, past: Past) -> None:
    await past.store(database, past.entries)
    restored = await restore(database, replace(WANTED, events_max=100))
    assert restored.report.entries == 100
    assert not restored.is_continued  # for it is not what folding the old stream gives
    await write_on(database, restored)
    again = await restore(database, WANTED)
    assert again.stream == restored.stream
    assert served(again.scheduler) == served(restored.scheduler)
    assert again.report.entries == 0


async def test_what_an_image_has_is_not_left_out_with_the_journal_after_it(
    database: Database, past: Past
) -> None:
    cut = len(past.entries) // 2
    await past.store(database, past.entries[:cut])
    await keep(database, past.stream)
    half = Fold(fresh(journal_header(CONFIG)))
    half.feed_all(past.entries[:cut], until=float("inf"))
    await past.store(database, past.entries[cut:])
    restored = await restore(database, replace(WANTED, events_max=10))
    assert not restored.is_continued
    left_out = len(past.entries) - cut - 10
    assert (restored.report.entries, restored.report.missing) == (10, left_out)
    accounts = restored.scheduler.tenants
    assert any(account.steps for account in half.scheduler.tenants.values())
    for tenant, account in half.scheduler.tenants.items():
        assert accounts[tenant].steps >= account.steps
    restored.scheduler.check()


async def test_a_new_stream_has_the_turns_of_the_old_one_which_nobody_takes_over(
    database: Database, past: Past
) -> None:
    await past.store(database, past.entries)
    now = time.time_ns()
    old_turn, *turns = [
        TurnRecord(stream=past.stream, handle=n, at_ns=at, data=b"turn %d" % n)
        for n, at in enumerate((now - 61 * MINUTE, now, now))
    ]
    await Rows(database).insert([old_turn, *turns], timeout_s=30)
    restored = await restore(database, replace(WANTED, events_max=100))
    assert not restored.is_continued
    assert restored.turns == [b"turn 1", b"turn 2"]
    # Killed before it wrote a word, or started anew: clients are known as before.
    again = await restore(database, WANTED)
    assert (again.stream, again.turns) == (restored.stream, restored.turns)
    assert again.is_continued
    [left] = [s for s in await read_streams(database) if s.stream == past.stream]
    assert left.lease_until + timedelta(hours=1) <= datetime.now(UTC)
    assert not (await restore(database, replace(WANTED, replica="r2", owner="o2"))).is_continued


def workflows(restored: Restored) -> dict[str, str]:
    """Those that count, by agent: where they start."""
    graphs = restored.scheduler.graphs
    assert isinstance(graphs, GraphBuilder)
    return {agent: workflow.start for agent, workflow in graphs.learnt.workflows.items()}


async def test_edited_workflows_count_from_the_next_start_on(
    database: Database, past: Past
) -> None:
    def saying(**starts: str) -> RestoreConfig:
        texts = [{"name": n, "start": at, "steps": {at: {}}} for n, at in starts.items()]
        declared = tuple(read_workflow(text) for text in texts)
        return replace(WANTED, scheduler=replace(CONFIG, workflows=declared))

    at_run_time = '{"name": "chat", "start": "hear", "steps": {"hear": {}}}'
    past.scheduler.handle(WorkflowDeclared(text=at_run_time), now=past.entries[-1].now)
    assert past.scheduler.latest is not None
    await past.store(database, [*past.entries, past.scheduler.latest])
    first = await restore(database, saying(fix="look", test="run"))
    assert workflows(first) == {"chat": "hear", "fix": "look", "test": "run"}
    assert served(first.scheduler) == served(past.scheduler)
    again = await restore(database, saying(fix="look", test="run"))
    assert (again.stream, workflows(again)) == (first.stream, workflows(first))
    edited = await restore(database, saying(fix="edit"))
    assert edited.stream != again.stream
    assert workflows(edited) == {"chat": "hear", "fix": "edit"}


async def test_there_is_an_end_to_the_time(database: Database, past: Past) -> None:
    await past.store(database, past.entries)
    restored = await restore(database, replace(WANTED, timeout_s=0.0))
    assert not restored.is_continued
    assert restored.report.entries < len(past.entries)
    assert not restored.scheduler.steps
    restored.scheduler.check()


async def test_missing_entries_are_bridged(database: Database, past: Past) -> None:
    third = len(past.entries) // 3
    await past.store(database, [*past.entries[:third], *past.entries[third + 15 :]])
    restored = await restore(database, WANTED)
    assert restored.is_continued
    assert restored.report.missing == 15
    await write_on(database, restored)
    again = await restore(database, WANTED)
    assert served(again.scheduler) == served(restored.scheduler)


async def test_another_profile_goes_on_with_what_was(database: Database, past: Past) -> None:
    await past.store(database, past.entries)
    wanted = replace(WANTED, scheduler=SchedulerConfig(profile="fcfs"))
    restored = await restore(database, wanted)
    assert restored.is_continued
    assert restored.scheduler.policies.profile == "fcfs"
    assert isinstance(restored.entries[-1].event, Reconfigured)
    assert served(restored.scheduler)[1] == served(past.scheduler)[1]
    await write_on(database, restored)
    again = await restore(database, wanted)
    assert again.entries == []
    assert again.scheduler.policies.profile == "fcfs"


async def test_engines_that_are_gone_are_lost(database: Database, past: Past) -> None:
    await past.store(database, past.entries)
    restored = await restore(database, replace(WANTED, engines=frozenset({EngineId("e1")})))
    assert not restored.scheduler.engines[EngineId("e0")].is_alive


async def test_who_died_lately_is_taken_over(database: Database) -> None:
    past = Past(replica="other")
    await past.store(database, past.entries)
    await renew_lease(database, past.stream, owner="old")
    assert not (await restore(database, WANTED)).is_continued  # it lives
    await renew_lease(database, past.stream, owner="old", seconds=-60)
    restored = await restore(database, replace(WANTED, replica="r2"))
    assert restored.stream == past.stream
    [found] = [s for s in await read_streams(database) if s.stream == past.stream]
    assert (found.replica, found.owner) == ("r2", "new")
    assert not await renew_lease(database, past.stream, owner="old")
    # Nobody else gets it, though two ask at once.
    others = [replace(WANTED, replica=f"x{n}", owner=f"o{n}") for n in range(3)]
    found_by = await asyncio.gather(*(restore(database, other) for other in others))
    assert not any(r.is_continued for r in found_by)


async def test_one_orphan_has_one_heir(database: Database) -> None:
    past = Past(replica="other")
    await past.store(database, past.entries)
    await renew_lease(database, past.stream, owner="old", seconds=-60)
    wanted = [replace(WANTED, replica=f"x{n}", owner=f"o{n}") for n in range(3)]
    found_by = await asyncio.gather(*(restore(database, one) for one in wanted))
    assert sorted(r.is_continued for r in found_by) == [False, False, True]


async def test_who_died_long_ago_is_left_in_peace(database: Database) -> None:
    past = Past(replica="other")
    await past.store(database, past.entries)
    await renew_lease(database, past.stream, owner="old", seconds=-7_200)
    assert not (await restore(database, WANTED)).is_continued


async def test_a_header_of_another_version_is_a_beginning(database: Database, past: Past) -> None:
    await past.store(database, past.entries)
    async with database.writing() as connection:
        await connection.execute(update(StreamRow).values(header='{"journal": 99}'))
    assert not (await restore(database, WANTED)).is_continued


async def test_the_keeper_draws_what_people_ask_for(database: Database, past: Past) -> None:
    # What another replica served is that one's to tell.
    other = ServedElsewhere(
        tenant=next(iter(past.scheduler.tenants)), uncached_tokens=900, output_tokens=70
    )
    served_here = {key: (a.steps, a.output_tokens) for key, a in past.scheduler.tenants.items()}
    past.scheduler.handle(other, now=past.entries[-1].now)
    assert past.scheduler.latest is not None
    past.entries.append(past.scheduler.latest)
    await past.store(database, past.entries)
    settings = KeeperSettings(
        url=database.url.render_as_string(hide_password=False).replace("+aiosqlite", ""),
        keep_ns=7 * 24 * 60 * MINUTE,
        turns_keep_ns=60 * MINUTE,
    )
    [done] = await run(settings)
    opened = {e.event.program for e in past.entries if hasattr(e.event, "agent")}
    assert done.programs == len(opened)

    async def count(table: str) -> int:
        async with database.reading() as connection:
            found = await connection.execute(text(f"SELECT count(*) FROM {table}"))
            return int(found.scalar_one())

    assert await count("programs") == len(opened)
    assert await count("graphs") == len(opened)
    assert await count("learned") == 2
    async with database.reading() as connection:
        rows = await connection.execute(
            text("SELECT tenant, steps, output_tokens FROM tenant_usage")
        )
        usage = {tenant: (steps, tokens) for tenant, steps, tokens in rows}
    assert usage == served_here
    [again] = await run(settings)
    assert again.entries == 0
    assert await count("programs") == len(opened)


def kept(database: Database, past: Past) -> KeeperSettings:
    return KeeperSettings(
        url=database.url.render_as_string(hide_password=False).replace("+aiosqlite", ""),
        stream=past.stream,
        keep_ns=7 * 24 * 60 * MINUTE,
        turns_keep_ns=60 * MINUTE,
    )


async def test_rows_follow_programs_over_several_runs(database: Database, past: Past) -> None:
    """A program's last step ends, and the program itself, runs after it was heard of last."""
    size = len(past.entries) // 12
    for start in range(0, len(past.entries), size):
        await past.store(database, past.entries[start : start + size])
        await run(kept(database, past))
    whole = Fold(fresh(journal_header(CONFIG)))
    whole.feed_all(past.entries, until=float("inf"))
    async with database.reading() as connection:
        asked = text("SELECT program, steps_done, output_tokens, closed_at FROM programs")
        found = await connection.execute(asked)
        rows = {p: (steps, tokens, closed is None) for p, steps, tokens, closed in found}
    assert rows == {
        key: (p.steps_done, p.output_tokens, key in whole.scheduler.programs)
        for key, p in whole.seen.items()
    }


async def test_who_is_forgotten_without_a_word_is_closed_unless_another_replica_went_on(
    database: Database, past: Past
) -> None:
    half = past.entries[: len(past.entries) // 2]
    fold = Fold(fresh(journal_header(CONFIG)))
    fold.feed_all(half, until=float("inf"))
    await past.store(database, [*half, *end_steps(fold.scheduler, now=fold.now)])
    await run(kept(database, past))
    idle = sorted(fold.scheduler.programs)
    assert len(idle) > 1
    async with database.writing() as connection:
        later = datetime.now(UTC) + timedelta(hours=1)
        row = update(ProgramRow).where(ProgramRow.program == idle[0])
        await connection.execute(row.values(last_at=later))
    fold.scheduler.handle(TimerFired(), now=Instant(fold.now + 120 * MINUTE))
    assert fold.scheduler.latest is not None
    await past.store(database, [fold.scheduler.latest])
    await run(kept(database, past))
    async with database.reading() as connection:
        asked = text("SELECT program FROM programs WHERE closed_at IS NULL")
        still = set((await connection.execute(asked)).scalars())
    assert not fold.scheduler.programs
    assert still == {idle[0]}


async def test_where_no_image_can_be_made_the_rest_is_kept_up(
    database: Database, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Past(seed=2, stream="b" * 32, replica="r2")
    old.epoch_ns -= 9 * 24 * 60 * MINUTE
    await old.store(database, old.entries)
    await past.store(database, past.entries)

    def fail(scheduler: Scheduler) -> bytes:
        raise StoreError("a policy has no image")

    monkeypatch.setattr("agentsched.store.keeper.take_image", fail)
    settings = KeeperSettings(
        url=database.url.render_as_string(hide_password=False).replace("+aiosqlite", ""),
        stream=past.stream,
        keep_ns=7 * 24 * 60 * MINUTE,
        turns_keep_ns=60 * MINUTE,
    )
    [done] = await run(settings)
    assert (done.programs, done.image_bytes) == (8, 0)
    assert await read_images(database, past.stream) == []
    assert [lines async for lines in read_lines(database, old.stream)] == []


async def test_time_goes_on_from_an_image_where_the_clock_was_set_back(
    database: Database, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    await past.store(database, past.entries)
    await keep(database, past.stream)  # nothing came after it
    an_hour_ago = time.time_ns() - 60 * MINUTE
    monkeypatch.setattr("agentsched.store.restore.time.time_ns", lambda: an_hour_ago)
    restored = await restore(database, WANTED)
    assert restored.clock.now() >= past.entries[-1].now
    assert all(entry.now >= past.entries[-1].now for entry in restored.entries)


async def test_old_days_are_forgotten(database: Database) -> None:
    past = Past()
    past.epoch_ns -= 3 * 24 * 60 * MINUTE
    await past.store(database, past.entries)
    await keep(database, past.stream)
    fresh = Past(seed=2, stream="b" * 32, replica="r2")
    fresh.epoch_ns -= 24 * 60 * MINUTE  # yesterday, whatever the hour is
    await fresh.store(database, fresh.entries)
    days = await partitions(database)
    for stream in (past.stream, fresh.stream):
        await renew_lease(database, stream, owner="old")
    done = await prune(database, keep=timedelta(days=2), turns_keep=timedelta(hours=1))
    assert done.entries == len(past.entries)
    assert done.programs == 8
    left = await partitions(database)
    assert left == [day for day in days if day >= (datetime.now(UTC) - timedelta(days=2)).date()]
    lines = [line async for some in read_lines(database, fresh.stream) for line in some]
    assert [decode(line.encode()) for line in lines] == fresh.entries
    # The image is of before; a start of the pruned stream still has it.
    restored = await restore(database, replace(WANTED, owner="newer"))
    assert served(restored.scheduler)[1] == served(past.scheduler)[1]
    gone = await prune(database, keep=timedelta(0), turns_keep=timedelta(0))
    assert gone.streams == 0  # they are held
    await renew_lease(database, past.stream, owner="newer", seconds=-3 * 24 * 3_600)
    gone = await prune(database, keep=timedelta(days=1), turns_keep=timedelta(0))
    assert gone.streams == 1
