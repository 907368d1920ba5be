"""Many clients on one proxy, in any order: turns, hang-ups, retries, releases, drains and faults.

The machine decides what happens; the two engines are real enough to be late. Whatever was done, the
scheduler's books are right after each step, and in the end nothing is left over.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from agentsched.config import Config
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import RunningEngine, ServerConfig, running_engine
from agentsched_bench.fuzz.raw import RawAnswer, ask
from agentsched_bench.fuzz.rig import PATIENCE_S, Rig, chat, post, rigged, until

pytestmark = pytest.mark.slow
CLIENTS = st.integers(0, 4)
ENGINES = st.sampled_from(["e0", "e1"])
FAULTS = ("status=503", "status=500;retry-after=1", "cut-after=2", "eof-after=2", "error-event",
          "delay=0.03", "slow=3", "hang")  # fmt: skip
TOOL = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object"}}}
#: All that a step may end in here: an answer, no engine, a full queue, a broken or silent engine.
GOOD_STATUSES = (200, 409, 429, 500, 502, 503, 504)


@dataclass
class Client:
    """One agent: what it has said and heard, and the requests that are under way."""

    turns: list[dict[str, Any]] = field(default_factory=list)
    program: str = ""
    last: bytes = b""
    calls: set[asyncio.Task[RawAnswer]] = field(default_factory=set)


@pytest.fixture(scope="module")
def engines(start: Callable[[Any], Any]) -> dict[str, RunningEngine]:
    sizes = replace(preset("h100-8b"), max_model_len=2_048, blocks=400, max_num_seqs=4)
    config = ServerConfig(engine=EngineConfig.from_preset(sizes), speed=100)
    return {name: start(running_engine(config)) for name in ("e0", "e1")}


@pytest.fixture(scope="module")
def rig(start: Callable[[Any], Any], engines: dict[str, RunningEngine]) -> Rig:
    config = {
        "port": 0,
        "engines": [{"url": engine.url, "id": name} for name, engine in engines.items()],
        "policies": {"pin": {"name": "fixed", "params": {"ttl_s": 0.2}}},
        "limits": {"running_steps_per_engine_max": 2, "ready_steps_max": 4, "max_wait": "2s"},
        "upstream": {
            "first_byte_timeout": "1s",
            "idle_timeout": "1s",
            "probe_interval": "50ms",
            "probe_timeout": "500ms",
        },
    }
    built: Rig = start(rigged(Config.model_validate(config)))
    return built


class Clients(RuleBasedStateMachine):
    """See the module."""

    def __init__(
        self, rig: Rig, engines: dict[str, RunningEngine], run: Callable[[Any], Any]
    ) -> None:
        super().__init__()
        self._rig = rig
        self._engines = engines
        self._run = run
        self._count = 0
        self._clients = [Client() for _ in range(5)]
        self._all: list[asyncio.Task[RawAnswer]] = []

    @rule(
        at=CLIENTS,
        tokens=st.sampled_from([1, 20, 300]),
        is_stream=st.booleans(),
        calls_tools=st.booleans(),
    )
    def turn(self, at: int, tokens: int, is_stream: bool, calls_tools: bool) -> None:
        """Say something, and do not wait for the answer."""
        client = self._clients[at]
        self._count += 1
        turns = [*client.turns, {"role": "user", "content": f"question {at} {self._count}"}]
        named: dict[str, Any] = {"program_id": f"fuzz-{id(self)}-{at}"} if at % 2 else {}
        if calls_tools:
            named |= {"tools": [TOOL], "tool_choice": "required"}
        client.last = chat(turns, max_tokens=tokens, stream=is_stream, **named)
        self._run(self._send(client, turns))

    @rule(at=CLIENTS)
    def again(self, at: int) -> None:
        """The same bytes once more, whether the first are answered or not."""
        client = self._clients[at]
        if client.last:
            self._run(self._send(client, None))

    @rule(at=CLIENTS)
    def hear(self, at: int) -> None:
        """Wait for all answers."""
        self._run(self._hear(self._clients[at]))

    @rule(at=CLIENTS)
    def hang_up(self, at: int) -> None:
        """Break all connections."""

        async def cancel() -> None:
            for call in self._clients[at].calls:
                call.cancel()

        self._run(cancel())

    @rule(at=CLIENTS)
    def release(self, at: int) -> None:
        """Close the program by the control plane, whatever it does."""
        client = self._clients[at]
        if client.program:
            path = f"/agentsched/v1/programs/{client.program.replace('%', '%25')}/release"
            assert self._run(self._rig.ask(post(path, b""))).status in (200, 404)

    @rule(engine=ENGINES, verb=st.sampled_from(["drain", "undrain"]))
    def drain(self, engine: str, verb: str) -> None:
        path = f"/agentsched/v1/engines/{engine}/{verb}"
        assert self._run(self._rig.ask(post(path, b""))).status == 200

    @rule(engine=ENGINES, kind=st.sampled_from(FAULTS), count=st.integers(1, 3))
    def fault(self, engine: str, kind: str, count: int) -> None:
        self._control(engine, "/sim/faults", {"kind": kind, "count": count})

    @rule(engine=ENGINES, verb=st.sampled_from(["crash", "hang", "resume", "resume"]))
    def outage(self, engine: str, verb: str) -> None:
        self._control(engine, f"/sim/{verb}", {})

    @rule()
    def wait(self) -> None:
        """Let the loop go on for a little."""
        self._run(asyncio.sleep(0.01))

    @invariant()
    def sound(self) -> None:
        self._rig.gateway.host.scheduler.check()

    def teardown(self) -> None:
        for name in self._engines:
            self._control(name, "/sim/resume", {})
            self.drain(name, "undrain")
        for client in self._clients:
            self._run(self._hear(client))
        self._run(self._rig.check())
        for client in self._clients:
            self.release(self._clients.index(client))
        self._run(self._at_rest())

    async def _send(self, client: Client, turns: list[dict[str, Any]] | None) -> None:
        async def call(request: bytes) -> RawAnswer:
            answer = await self._rig.ask(request)
            self._learn(client, turns, answer)
            return answer

        task = asyncio.create_task(call(client.last))
        client.calls.add(task)
        await asyncio.sleep(0)

    def _learn(self, client: Client, turns: list[dict[str, Any]] | None, answer: RawAnswer) -> None:
        client.program = answer.header("x-agentsched-program") or client.program
        is_whole = answer.header("content-type").startswith("application/json")
        if turns is not None and answer.status == 200 and is_whole:
            message = json.loads(answer.body)["choices"][0]["message"]
            results = [
                {"role": "tool", "tool_call_id": call["id"], "content": "done"}
                for call in message.get("tool_calls") or ()
            ]
            client.turns = [*turns, message, *results][-12:]

    async def _hear(self, client: Client) -> None:
        calls, client.calls = client.calls, set()
        for heard in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(heard, asyncio.CancelledError):
                continue
            if isinstance(heard, BaseException):
                raise heard
            assert heard.status in GOOD_STATUSES, heard
            assert b"internal_error" not in heard.body, heard

    def _control(self, engine: str, path: str, body: dict[str, Any]) -> None:
        parts = urlsplit(self._engines[engine].url)
        request = post(path, json.dumps(body).encode())
        told = ask(str(parts.hostname), int(parts.port or 0), request, timeout_s=PATIENCE_S)
        assert self._run(told).status == 200

    async def _at_rest(self) -> None:
        """Engines idle and up, no fault left, no pin left."""
        for engine in self._engines.values():
            parts = urlsplit(engine.url)
            clear = b"DELETE /sim/faults HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
            await ask(str(parts.hostname), int(parts.port or 0), clear, timeout_s=PATIENCE_S)
        scheduler = self._rig.gateway.host.scheduler
        await until(lambda: len(self._rig.gateway.fleet.up()) == len(self._engines))
        await until(lambda: all(not len(e.driver.model) for e in self._engines.values()))
        await until(lambda: all(not e.pinned_tokens for e in scheduler.engines.values()))
        for engine in self._engines.values():
            engine.driver.model.check()
        await self._rig.converse()
        await self._rig.check()


def test_any_order(rig: Rig, engines: dict[str, RunningEngine], run: Callable[[Any], Any]) -> None:
    def machine() -> Clients:
        return Clients(rig, engines, run)

    # It takes any maker of machines, whatever its signature says.
    run_state_machine_as_test(  # type: ignore[no-untyped-call, unused-ignore]
        machine,  # type: ignore[arg-type]
        settings=settings(settings.get_profile("fuzz-rare"), stateful_step_count=30),
    )
