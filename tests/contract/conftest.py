"""The engines that the contract suite runs against, all of the same size, and a way to ask them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec
import pytest

from agentsched.model import EngineId, EngineLoad
from agentsched.ports import Engine, EngineAnswer, EngineRequest
from agentsched_adapters import FakeEngine, VllmEngine
from agentsched_adapters.fake import FakeSpeed
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig, Scheduling
from agentsched_bench.engine.server import ServerConfig, running_engine

SLOTS = 4
BLOCK_SIZE = 32
BLOCKS = 257  # vLLM keeps one for itself
CONTEXT_MAX = 4_096
_DEADLINE_S = 30.0
_READ_EVERY_S = 0.01
_HEADERS = (("content-type", "application/json"),)
Headers = Sequence[tuple[str, str]]
#: Asks for something under a name, with a priority.
Ask = Callable[[str, int], Awaitable[None]]
Prompt = Callable[[str, int], list[int]]
T = TypeVar("T")


class SlotsFreed(AssertionError):
    """The streams that take all slots ended before what they were there for had happened."""


@dataclass(slots=True)
class Client:
    """Asks an engine through its port, as the data plane does."""

    engine: Engine
    model: str

    async def open(self, target: str, body: bytes | None, headers: Headers = ()) -> EngineAnswer:
        method = "GET" if body is None else "POST"
        return await self.engine.send(
            EngineRequest(
                method=method,
                target=target,
                headers=(*_HEADERS, *headers) if body is not None else (),
                body=body or b"",
            )
        )

    async def raw(
        self, target: str, body: bytes | None = None, headers: Headers = ()
    ) -> tuple[int, bytes]:
        answer = await self.open(target, body, headers)
        try:
            return answer.status, await answer.read()
        finally:
            await answer.aclose()

    async def post(self, target: str, headers: Headers = (), **fields: Any) -> tuple[int, Any]:
        asked = msgspec.json.encode({"model": self.model} | fields)
        status, body = await self.raw(target, asked, headers)
        return status, msgspec.json.decode(body)

    async def events(self, target: str, **fields: Any) -> list[Any]:
        """The decoded `data:` lines of a stream, without the final mark."""
        fields = {"model": self.model, "stream": True} | fields
        status, body = await self.raw(target, msgspec.json.encode(fields))
        assert status == 200, body
        lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
        return [msgspec.json.decode(line) for line in lines if line != b"[DONE]"]

    async def generate(self, prompt: list[int], *, tokens: int = 1, **fields: Any) -> Any:
        """A plain completion of exactly `tokens` tokens; its usage."""
        status, answer = await self.post(
            "/v1/completions", prompt=prompt, max_tokens=tokens, ignore_eos=True, **fields
        )
        assert status == 200, answer
        return answer["usage"]

    async def cached(self, prompt: list[int]) -> int:
        """How many tokens of a prompt the engine has; asking makes them recent."""
        usage = await self.generate(prompt)
        cached: int = usage["prompt_tokens_details"]["cached_tokens"]
        return cached

    async def stream(self, prompt: list[int], *, tokens: int, **fields: Any) -> EngineAnswer:
        """An open stream of `tokens` tokens. Must be closed."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "stream": True}
        body |= {"ignore_eos": True, **fields}
        answer = await self.open("/v1/completions", msgspec.json.encode(body))
        assert answer.status == 200
        return answer

    async def until(self, condition: Callable[[EngineLoad], bool]) -> EngineLoad:
        """Read the gauges until they are so; what they said then."""
        load = EngineLoad()
        try:
            async with asyncio.timeout(_DEADLINE_S):
                # The engine has no event to wait on, only gauges to read. Not without a pause:
                # thousands of wake-ups a second starve others on some kernels (CONTRIBUTING.md).
                while not condition(load := await self.engine.load()):  # noqa: ASYNC110
                    await asyncio.sleep(_READ_EVERY_S)
        except TimeoutError:
            raise AssertionError(f"the gauges stayed at {load}") from None
        return load

    async def while_taken(self, condition: Callable[[EngineLoad], bool]) -> None:
        """Read the gauges until they are so, as long as every slot is taken.

        Raises:
            SlotsFreed: the long streams ended first, so that the rest of the test would be about
                another situation (the machine stood still for longer than a stream lasts).
        """
        load = await self.until(lambda load: condition(load) or (load.running or 0) < SLOTS)
        if not condition(load):
            raise SlotsFreed(f"the long streams ended first: {load}")

    async def in_time(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What an attempt gives whose long streams lasted; three attempts at most."""
        for _ in range(2):
            with contextlib.suppress(SlotsFreed):
                return await attempt()
        return await attempt()

    @asynccontextmanager
    async def all_slots_taken(self, prompt: Prompt) -> AsyncIterator[list[EngineAnswer]]:
        """Long streams in all slots; on the way out, an engine with nothing to do."""
        streams = [await self.stream(prompt(f"slot {i}", 8), tokens=1_900) for i in range(SLOTS)]
        try:
            try:
                await self.until(lambda load: load.running == SLOTS)
            except AssertionError as missed:
                raise SlotsFreed(f"never seen with all slots taken: {missed}") from None
            yield streams
        finally:
            for stream in streams:
                await stream.aclose()
            await self.until(lambda load: load.running == 0 and load.waiting == 0)

    async def one_left(self) -> None:
        """One of those that took all slots is gone, and the others still run.

        Raises:
            SlotsFreed: others came to their end meanwhile, so nothing can be said.
        """
        load = await self.until(lambda load: (load.running or 0) < SLOTS)
        if load.running != SLOTS - 1:
            raise SlotsFreed(f"{load.running} are left of {SLOTS}")

    async def served_order(self, prompt: Prompt, ask: Ask | None = None) -> list[str]:
        """A less urgent request, a more urgent one, and then one free slot: who goes first?

        `ask` is how each is asked, by its name and priority; by itself, as the proxy does it.
        """

        async def usual(name: str, priority: int) -> None:
            # An engine that would refuse a priority is not sent one.
            fields = self.engine.admission_fields(priority=priority, session=name)
            await self.generate(prompt(name, 8), tokens=4, **fields)

        return await self.in_time(lambda: self._served_order(prompt, ask or usual))

    async def _served_order(self, prompt: Prompt, ask_one: Ask) -> list[str]:
        order: list[str] = []

        async def ask(name: str, priority: int) -> None:
            await ask_one(name, priority)
            order.append(name)

        async with self.all_slots_taken(prompt) as streams:
            asked = [asyncio.create_task(ask("later", 5))]
            try:
                await self.while_taken(lambda load: load.waiting == 1)
                asked.append(asyncio.create_task(ask("sooner", 1)))
                await self.while_taken(lambda load: load.waiting == 2)
                await streams[0].aclose()
            finally:
                await asyncio.gather(*asked)
        return order


def some_tokens(name: str, count: int) -> list[int]:
    """`count` ordinary tokens that no other name gives."""
    noise = hashlib.shake_128(name.encode()).digest(2 * count)
    return [100 + int.from_bytes(noise[i : i + 2], "big") % 3_900 for i in range(0, 2 * count, 2)]


@pytest.fixture
def prompt(request: pytest.FixtureRequest) -> Prompt:
    """Prompts of given lengths that no other test uses, so that engines can be shared."""
    return lambda name, count: some_tokens(f"{request.node.nodeid} {name}", count)


def _fake(*, priority: bool) -> FakeEngine:
    return FakeEngine(
        EngineId("fake"),
        models=("tiny",),
        slots=SLOTS,
        blocks=BLOCKS - 1,
        block_size=BLOCK_SIZE,
        context_max=CONTEXT_MAX,
        speed=FakeSpeed(decode=2_000.0),
        priority=priority,
    )


def _embedded(*, priority: bool) -> ServerConfig:
    sizes = EngineConfig.from_preset(preset("cpu-2core"))
    engine = replace(
        sizes,
        blocks=BLOCKS,
        block_size=BLOCK_SIZE,
        max_num_seqs=SLOTS,
        max_model_len=CONTEXT_MAX,
        scheduling=Scheduling.PRIORITY if priority else Scheduling.FCFS,
    )
    return ServerConfig(engine=engine, models=("tiny",))


VLLM = pytest.param("vllm", marks=pytest.mark.vllm)


@pytest.fixture(params=["fake", "embedded", VLLM])
def kind(request: pytest.FixtureRequest) -> str:
    """Every engine."""
    return str(request.param)


@pytest.fixture
def address(kind: str, request: pytest.FixtureRequest) -> str:
    """Where vLLM listens; empty for the others. (Not async: it starts vLLM.)"""
    return str(request.getfixturevalue("vllm_url")) if kind == "vllm" else ""


@pytest.fixture
async def client(kind: str, address: str) -> AsyncIterator[Client]:
    """A probed engine with priority order that has nothing to do."""
    async with _opened(kind, address, priority=True) as client:
        yield client


@pytest.fixture
def fcfs_address(kind: str, vllm_slot: Any, request: pytest.FixtureRequest) -> str:
    """As `address`, of a vLLM under first come, first served, without development routes."""
    if kind != "vllm":
        return ""
    shared = request.getfixturevalue("vllm_config")
    return str(vllm_slot.url(replace(shared, scheduling="fcfs", dev_routes=False)))


@pytest.fixture
async def fcfs_client(kind: str, fcfs_address: str) -> AsyncIterator[Client]:
    """A probed engine that takes requests as they come."""
    async with _opened(kind, fcfs_address, priority=False) as client:
        yield client


@asynccontextmanager
async def _opened(kind: str, address: str, *, priority: bool) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        engine: Engine
        if kind == "fake":
            engine = _fake(priority=priority)
        else:
            if kind == "embedded":
                running = running_engine(_embedded(priority=priority))
                address = (await stack.enter_async_context(running)).url
            engine = VllmEngine(EngineId(kind), address)
        stack.push_async_callback(engine.aclose)
        client = Client(engine=engine, model="tiny")
        await engine.probe()
        await client.until(lambda load: load.running == 0 and load.waiting == 0)
        yield client
