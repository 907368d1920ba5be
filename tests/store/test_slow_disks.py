"""Calls under way while what keeps their record is slow, silent, locked or full."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import signal
import sqlite3
import struct
import termios
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from agentsched.kernel import decode
from agentsched.model import StepFinished
from agentsched_bench.cluster.processes import AGENTSCHED, Member
from agentsched_bench.ports import free_port
from agentsched_bench.replay import open_journal, replay_file
from agentsched_bench.services import disk
from agentsched_bench.services.disk import LocalDisk
from agentsched_bench.services.postgres import LocalPostgres

AGENTS, TURNS = 8, 5
CALLS = AGENTS * TURNS
#: No call takes a part of this. Who waits for the disk waits until the client gives up: the disk
#: answers again only when all calls are over.
PATIENCE_S = 60.0

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def slow_disk() -> Iterator[LocalDisk]:
    if not disk.is_possible():
        pytest.skip("disks of their own take root, CAP_SYS_ADMIN and loop devices")
    with LocalDisk() as made:
        yield made


class Proxy:
    """A proxy with an engine; both keep their logs elsewhere than where the journal goes."""

    def __init__(self, logs: Path, keeps: Path, *, store: str, more: str = "") -> None:
        self.journal, self.store = keeps / "journal.ndjson", store
        self.config = logs / "agentsched.toml"
        self.config.write_text(
            f'journal = "{self.journal}"\n[store]\nurl = "{store}"\nreplica = "r1"\n'
            f'spool = "{keeps}/spool"\nflush_interval = "20ms"\n{more}'
        )
        self.engine = self._member("engine", "engine", "sim", "--speed", "50", ready="/health")
        options = ("--engine", f"e0={self.engine.url}", "--config", str(self.config))
        self.member = self._member("proxy", "serve", *options)
        self._round = 0
        self.logs = logs

    def _member(self, name: str, *arguments: str, ready: str = "/readyz") -> Member:
        port = free_port()
        command = [*AGENTSCHED, *arguments, "--port", str(port)]
        folder = self.config.parent
        return Member(name, command, port=port, folder=folder, ready=ready)

    async def __aenter__(self) -> Proxy:
        try:
            await self.engine.start()
            await self.member.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        self.member.close()
        self.engine.close()

    async def calls(self) -> None:
        """So many agents take so many turns each: every one of their calls is answered."""
        self._round += 1
        async with httpx.AsyncClient(base_url=self.member.url, timeout=PATIENCE_S) as client:
            await asyncio.gather(*(self._agent(client, number) for number in range(AGENTS)))

    async def _agent(self, client: httpx.AsyncClient, number: int) -> None:
        name = f"agent-{self._round}-{number}"
        messages = [{"role": "user", "content": f"task of {name}: " + "do it " * 40}]
        for turn in range(TURNS):
            body = {"model": "sim", "messages": messages, "max_tokens": 8, "stream": turn % 2 == 1}
            headers = {"x-agentsched-program": name}
            answer = await client.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            assert turn % 2 == 0 or answer.text.rstrip().endswith("data: [DONE]")
            messages += [{"role": "assistant", "content": "so"}, {"role": "user", "content": "on"}]

    async def is_written(self) -> None:
        """Wait until nothing waits for the database any more, in memory or in the spool."""
        wanted = ("agentsched_store_backlog 0.0", "agentsched_store_spool_bytes 0.0")
        async with httpx.AsyncClient(base_url=self.member.url, timeout=PATIENCE_S) as client:

            async def is_so() -> bool:
                metrics = (await client.get("/metrics")).text
                return all(line in metrics for line in wanted)

            await until(is_so)

    async def journal_has(self, calls: int) -> None:
        """Wait until the file tells of so many calls' ends."""

        async def is_so() -> bool:
            return self.journal.read_bytes().count(b'"event":["StepFinished"') >= calls

        await until(is_so)

    async def has_said(self, text: str) -> None:
        """Wait for a line of its log."""

        async def is_so() -> bool:
            return text in self.member.last_words()

        await until(is_so)

    async def end(self) -> None:
        """As operators end it; it writes what waits."""
        self.member.signal(signal.SIGTERM)
        assert await self.member.ended() == 0, self.member.last_words()

    async def exported(self) -> Path:
        """What the database has, as a journal."""
        file = self.logs / "exported.ndjson"
        command = (*AGENTSCHED, "db", "export", "--config", str(self.config), "-o", str(file))
        process = await asyncio.create_subprocess_exec(*command)
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
        return file


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what another process brings about."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.02)


async def holds(pipe: int, least: int) -> bool:
    """Whether more than so many bytes lie in a pipe."""
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return bool(count > least)


def answered(file: Path) -> int:
    """Calls that a journal without gaps says were answered."""
    with open_journal(file) as entries:
        return sum(isinstance(entry.event, StepFinished) for entry in entries)


@contextlib.contextmanager
def silent(where: LocalDisk) -> Iterator[None]:
    where.stop()
    try:
        yield
    finally:
        where.go_on()


@contextlib.contextmanager
def slow(where: LocalDisk) -> Iterator[None]:
    where.slow(0.4)
    try:
        yield
    finally:
        where.go_on()


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


@contextlib.contextmanager
def stopped(server: LocalPostgres) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.go_on()


@pytest.mark.parametrize("trouble", [silent, slow])
async def test_no_call_waits_for_the_disk(
    slow_disk: LocalDisk,
    tmp_path: Path,
    trouble: Callable[[LocalDisk], contextlib.AbstractContextManager[None]],
) -> None:
    """Journal, database and spool are all on it; what was not taken meanwhile is there later."""
    store = f"sqlite:///{slow_disk.folder}/agentsched.db"
    async with Proxy(tmp_path, slow_disk.folder, store=store) as proxy:
        await proxy.calls()
        with trouble(slow_disk):
            before = proxy.journal.stat().st_size
            await proxy.calls()
            if trouble is silent:
                assert proxy.journal.stat().st_size == before, "the disk took something"
        await proxy.calls()
        await proxy.is_written()
        await proxy.end()
        assert answered(proxy.journal) == answered(await proxy.exported()) == 3 * CALLS
        assert replay_file(proxy.journal) is None


async def test_a_full_disk_costs_records_and_no_call(slow_disk: LocalDisk, tmp_path: Path) -> None:
    store = f"sqlite:///{slow_disk.folder}/agentsched.db"
    async with Proxy(tmp_path, slow_disk.folder, store=store) as proxy:
        await proxy.calls()
        await proxy.is_written()
        await proxy.journal_has(CALLS)
        slow_disk.fill()
        await proxy.calls()
        await proxy.has_said("the journal cannot be written")
        slow_disk.make_room()
        await proxy.calls()
        await proxy.end()
    # The lines that are there are whole, and go on after the gap.
    _, *lines = proxy.journal.read_bytes().splitlines()
    told = [decode(line) for line in lines]
    gaps = [b.seq - a.seq for a, b in itertools.pairwise(told) if b.seq != a.seq + 1]
    assert gaps
    assert min(gaps) > 1
    done = sum(isinstance(entry.event, StepFinished) for entry in told)
    assert 2 * CALLS <= done <= 3 * CALLS


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
async def test_no_call_waits_for_a_database_that_is_not_there_for_us(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """PostgreSQL stopped in the middle of what it does; an SQLite file that another has locked."""
    file = tmp_path / "agentsched.db"
    server: LocalPostgres | None = None
    if kind == "postgresql":
        server = request.getfixturevalue("own_postgres")
    store = server.create("silent") if server is not None else f"sqlite:///{file}"
    async with Proxy(tmp_path, tmp_path, store=store) as proxy:
        await proxy.calls()
        with stopped(server) if server is not None else locked(file):
            await proxy.calls()
        await proxy.calls()
        await proxy.is_written()
        await proxy.end()
        assert answered(proxy.journal) == answered(await proxy.exported()) == 3 * CALLS


async def test_no_call_waits_for_whoever_reads_the_log(tmp_path: Path) -> None:
    """A pipe of one page, a line or more for each step, and nobody who takes them."""
    log = tmp_path / "proxy.log"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4_096)
        store, more = f"sqlite:///{tmp_path}/agentsched.db", "[telemetry]\nlog_steps = true\n"
        async with Proxy(tmp_path, tmp_path, store=store, more=more) as proxy:
            for _ in range(3):
                await proxy.calls()
            await until(lambda: holds(reader, 2_048))
            await proxy.is_written()
            await proxy.end()
            assert answered(proxy.journal) == 3 * CALLS
    finally:
        os.close(reader)
