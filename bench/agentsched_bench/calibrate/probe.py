"""Short calls that show what an engine costs: cold prompts, cached ones, answers alone and at once.

Prompts are token ids that nobody sent before, so nothing is in the cache but what a probe put
there. Everything is sent through `/v1/completions`, streamed, with exact lengths.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp
import msgspec

from agentsched.model import EngineError, Instant
from agentsched.proxy.request import Dialect
from agentsched_bench.calibrate.fit import Served
from agentsched_bench.engine.cost import CPU_2CORE
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.tokens import TokenChain
from agentsched_bench.live.client import Client, Patience

#: Ids that every vocabulary has and that are no special tokens in common ones.
_IDS: Final = (260, 1_000)
_SCRAPE_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of an engine, as far as it tells: None where it does not."""

    model: str
    block_size: int | None = None
    blocks: int | None = None
    max_model_len: int | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


async def sizes_of(url: str) -> Sizes:
    """What `/v1/models` and vLLM's metrics tell about an engine.

    Raises:
        EngineError: it does not answer.
    """
    base = url.rstrip("/").removesuffix("/v1")
    timeout = aiohttp.ClientTimeout(total=_SCRAPE_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            async with session.get(f"{base}/v1/models") as response:
                models = msgspec.json.decode(await response.read(), type=_Models).data
            async with session.get(f"{base}/metrics") as response:
                metrics = await response.text() if response.status == 200 else ""
    except (TimeoutError, aiohttp.ClientError, OSError, msgspec.MsgspecError) as error:
        why = str(error) or type(error).__name__
        raise EngineError(f"{url} does not answer as an engine does: {why}") from error
    if not models:
        raise EngineError(f"{url} serves no model")
    return Sizes(
        model=models[0].id,
        block_size=_label(metrics, "block_size"),
        blocks=_label(metrics, "num_gpu_blocks"),
        max_model_len=models[0].max_model_len,
    )


def _label(metrics: str, name: str) -> int | None:
    found = re.search(rf'vllm:cache_config_info{{[^}}]*\b{name}="(\d+)"', metrics)
    return int(found.group(1)) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One call: the tokens that an earlier probe has sent, new ones, and the answer's length."""

    prompt: tuple[int, ...]
    output_tokens: int


def rounds(config: EngineConfig, *, rng: random.Random, repeats: int) -> list[list[Probe]]:
    """Probes in rounds; those of one round are sent at once, rounds follow each other."""
    longest = min(config.max_model_len, (config.blocks - 1) * config.block_size) - 128

    def fresh(tokens: int) -> tuple[int, ...]:
        return tuple(rng.randrange(*_IDS) for _ in range(max(1, min(tokens, longest))))

    found: list[list[Probe]] = []
    for _ in range(repeats):
        sizes = [size for size in (16, 256, 512, 1024, 2048, 4096, 8192, 16384) if size <= longest]
        found += [[Probe(prompt=fresh(size), output_tokens=1)] for size in sizes]
        base = fresh(longest // 2)
        found.append([Probe(prompt=base, output_tokens=32)])
        found.append([Probe(prompt=base + fresh(longest // 8), output_tokens=1)])
        found.append([Probe(prompt=fresh(32), output_tokens=64)])
        for together in (4, 8, 16):
            if together > config.max_num_seqs or together * 256 > longest:
                continue
            share = min(1_024, longest // (2 * together))
            found.append([Probe(prompt=fresh(48), output_tokens=48) for _ in range(together)])
            found.append([Probe(prompt=fresh(share), output_tokens=24) for _ in range(together)])
        found += _conversations(fresh, longest, config)
    return found


def _conversations(
    fresh: Callable[[int], tuple[int, ...]], longest: int, config: EngineConfig
) -> list[list[Probe]]:
    """What agents do: long prompts that are cached but for a little, while others decode."""
    together, turns = min(4, config.max_num_seqs), 4
    room = min(longest, (config.blocks - 1) * config.block_size // (2 * together))
    if room < 64 * turns:
        return []
    prompts = [fresh(room // 2) for _ in range(together)]
    found: list[list[Probe]] = []
    for _ in range(turns):
        found.append(
            [Probe(prompt=prompt, output_tokens=8 + 8 * n) for n, prompt in enumerate(prompts)]
        )
        prompts = [prompt + fresh(room // (2 * turns)) for prompt in prompts]
    return found


def config_of(sizes: Sizes, *, max_num_seqs: int, step_tokens: int) -> EngineConfig:
    """The engine with these sizes; its costs are still to be found.

    Raises:
        EngineError: it does not say how large its cache is.
    """
    if sizes.blocks is None or sizes.block_size is None:
        raise EngineError("the engine does not say how many blocks it has: give --blocks")
    room = (sizes.blocks - 1) * sizes.block_size
    return EngineConfig(
        cost=CPU_2CORE,
        blocks=sizes.blocks,
        block_size=sizes.block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=step_tokens,
        max_model_len=min(sizes.max_model_len or room, room),
    )


async def measure(
    url: str,
    config: EngineConfig,
    probes: Sequence[Sequence[Probe]],
    *,
    model: str,
    api_key: str | None = None,
    on_round: Callable[[int], None] = lambda _done: None,
) -> list[Served]:
    """Send the probes, round by round.

    Raises:
        EngineError: one was refused or came back with other lengths than asked for.
    """
    client = Client(
        url,
        dialect=Dialect.COMPLETIONS,
        patience=Patience(timeout_s=300, attempts_max=1),
        rng=random.Random(0),
        api_key=api_key,
    )
    found: list[Served] = []
    begun = time.perf_counter_ns()
    try:
        for number, together in enumerate(probes):
            found += await asyncio.gather(
                *(_one(client, probe, config, model=model, begun=begun) for probe in together)
            )
            on_round(number + 1)
    finally:
        await client.aclose()
    return found


async def _one(
    client: Client, probe: Probe, config: EngineConfig, *, model: str, begun: int
) -> Served:
    body = {
        "model": model,
        "prompt": list(probe.prompt),
        "max_tokens": probe.output_tokens,
        "min_tokens": probe.output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent = time.perf_counter_ns() - begun
    outcome = await client.call(body, headers={})
    if outcome.error:
        raise EngineError(f"a probe failed: {outcome.error}")
    if outcome.prompt_tokens != len(probe.prompt) or outcome.output_tokens != probe.output_tokens:
        raise EngineError(
            f"asked for {len(probe.prompt)} and {probe.output_tokens} tokens, the engine counted "
            f"{outcome.prompt_tokens} and {outcome.output_tokens}"
        )
    answer = outcome.token_ids or [1] * probe.output_tokens
    # Whatever the answer says, no other probe begins with it.
    tokens = [*probe.prompt, *([*answer, *([1] * probe.output_tokens)][: probe.output_tokens])]
    first = None if outcome.ttft_s is None else round(outcome.ttft_s * 1e9)
    return Served(
        engine="engine",
        sent_at=Instant(sent),
        chain=TokenChain(tokens, block_size=config.block_size),
        prompt_tokens=len(probe.prompt),
        output_tokens=probe.output_tokens,
        first_ns=first,
        last_ns=round(outcome.latency_s * 1e9),
        cached_tokens=outcome.cached_tokens,
    )
