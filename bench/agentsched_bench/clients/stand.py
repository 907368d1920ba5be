"""A stand for one agent: the embedded engine that plays scripts back, the proxy, and a relay.

All three listen on loopback, the first two as the commands that a user would run. The relay's notes
hold the truth, the proxy's journal what it made of it, up to its first restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import ClientSession, ClientTimeout

from agentsched.model import StepClass
from agentsched_bench.clients.command_lines import MODEL, SMALL_MODEL
from agentsched_bench.clients.readers import Recorded, Truth, judge
from agentsched_bench.clients.relay import Exchange, Relay, running_relay
from agentsched_bench.engine.playback import Script
from agentsched_bench.live.processes import running

#: Large enough for Claude Code, which asks for 32,000 tokens of output whatever it needs.
_ENGINE: Final = (
    *("--preset", "h100-8b", "--speed", "20", "--blocks", "20000", "--max-model-len", "200000"),
    *("--model", MODEL, "--model", SMALL_MODEL),
)
_UNTIL_S: Final = 90.0
_LOOK_S: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """One scheduled request: whose it was by its client's ids, and whose the proxy took it for."""

    truth: Truth
    program: str
    conversation: str
    step: int
    evidence: str


class Replaceable:
    """The proxy: it can be killed, and another started in its place and at its port."""

    def __init__(self, *, engine: str, config: Path, journal: Path) -> None:
        self.url = ""
        self._arguments = ("serve", "--engine", engine, "--config", str(config))
        self._journal = journal
        self._starts = 0
        self._pid = 0
        self._running = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Replaceable:
        await self._start("0")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._running.aclose()

    async def restart(self) -> None:
        """Kill it as a crash would, and start another."""
        os.killpg(self._pid, signal.SIGKILL)
        await self._running.aclose()
        await self._start(self.url.rpartition(":")[2])

    async def _start(self, port: str) -> None:
        self._starts += 1
        journal = self._journal if self._starts == 1 else f"{self._journal}-{self._starts}"
        ready = await self._running.enter_async_context(
            running(*self._arguments, "--port", port, "--journal", str(journal), name="the proxy")
        )
        self.url, self._pid = ready.url, ready.pid


@dataclass(slots=True, kw_only=True)
class Stand:
    """What runs, and how to look at it. `engine` and `proxy` are URLs, as is `relay.url`."""

    engine: str
    proxy: str
    relay: Relay
    restart: Callable[[], Awaitable[None]]
    home: Path
    folder: Path
    journal: Path
    http: ClientSession

    async def look(self, path: str) -> Any:
        """What the control plane says at `/agentsched/v1` and `path`."""
        async with self.http.get(f"{self.proxy}/agentsched/v1{path}") as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def programs(self) -> list[dict[str, Any]]:
        """The programs that the proxy knows, the latest first."""
        found: list[dict[str, Any]] = (await self.look("/programs"))["programs"]
        return found

    async def until(self, wanted: Callable[[Mapping[str, int]], bool]) -> None:
        """Wait until the scheduler's statistics are as wanted.

        Raises:
            TimeoutError: they did not come to be.
        """
        async with asyncio.timeout(_UNTIL_S):
            while True:
                if wanted((await self.look("/statistics"))["scheduler"]):
                    return
                await asyncio.sleep(_LOOK_S)

    async def until_held(self) -> None:
        """Wait until a step waits for an engine."""
        await self.until(lambda now: now["waiting_steps"] > 0)

    async def until_told(self, wanted: Callable[[Exchange], bool]) -> None:
        """Wait until one of the agent's requests is as wanted."""
        async with asyncio.timeout(_UNTIL_S):
            while not any(map(wanted, self.relay.exchanges)):  # noqa: ASYNC110 -- nobody tells us
                await asyncio.sleep(_LOOK_S)

    async def let_go(self, *answers: str) -> None:
        """Wait until the agent has been told all of these, and then make its tools' file `go`."""
        for text in answers:
            await self.until_told(functools.partial(_tells, text.encode()))
        (self.folder / "go").touch()

    async def until_stored(self) -> None:
        """Wait until all that the proxy was told is in its store."""
        async with asyncio.timeout(_UNTIL_S):
            while True:
                async with self.http.get(f"{self.proxy}/metrics") as answer:
                    lines = (await answer.text()).splitlines()
                if "agentsched_store_backlog 0.0" in lines:
                    return
                await asyncio.sleep(_LOOK_S)

    async def until_refused(self, model: str) -> None:
        """Wait until the agent was told to come back later with a request for `model`."""
        await self.until_told(lambda e: e.body.get("model") == model and e.status == 429)

    @contextlib.asynccontextmanager
    async def occupied(self) -> AsyncIterator[None]:
        """Keep one place of the engine busy with a request that never ends by itself."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "stay"}]}
        asked = self.http.post(
            f"{self.proxy}/v1/chat/completions", json=body, headers={"x-sim-fault": "hang"}
        )

        async def ask() -> None:
            async with asked:
                pass

        task = asyncio.create_task(ask(), name="a request that stays")
        try:
            await self.until(lambda now: now["running_steps"] > 0)
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def attributions(self) -> list[Attribution]:
        """All scheduled requests of the agent, in order of arrival at the relay."""
        found = list(self.relay.generated())
        return [
            Attribution(
                truth=truth,
                program=exchange.program,
                conversation=exchange.conversation,
                step=int(exchange.said.get("step", "0")),
                evidence=exchange.decision.get("as", ""),
            )
            for exchange, truth in zip(found, _truths(found), strict=True)
        ]

    def mistakes(self) -> list[str]:
        """Where the proxy took one program or conversation for two, or two for one."""
        seen = self.attributions()
        programs = [(row.truth.program, row.program) for row in seen]
        conversations = [
            (f"{row.truth.program} {row.truth.conversation}", row.conversation)
            for row in seen
            if row.truth.step_class in (StepClass.STEP, StepClass.SUBAGENT)
        ]
        return [*_twice("program", programs), *_twice("conversation", conversations)]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """All events of a kind in the proxy's journal, which is whole once the proxy has ended."""
        entries = map(json.loads, self.journal.read_text(encoding="utf-8").splitlines())
        found = (entry["event"] for entry in entries if "event" in entry)
        return [event for name, event in found if name == kind]

    def classes(self) -> Counter[str]:
        """How many steps of each class the proxy saw. Once the proxy has ended."""
        return Counter(arrived["step_class"] for arrived in self.events("StepArrived"))


def _tells(words: bytes, exchange: Exchange) -> bool:
    """Whether an answer had these; not whether all of it was passed on, for a client may hang up
    at the word that ends it."""
    return words in exchange.answer


def _twice(what: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Each true name should have one of ours, and the other way round."""
    ours: dict[str, set[str]] = {}
    true: dict[str, set[str]] = {}
    for truth, own in pairs:
        ours.setdefault(truth, set()).add(own)
        true.setdefault(own, set()).add(truth)
    split = [
        f"the {what} {name} was taken for {sorted(o)}" for name, o in ours.items() if len(o) > 1
    ]
    merged = [f"{sorted(t)} were taken for one {what}" for t in true.values() if len(t) > 1]
    return split + merged


def _truths(exchanges: Iterable[Exchange]) -> list[Truth]:
    requests = [
        Recorded(
            client="",
            case=exchange.label,
            number=exchange.number,
            at=0.0,
            method=exchange.method,
            path=exchange.path,
            headers=exchange.headers,
            body=exchange.body,
            truth=Truth(program=exchange.label, conversation="", step_class=StepClass.STEP),
        )
        for exchange in exchanges
    ]
    cases: dict[str, list[Recorded]] = {}
    for request in requests:
        cases.setdefault(request.case, []).append(request)
    judge(cases)
    return [request.truth for request in requests]


@contextlib.asynccontextmanager
async def standing(
    folder: Path,
    scripts: Sequence[Script],
    *,
    strips_ids: bool = False,
    keeps: Collection[str] = (),
    settings: str = "",
    has_store: bool = False,
) -> AsyncIterator[Stand]:
    """Start all three in `folder`. `settings` is the proxy's configuration, as TOML.

    `keeps` are headers that the relay leaves although it strips ids. With `has_store` the proxy
    remembers what was before a restart.
    """
    if has_store:
        settings += f'[store]\nurl = "sqlite:///{folder}/store.db"\n'
    playback, config, journal = (folder / n for n in ("scripts.jsonl", "proxy.toml", "journal"))
    playback.write_bytes(b"\n".join(map(msgspec.json.encode, scripts)))
    config.write_text(settings, encoding="utf-8")
    home, project = folder / "home", folder / "project"
    home.mkdir()
    project.mkdir()
    async with contextlib.AsyncExitStack() as stack:
        start = stack.enter_async_context
        engine = await start(
            running(
                *("engine", "sim", "--port", "0", "--playback", str(playback)),
                *_ENGINE,
                name="the embedded engine",
            )
        )
        proxy = await start(Replaceable(engine=engine.url, config=config, journal=journal))
        relay = await start(running_relay(proxy.url, strips_ids=strips_ids, keeps=keeps))
        http = await start(ClientSession(timeout=ClientTimeout(total=None)))
        yield Stand(
            engine=engine.url,
            proxy=proxy.url,
            relay=relay,
            restart=proxy.restart,
            home=home,
            folder=project,
            journal=journal,
            http=http,
        )
