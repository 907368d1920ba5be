"""The verb `agentsched engine sim`: serve the embedded engine until told to stop."""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from agentsched.model.errors import ConfigError
from agentsched_bench.engine.cost import PRESETS, preset, read_cost
from agentsched_bench.engine.playback import Playback, read_playback
from agentsched_bench.engine.requests import EngineConfig, Scheduling
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.engine.tier import read_tier

_PRESETS = ", ".join(sorted(PRESETS))


def sim(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks one.")] = 8000,
    model: Annotated[list[str] | None, typer.Option(help="Model name; may be repeated.")] = None,
    preset_name: Annotated[
        str, typer.Option("--preset", help=f"Machine and model: {_PRESETS}.")
    ] = "cpu-2core",
    blocks: Annotated[int | None, typer.Option(min=2, help="KV blocks, one unused.")] = None,
    block_size: Annotated[int | None, typer.Option(min=1, help="Tokens per KV block.")] = None,
    speed: Annotated[float, typer.Option(help="Times faster than the cost model.")] = 1.0,
    max_num_seqs: Annotated[int | None, typer.Option(min=1, help="Running calls.")] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens computed per step.")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Longest context.")] = None,
    max_num_queued_reqs: Annotated[
        int | None, typer.Option(min=0, help="Waiting calls; more get 503.")
    ] = None,
    scheduling: Annotated[Scheduling, typer.Option(help="Order of waiting calls.")] = (
        Scheduling.FCFS
    ),
    refuse_priority: Annotated[
        bool,
        typer.Option("--refuse-priority", help="400 for a priority under fcfs, as older vLLM."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Decides answers and ids.")] = 0,
    playback: Annotated[
        Path | None, typer.Option(help="Scripted answers, JSON Lines (docs/simulator.md).")
    ] = None,
    cost: Annotated[Path | None, typer.Option(help="Cost model, JSON (docs/simulator.md).")] = None,
    tier: Annotated[
        str | None,
        typer.Option(metavar="BLOCKS@TOKENS/S", help="A host tier below the engine's memory."),
    ] = None,
) -> None:
    """Serve the embedded engine: vLLM's API over a model of its scheduler and prefix cache."""
    try:
        engine = _engine_config(
            preset_name=preset_name,
            cost=cost,
            sizes={
                "blocks": blocks,
                "block_size": block_size,
                "max_num_seqs": max_num_seqs,
                "max_num_batched_tokens": max_num_batched_tokens,
                "max_model_len": max_model_len,
                "max_queued": max_num_queued_reqs,
            },
            scheduling=scheduling,
        )
        if tier is not None:
            engine = replace(engine, tier=read_tier(tier))
        if not speed > 0:
            raise ConfigError(f"--speed must be above 0, not {speed}")
        config = ServerConfig(
            engine=engine,
            models=tuple(model) if model else ("sim",),
            speed=speed,
            seed=seed,
            refuse_priority=refuse_priority,
            playback=read_playback(playback) if playback is not None else Playback(),
        )
    except ConfigError as error:
        typer.echo(f"agentsched engine sim: {error}", err=True)
        raise typer.Exit(2) from error
    try:
        _run(config, host=host, port=port)
    except OSError as error:
        typer.echo(f"agentsched engine sim: cannot listen on {host}:{port}: {error}", err=True)
        raise typer.Exit(1) from error


def _engine_config(
    *, preset_name: str, cost: Path | None, sizes: dict[str, int | None], scheduling: Scheduling
) -> EngineConfig:
    chosen = preset(preset_name)
    given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
    base = EngineConfig.from_preset(chosen, cost=read_cost(cost) if cost is not None else None)
    if "max_model_len" not in given:
        room = (given.get("blocks", base.blocks) - 1) * given.get("block_size", base.block_size)
        given["max_model_len"] = min(base.max_model_len, room)
    return replace(base, scheduling=scheduling, **given)


def _run(config: ServerConfig, *, host: str, port: int) -> None:
    if sys.platform == "win32":
        asyncio.run(_serve(config, host=host, port=port))
        return
    import uvloop

    uvloop.run(_serve(config, host=host, port=port))


async def _serve(config: ServerConfig, *, host: str, port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if sys.platform != "win32":
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
    async with running_engine(config, host=host, port=port) as engine:
        sizes = config.engine
        typer.echo(
            f"agentsched engine sim ready on {engine.url} (model {', '.join(config.models)}; "
            f"{sizes.blocks} blocks of {sizes.block_size} tokens, context {sizes.max_model_len}, "
            f"{sizes.scheduling}, speed {config.speed:g})"
        )
        await stop.wait()
