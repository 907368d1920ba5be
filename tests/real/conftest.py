"""What the end-to-end tests share: an engine, direct and behind the proxy, and equal answers.

The same tests run on the embedded engine and, marked `vllm`, on a real one.
"""

from __future__ import annotations

import asyncio
import operator
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from anyio.from_thread import start_blocking_portal

from agentsched.config import Config
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.serve import running
from agentsched_adapters.prometheus import total
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig as SimConfig
from agentsched_bench.engine.server import ServerConfig, running_engine

#: What differs between any two answers of one engine.
_VARYING = frozenset(
    {"id", "created", "created_at", "completed_at", "item_id", "call_id", "sequence_number"}
)
#: vLLM puts this into the last chunk of a stream. The proxy always asks for the usage, whose chunk
#: is then the last, and takes that chunk out again where the client did not ask: this goes with it.
_LOST_WITH_USAGE = "system_fingerprint"
#: Where generated text lies in streamed events. How much of it comes in one event is up to the
#: engine, which puts together what is ready when it gets to it: it differs from run to run.
_TEXTS = frozenset({"content", "text", "delta", "arguments", "partial_json", "reasoning"})
_LISTS = frozenset({"content", "tokens", "token_logprobs", "top_logprobs", "text_offset"})
CONTEXT_MAX = 4_096
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One engine, reached directly and through the proxy, both in a thread of their own."""

    direct: str
    proxied: str
    model: str
    gateway: Gateway
    is_real: bool

    async def gauge(self, name: str) -> float:
        """A metric of the engine, summed over its labels."""
        limit = aiohttp.ClientTimeout(total=_PATIENCE_S)
        async with (
            aiohttp.ClientSession(timeout=limit) as http,
            http.get(f"{self.direct}/metrics") as answer,
        ):
            value = total(await answer.read(), name)
        assert value is not None, name
        return value

    async def until(self, name: str, value: float) -> None:
        """Watch a metric until it has this value."""
        deadline = time.monotonic() + _PATIENCE_S
        while await self.gauge(name) != value:
            assert time.monotonic() < deadline, f"{name} is not {value}"
            await asyncio.sleep(0.01)  # an engine has no event for it, and is not to be flooded


#: A model on a busy CPU takes its time to say what it can do.
PATIENT: dict[str, Any] = {
    "limits": {"engine_wait_max": "90s"},
    "upstream": {"probe_timeout": "20s", "trial_timeout": "60s"},
}


@asynccontextmanager
async def _proxied(url: str, *, model: str, is_real: bool) -> AsyncIterator[Target]:
    config = Config.model_validate({"engines": [{"url": url}], "port": 0} | PATIENT)
    async with running(config) as (gateway, proxied):
        yield Target(direct=url, proxied=proxied, model=model, gateway=gateway, is_real=is_real)


@asynccontextmanager
async def _simulated() -> AsyncIterator[Target]:
    engine = ServerConfig(engine=SimConfig(**_sizes()), speed=20)
    async with (
        running_engine(engine) as served,
        _proxied(served.url, model="sim", is_real=False) as target,
    ):
        yield target
        served.driver.model.check()
        assert len(served.driver.model) == 0


@pytest.fixture(
    scope="session",
    params=["sim", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow])],
)
def rig(request: pytest.FixtureRequest) -> Iterator[Target]:
    """An engine with the proxy in front of it; nothing is left in either afterwards."""
    # A thread of their own, so that blocking clients can be used as their users use them.
    with start_blocking_portal() as portal:
        served = _simulated()
        if request.param == "vllm":
            slot = request.getfixturevalue("vllm_slot")
            url = slot.url(request.getfixturevalue("vllm_config"))
            served = _proxied(url, model="tiny", is_real=True)
        with portal.wrap_async_context_manager(served) as target:
            yield target


@pytest.fixture
def target(rig: Target) -> Iterator[Target]:
    """The rig, in which no step outlives the test."""
    yield rig
    assert rig.gateway.host.live_steps == 0


def _sizes() -> dict[str, Any]:
    chosen = SimConfig.from_preset(preset("h100-8b"))
    names = ("cost", "blocks", "block_size", "max_num_seqs", "max_num_batched_tokens")
    return {name: getattr(chosen, name) for name in names} | {"max_model_len": CONTEXT_MAX}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The same client twice, direct and through the proxy, in both of its forms."""

    target: Target
    direct: Any
    proxied: Any
    #: Makes the blocking clients, which few tests want.
    make_blocking: Callable[[], tuple[Any, Any]]

    async def equal(self, resource: str, *, is_blocking: bool = False, **fields: Any) -> Any:
        """Create at `resource` on both sides; the answer, which was the same on both."""
        expected, found = await self.both(resource, is_blocking=is_blocking, **fields)
        assert found == expected
        return expected

    async def both(
        self, resource: str, *, is_blocking: bool = False, **fields: Any
    ) -> tuple[Any, Any]:
        """Create at `resource` on both sides: what comes directly, and through the proxy."""
        fields = {"model": self.target.model} | fields
        with ExitStack() as stack:
            direct, proxied, create = self.direct, self.proxied, _create
            if is_blocking:
                direct, proxied = map(stack.enter_context, self.make_blocking())
                create = _create_blocking
            # Once for nothing: afterwards the engine has the prompt in its cache for both.
            await create(direct, resource, fields)
            answers = [await create(client, resource, fields) for client in (direct, proxied)]
        if fields.get("stream") and "stream_options" not in fields:
            _drop(answers, _LOST_WITH_USAGE)
        expected, found = map(plain, answers)
        return expected, found


def _drop(answers: list[Any], name: str) -> None:
    """Take a field out of every event."""
    for answer in answers:
        for event in answer if isinstance(answer, list) else ():
            event.pop(name, None)


async def _create(client: Any, resource: str, fields: dict[str, Any]) -> Any:
    try:
        answer = await operator.attrgetter(resource)(client)(**fields)
        if fields.get("stream"):
            return [_dict(event) async for event in answer]
        return _dict(answer)
    except (openai.APIError, anthropic.APIError) as error:
        return _error(error)


async def _create_blocking(client: Any, resource: str, fields: dict[str, Any]) -> Any:
    def create() -> Any:
        try:
            answer = operator.attrgetter(resource)(client)(**fields)
            return [_dict(e) for e in answer] if fields.get("stream") else _dict(answer)
        except (openai.APIError, anthropic.APIError) as error:
            return _error(error)

    return await asyncio.to_thread(create)


def _dict(answer: Any) -> Any:
    return answer.to_dict(mode="json", warnings=False)


def _error(error: openai.APIError | anthropic.APIError) -> dict[str, Any]:
    return {
        "error": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "message": error.message,
        "body": error.body,
    }


def plain(answer: Any) -> Any:
    """What must be equal of an answer: for a stream, what it says and in which order of kinds."""
    if isinstance(answer, list):
        return _plain_stream(answer)
    return _without_varying(answer)


def _without_varying(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_varying(v) for k, v in value.items() if k not in _VARYING}
    if isinstance(value, list):
        return [_without_varying(item) for item in value]
    return value


def _plain_stream(events: list[Any]) -> Any:
    """Events without their text, equal neighbours as one, and the text of each place in full.

    The choices of one answer are taken apart: which of them speaks first is chance.
    """
    kinds: dict[str, list[Any]] = {}
    texts: dict[str, Any] = {}
    for event in _by_choice(events):
        lane = str(event["choices"][0]["index"]) if event.get("choices") else "all"
        path = f"{lane}/{event.get('type', '')}"
        kind = _cut(_without_varying(event), path, texts)
        seen = kinds.setdefault(lane, [])
        if not seen or seen[-1] != kind:
            seen.append(kind)
    return {"kinds": kinds, "texts": texts}


def _by_choice(events: Iterable[Any]) -> Iterable[Any]:
    for event in events:
        choices = event.get("choices") or [None]
        for choice in choices:
            yield event if choice is None else event | {"choices": [choice]}


def _cut(value: Any, path: str, texts: dict[str, Any], name: str = "") -> Any:
    """`value` without its text, which is added to `texts`."""
    is_text = isinstance(value, str) and name in _TEXTS
    if is_text or (isinstance(value, list) and name in _LISTS and "logprobs" in path):
        texts[path] = texts[path] + value if path in texts else value
        return "..."
    if isinstance(value, dict):
        return {key: _cut(item, f"{path}/{key}", texts, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_cut(item, f"{path}/{at}", texts) for at, item in enumerate(value)]
    return value


@pytest.fixture(scope="session")
def tls() -> ssl.SSLContext:
    """Made once: it takes a client longer than all else that it does."""
    return ssl.create_default_context()


@pytest.fixture
async def chat(target: Target, tls: ssl.SSLContext) -> AsyncIterator[Pair]:
    """OpenAI's clients."""
    common: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 60}
    near, far = f"{target.direct}/v1", f"{target.proxied}/v1"

    def asynchronous(url: str) -> openai.AsyncOpenAI:
        http = openai.DefaultAsyncHttpxClient(verify=tls)
        return openai.AsyncOpenAI(base_url=url, http_client=http, **common)

    def blocking() -> tuple[openai.OpenAI, openai.OpenAI]:
        return openai.OpenAI(base_url=near, **common), openai.OpenAI(base_url=far, **common)

    async with asynchronous(near) as direct, asynchronous(far) as proxied:
        yield Pair(target=target, direct=direct, proxied=proxied, make_blocking=blocking)


@pytest.fixture
async def claude(target: Target, tls: ssl.SSLContext) -> AsyncIterator[Pair]:
    """Anthropic's clients."""
    common: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 60}
    near, far = target.direct, target.proxied

    def asynchronous(url: str) -> anthropic.AsyncAnthropic:
        http = anthropic.DefaultAsyncHttpxClient(verify=tls)
        return anthropic.AsyncAnthropic(base_url=url, http_client=http, **common)

    def blocking() -> tuple[anthropic.Anthropic, anthropic.Anthropic]:
        first = anthropic.Anthropic(base_url=near, **common)
        return first, anthropic.Anthropic(base_url=far, **common)

    async with asynchronous(near) as direct, asynchronous(far) as proxied:
        yield Pair(target=target, direct=direct, proxied=proxied, make_blocking=blocking)
