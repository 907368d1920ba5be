"""`agentsched demo`: the main job in one command, direct against proxied."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from agentsched_bench.live import options
from agentsched_bench.live import replay as live
from agentsched_bench.live.arrivals import Arrivals, Process, parse_arrivals
from agentsched_bench.live.cli import (
    finish,
    load_plans,
    new_result,
    new_salt,
    showing_progress,
    until_signal,
)
from agentsched_bench.live.processes import running
from agentsched_bench.live.results import ArmRow, Recorder, Result
from agentsched_bench.report.page import write_page
from agentsched_bench.report.sources import from_replay
from agentsched_bench.vllm_local import LocalVllm, LocalVllmConfig
from agentsched_bench.workload.generate import sample_path
from agentsched_bench.workload.shape import PlannedProgram, ShapeOptions

_BLOCK_TOKENS: Final = 32
_CONTEXT_TOKENS: Final = 8_192
#: Room for what a text's length may be off by.
_CONTEXT_SLACK: Final = 256
#: One prompt must fit, and vLLM keeps one block for itself.
_BLOCKS_MIN: Final = _CONTEXT_TOKENS // _BLOCK_TOKENS + 1
_PROFILE: Final = re.compile(r"profile ([\w.-]+)")

#: What a reader should expect of each profile, so that no figure is taken for what it is not.
_PROFILES: Final = {
    "passthrough": (
        "Profile passthrough relays at once and recognises programs; it schedules nothing, so the "
        "two columns should differ by noise and by the proxy's own milliseconds."
    ),
    "agentsched": (
        "Profile agentsched lets programs in while their working set fits the engine's cache, and "
        "paused ones make room by turns. It helps as far as the cache is too small for all of "
        "them; where everything fits the two columns should differ by noise."
    ),
    "fcfs": (
        "Profile fcfs recognises programs, serves the oldest first and sends each back to the "
        "engine that has its prefix. With one engine there is nowhere else to send it, and keeping "
        "the prefixes of paused programs is not its job: expect the two columns to be close."
    ),
}


class EngineKind(StrEnum):
    """What the demo runs against."""

    SIM = "sim"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the demo starts. `blocks` is the engine's KV pool, in blocks of 32 tokens."""

    engine: EngineKind
    blocks: int
    speed: float
    profile: str | None

    @property
    def pace(self) -> float:
        """How many times faster than real all time goes: tools keep step with the engine."""
        return self.speed if self.engine is EngineKind.SIM else 1.0


def demo(
    *,
    engine: Annotated[
        EngineKind, typer.Option(help="The embedded engine, or a real vLLM on this CPU.")
    ] = EngineKind.SIM,
    trace: Annotated[
        Path | None, typer.Option(help="Recorded programs; default: the synthetic sample.")
    ] = None,
    programs: Annotated[int, typer.Option(min=1, help="How many, by lot with the seed.")] = 24,
    steps: Annotated[int, typer.Option(min=1, help="At most this many calls each.")] = 16,
    arrivals: options.ArrivalsText = "burst:3/s",
    blocks: Annotated[
        int, typer.Option(min=_BLOCKS_MIN, help="The engine's KV pool, in blocks of 32 tokens.")
    ] = 420,
    speed: Annotated[
        float, typer.Option(min=0.1, max=20, help="The embedded engine's speed; 1: as on a CPU.")
    ] = 3.0,
    profile: Annotated[
        str | None, typer.Option(help="The proxy's profile; default: its own.")
    ] = None,
    repeat: options.Repeat = 1,
    seed: options.Seed = 0,
    out: options.Out = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a page about it (HTML): timelines, who had the KV.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Replay agent programs on an engine, direct and through the proxy, side by side.

    Starts an engine and the proxy, and stops both at the end, also on Ctrl-C.
    """
    setting = Setting(engine=engine, blocks=blocks, speed=speed, profile=profile)
    shape = ShapeOptions(
        scale_tokens=8.0,
        scale_time=2.0 * setting.pace,
        gap_cap_s=10.0,
        steps_max=steps,
        context_tokens_max=_CONTEXT_TOKENS - _CONTEXT_SLACK,
    )
    process = _paced(parse_arrivals(arrivals), setting.pace)
    chosen = live.ReplayOptions(arrivals=process, seed=seed, repeat=repeat, salt=new_salt())
    path = sample_path() if trace is None else trace
    plans, row = load_plans(path, shape, programs=programs, seed=seed)
    result = new_result(row, (), shape=shape, replay_options=chosen)
    result.options |= {"engine": str(engine), "blocks": blocks, "speed": setting.pace}
    recorder = Recorder(result, path=out)
    recorder.save()
    with showing_progress(is_quiet=as_json) as show:
        work = _compare(plans, setting, chosen, recorder, on_progress=show)
        was_stopped = asyncio.run(until_signal(work))
    note = _explain(result, setting)
    if report is not None and result.calls:
        size = write_page([from_replay(result)], report, title="agentsched demo")
        note += f" The page about it: {report} ({size / 1024:.0f} KB)."
    elif not as_json:
        note += " With --report FILE.html it becomes a page with timelines."
    finish(result, out=out, as_json=as_json, was_stopped=was_stopped, note=note)


def _paced(arrivals: Arrivals, pace: float) -> Arrivals:
    """Programs come as much faster as everything else goes."""
    if arrivals.process in (Process.BURST, Process.POISSON):
        return replace(arrivals, value=arrivals.value * pace)
    return arrivals


async def _compare(
    plans: Sequence[PlannedProgram],
    setting: Setting,
    chosen: live.ReplayOptions,
    recorder: Recorder,
    *,
    on_progress: Callable[[live.Progress], None],
) -> None:
    """Start engine and proxy, replay on both, stop both."""
    async with contextlib.AsyncExitStack() as stack:
        engine_url = await stack.enter_async_context(_engine(setting))
        arguments = ["serve", "--engine", engine_url, "--port", "0"]
        if setting.profile is not None:
            arguments += ["--profile", setting.profile]
        proxy = await stack.enter_async_context(running(*arguments, name="the proxy"))
        named = _PROFILE.search(proxy.line)
        recorder.result.options["profile"] = named[1] if named else setting.profile or "unknown"
        arms = [
            live.Arm(name="direct", url=engine_url),
            live.Arm(name="agentsched", url=proxy.url),
        ]
        recorder.result.arms = [ArmRow(name=arm.name, url=arm.url, ids=arm.ids) for arm in arms]
        await live.replay_all(plans, arms, chosen, recorder, on_progress=on_progress)


@contextlib.asynccontextmanager
async def _engine(setting: Setting) -> AsyncIterator[str]:
    """The engine of the demo; yields its URL."""
    if setting.engine is EngineKind.SIM:
        arguments = ["engine", "sim", "--port", "0", "--preset", "cpu-2core"]
        arguments += ["--blocks", str(setting.blocks), "--block-size", str(_BLOCK_TOKENS)]
        arguments += ["--max-model-len", str(_CONTEXT_TOKENS), "--speed", str(setting.speed)]
        async with running(*arguments, name="the embedded engine") as ready:
            yield ready.url
        return
    config = LocalVllmConfig(
        blocks=setting.blocks, block_size=_BLOCK_TOKENS, max_model_len=_CONTEXT_TOKENS
    )
    typer.echo("starting vLLM (about half a minute)", err=True)
    async with LocalVllm(config) as vllm:
        yield vllm.url


def _explain(result: Result, setting: Setting) -> str:
    """What was run and what to make of it, in sentences that hold whatever the figures say."""
    pool = setting.blocks * _BLOCK_TOKENS
    kind = "a real vLLM" if setting.engine is EngineKind.VLLM else "the embedded engine"
    profile = str(result.options.get("profile", "unknown"))
    said = _PROFILES.get(profile, f"The proxy ran profile {profile}.")
    return (
        f"The same programs ran on {kind} with room for {pool:,} tokens of KV, first directly, "
        f"then through the proxy; no ids were sent. {said}"
    )
