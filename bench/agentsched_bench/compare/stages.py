"""What a comparison starts and stops: engines, and what each arm puts before them.

Everything listens on a free loopback port, is waited for until it answers, writes a log that stays,
and is stopped whatever happens. Proxies are new in every run, so that none knows what an earlier
run taught it; engines are kept and their caches emptied.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from agentsched.model import ConfigError, EngineError
from agentsched_bench.compare import fleet
from agentsched_bench.compare.arms import Kind, Side, find_peer
from agentsched_bench.compare.scenario import EngineKind, EngineSpec, Scenario
from agentsched_bench.engine.cost import to_json
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.overhead.processes import started, until_healthy
from agentsched_bench.ports import free_port
from agentsched_bench.vllm_local import LocalVllm, LocalVllmConfig

_MAIN: Final = "import sys; from agentsched.cli import main; sys.exit(main())"
_ENGINE_READY_S: Final = 60.0
_VLLM_READY_S: Final = 300.0
_PROXY_READY_S: Final = 90.0
_BLOCK_SIZE: Final = 32
_RESET_TRIES: Final = 40
_RESET_WAIT_S: Final = 0.25
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """Engines that serve. `reset_path` empties a cache by POST, where there is such a thing."""

    urls: tuple[str, ...]
    kv_tokens: int | None
    reset_path: str | None
    model: str | None = None
    dead: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the clients of an arm send. `journal` is what our proxy writes, None for others."""

    url: str
    journal: Path | None = None


@contextlib.asynccontextmanager
async def engines_running(
    spec: EngineSpec, *, variant: str, tokens_max: int, logs: Path
) -> AsyncIterator[Engines]:
    """Start the engines of a scenario in one of its variants.

    `tokens_max` is all that the load can bring: the room of the variant without limits.

    Raises:
        EngineError: one did not start; the text has its last words.
    """
    match spec.kind:
        case EngineKind.URL:
            if not spec.urls:
                raise ConfigError('engine.kind = "url" needs engine.urls')
            yield Engines(urls=spec.urls, kv_tokens=None, reset_path=spec.reset_path)
        case EngineKind.SIM:
            async with _embedded(spec, variant=variant, tokens_max=tokens_max, logs=logs) as found:
                yield found
        case EngineKind.VLLM:
            async with _vllm(spec, variant=variant, tokens_max=tokens_max, logs=logs) as found:
                yield found


@contextlib.asynccontextmanager
async def _embedded(
    spec: EngineSpec, *, variant: str, tokens_max: int, logs: Path
) -> AsyncIterator[Engines]:
    configs = fleet.engines_of(spec)
    if variant == Kind.UNLIMITED:
        configs = [fleet.roomy(config, tokens=tokens_max) for config in configs]
    urls = []
    async with contextlib.AsyncExitStack() as stack:
        for number, config in enumerate(configs):
            port, name = free_port(), f"engine-{variant}-{number}"
            command = _ours(*_embedded_arguments(config, spec, logs / f"{name}.cost.json", port))
            await stack.enter_async_context(
                _serving(command, name=name, port=port, health="/health", logs=logs)
            )
            urls.append(f"http://127.0.0.1:{port}")
        yield Engines(
            urls=tuple(urls),
            kv_tokens=min((config.blocks - 1) * config.block_size for config in configs),
            reset_path="/sim/reset_cache",
        )


def _embedded_arguments(config: EngineConfig, spec: EngineSpec, cost: Path, port: int) -> list[str]:
    """The command line of an engine that is what the simulator would have."""
    cost.write_bytes(to_json(config.cost))
    arguments = ["engine", "sim", "--port", str(port), "--cost", str(cost)]
    for flag, value in (
        ("--blocks", config.blocks),
        ("--block-size", config.block_size),
        ("--max-model-len", config.max_model_len),
        ("--max-num-seqs", config.max_num_seqs),
        ("--max-num-batched-tokens", config.max_num_batched_tokens),
        ("--speed", spec.speed),
    ):
        arguments += [flag, str(value)]
    if config.tier is not None:
        arguments += ["--tier", f"{config.tier.blocks}@{config.tier.tokens_per_second}"]
    return [*arguments, *spec.arguments]


@contextlib.asynccontextmanager
async def _vllm(
    spec: EngineSpec, *, variant: str, tokens_max: int, logs: Path
) -> AsyncIterator[Engines]:
    size = spec.block_size or _BLOCK_SIZE
    blocks = spec.blocks or 1024
    if variant == Kind.UNLIMITED:
        blocks += 3 * tokens_max // (2 * size)
    extra = list(spec.arguments)
    if spec.max_num_seqs is not None:
        extra += ["--max-num-seqs", str(spec.max_num_seqs)]
    async with contextlib.AsyncExitStack() as stack:
        urls = []
        for number in range(spec.count):
            config = LocalVllmConfig(
                blocks=blocks,
                block_size=size,
                max_model_len=spec.max_model_len or 8192,
                dev_routes=True,
                extra_args=tuple(extra),
                plugin=variant == Kind.PLUGIN,
                plugin_settings=spec.plugin_settings,
                log=logs / f"vllm-{variant}-{number}.log",
                start_timeout_s=_VLLM_READY_S,
            )
            engine = await stack.enter_async_context(LocalVllm(config))
            urls.append(engine.url)
        yield Engines(
            urls=tuple(urls),
            kv_tokens=(blocks - 1) * size,
            reset_path="/reset_prefix_cache",
            model="tiny",
        )


async def empty_caches(engines: Engines) -> bool:
    """Empty every engine's prefix cache; whether all of them did.

    An engine refuses while it computes, so this waits for calls that were just hung up on.
    """
    if engines.reset_path is None:
        return False
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as client:
        done = [await _empty(client, url + engines.reset_path) for url in engines.urls]
    return all(done)


async def _empty(client: aiohttp.ClientSession, url: str) -> bool:
    for _ in range(_RESET_TRIES):
        try:
            async with client.post(url) as answer:
                if answer.status == 200:
                    return True
                if answer.status not in (409, 500, 503):
                    return False
        except (aiohttp.ClientError, TimeoutError):
            return False
        await asyncio.sleep(_RESET_WAIT_S)
    return False


@contextlib.asynccontextmanager
async def arm_running(
    side: Side, engines: Engines, scenario: Scenario, *, label: str, logs: Path, peers: Path
) -> AsyncIterator[Endpoint]:
    """Put an arm before the engines; yields where its clients send.

    Raises:
        EngineError: it did not start; the text has its last words.
    """
    match side.kind:
        case Kind.URL:
            yield Endpoint(url=side.url)
        case Kind.DIRECT | Kind.UNLIMITED if len(engines.urls) == 1:
            yield Endpoint(url=engines.urls[0])
        case Kind.PLUGIN if side.profile is None and len(engines.urls) == 1:
            yield Endpoint(url=engines.urls[0])
        case Kind.DIRECT | Kind.UNLIMITED | Kind.PROXY | Kind.PLUGIN:
            async with _proxy(side, engines, scenario, label=label, logs=logs) as found:
                yield found
        case Kind.ROUTER | Kind.LITELLM | Kind.COMMAND:
            port = free_port()
            command, health = _command(side, engines, port=port, logs=logs, peers=peers)
            async with _serving(command, name=label, port=port, health=health, logs=logs):
                yield Endpoint(url=f"http://127.0.0.1:{port}")


@contextlib.asynccontextmanager
async def _proxy(
    side: Side, engines: Engines, scenario: Scenario, *, label: str, logs: Path
) -> AsyncIterator[Endpoint]:
    port = free_port()
    journal = logs / f"{label}.journal.gz"
    journal.unlink(missing_ok=True)
    config = logs / f"{label}.toml"
    config.write_text(_settings(side, scenario), encoding="utf-8")
    # Several engines without a proxy of their own are used in turn, as any load balancer would.
    profile = side.profile or "passthrough"
    command = ["serve", "--port", str(port), "--config", str(config), "--profile", profile]
    command += ["--max-wait", scenario.proxy.max_wait, "--journal", str(journal)]
    for number, url in enumerate(engines.urls):
        command += ["--engine", f"e{number:03d}={url}"]
    async with _serving(_ours(*command), name=label, port=port, health="/readyz", logs=logs):
        yield Endpoint(url=f"http://127.0.0.1:{port}", journal=journal)


def _settings(side: Side, scenario: Scenario) -> str:
    """The proxy's configuration as TOML: policies in place of the profile's, tenants' weights."""
    lines = []
    for point, choice in side.choices.items():
        lines += [f"[policies.{point}]", f"name = {_toml(choice.name)}"]
        if choice.params:
            lines.append(f"[policies.{point}.params]")
            lines += [f"{key} = {_toml(value)}" for key, value in choice.params.items()]
    for name, weight in scenario.weights.items():
        lines += [f"[tenants.{_toml(name)}]", f"weight = {weight}"]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # JSON writes texts, numbers and truth values as TOML does.
    return msgspec.json.encode(value).decode()


def _command(
    side: Side, engines: Engines, *, port: int, logs: Path, peers: Path
) -> tuple[list[str], str]:
    """The command line of a peer, and the path that tells its health."""
    match side.kind:
        case Kind.ROUTER:
            return _router(side, engines, port=port, peers=peers), "/health"
        case Kind.LITELLM:
            return _litellm(engines, port=port, logs=logs, peers=peers), "/health/liveliness"
        case _:
            text = side.command.replace("{port}", str(port))
            text = text.replace("{engines}", " ".join(engines.urls))
            return shlex.split(text.replace("{engine}", engines.urls[0])), "/v1/models"


def _router(side: Side, engines: Engines, *, port: int, peers: Path) -> list[str]:
    command = [str(find_peer("vllm-router", peers=peers)), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--prometheus-port", str(free_port())]
    command += ["--worker-urls", *engines.urls, "--policy", "round_robin"]
    command += ["--worker-startup-check-interval", "1", "--log-level", "warning"]
    if side.command == "programs":
        # What its own documentation says: capacity is the size of the engine's KV pool.
        config: dict[str, object] = {"program_scheduling_enable_key": "auto"}
        if engines.kv_tokens is not None:
            config["token_capacity_per_target"] = engines.kv_tokens
        text = msgspec.json.encode(config).decode()
        command += ["--enable-program-scheduling", "--program-scheduling-config-json", text]
    return command


def _litellm(engines: Engines, *, port: int, logs: Path, peers: Path) -> list[str]:
    model = engines.model or "sim"
    entries = "".join(
        f"  - model_name: {model}\n    litellm_params:\n      model: openai/{model}\n"
        f"      api_base: {url}/v1\n      api_key: none\n"
        for url in engines.urls
    )
    config = logs / f"litellm-{port}.yaml"
    # It listens on loopback for the length of a run, and without a key it would not start.
    keyless = "general_settings:\n  dangerously_permit_weak_or_unset_master_key: true\n"
    config.write_text(f"model_list:\n{entries}{keyless}", encoding="utf-8")
    found = str(find_peer("litellm", peers=peers))
    return [found, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]


def _ours(*arguments: str) -> list[str]:
    return [sys.executable, "-c", _MAIN, *arguments]


@contextlib.asynccontextmanager
async def _serving(
    command: Sequence[str],
    *,
    name: str,
    port: int,
    health: str,
    logs: Path,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[None]:
    log = logs / f"{name}.log"
    cpus = frozenset(os.sched_getaffinity(0))
    within_s = _ENGINE_READY_S if name.startswith("engine") else _PROXY_READY_S
    async with started(
        command, name=name, cpus=cpus, port=port, environment=environment, log=log
    ) as process:
        try:
            await until_healthy(process, health, log=log, within_s=within_s)
        except EngineError as error:
            raise EngineError(f"{error} (its log: {log})") from error
        yield
