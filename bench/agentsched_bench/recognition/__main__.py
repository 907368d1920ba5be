"""Measure recognition: replay programs that run at once through the proxy, in every convention.

    python -m agentsched_bench.recognition TRACE [TRACE ...] [--programs 200] [--steps 12]
        [--choice growing|any] [--echo whole|recorded] [--conventions none,session,...]
        [--dialects chat,...] [--engine sim|vllm] [--out FILE]

Starts an engine and the proxy as a user would, replays the same programs once for each convention
in the dialect that its clients speak, and compares the proxy's `x-agentsched-program` with the
truth. All programs of a run are alive at the same time, and those of one agent share its system
prompt. The exit code is 1 if a call failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from agentsched.model import ConfigError
from agentsched.proxy.request import Dialect
from agentsched_bench.live import replay as live
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.live.cli import new_result, new_salt
from agentsched_bench.live.identity import style
from agentsched_bench.live.processes import running
from agentsched_bench.live.results import Recorder, TraceRow
from agentsched_bench.recognition.digest import SCHEMA, Digest, Verdict, verdicts
from agentsched_bench.recognition.mix import Choice, mixed
from agentsched_bench.vllm_local import LocalVllm, LocalVllmConfig
from agentsched_bench.workload.shape import PlannedProgram, ShapeOptions

#: What is spoken where, one run each: ids as their clients send them, and none in every dialect.
RUNS: Final = (
    (Dialect.CHAT, "none"),
    (Dialect.CHAT, "agentsched"),
    (Dialect.CHAT, "session"),
    (Dialect.CHAT, "program_id"),
    (Dialect.CHAT, "job_id"),
    (Dialect.CHAT, "prompt_cache_key"),
    (Dialect.CHAT, "agentic_context"),
    (Dialect.CHAT, "opencode"),
    (Dialect.CHAT, "litellm"),
    (Dialect.CHAT, "dynamo"),
    (Dialect.MESSAGES, "none"),
    (Dialect.MESSAGES, "claude-code"),
    (Dialect.RESPONSES, "none"),
    (Dialect.RESPONSES, "codex"),
    (Dialect.COMPLETIONS, "none"),
)
_CONTEXT_TOKENS: Final = 8_192
_CONTEXT_SLACK: Final = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a line for each run, write the file; the exit code."""
    chosen = _parser().parse_args(arguments)
    digest = asyncio.run(_measure(chosen))
    if chosen.out is not None:
        chosen.out.write_bytes(msgspec.json.format(msgspec.json.encode(digest), indent=1) + b"\n")
    return int(any(verdict.errors for verdict in digest.verdicts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agentsched_bench.recognition",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE")
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--choice", type=Choice, choices=list(Choice), default=Choice.GROWING)
    parser.add_argument("--echo", choices=("whole", "recorded"), default="whole")
    parser.add_argument("--conventions", default=None, help="only these, separated by commas")
    parser.add_argument("--dialects", default=None, help="only these, separated by commas")
    parser.add_argument("--engine", choices=("sim", "vllm"), default="sim")
    parser.add_argument("--speed", type=float, default=50.0, help="of the embedded engine")
    parser.add_argument("--blocks", type=int, default=1024, help="vLLM's pool, 32 tokens each")
    parser.add_argument("--scale-tokens", type=float, default=8.0)
    parser.add_argument("--scale-time", type=float, default=20.0)
    parser.add_argument("--profile", default="fcfs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    return parser


async def _measure(chosen: argparse.Namespace) -> Digest:
    shape = ShapeOptions(
        scale_tokens=chosen.scale_tokens,
        scale_time=chosen.scale_time,
        gap_cap_s=60.0,
        steps_max=chosen.steps,
        context_tokens_max=_CONTEXT_TOKENS - _CONTEXT_SLACK,
    )
    programs, rows = mixed(
        chosen.traces, count=chosen.programs, choice=chosen.choice, shape=shape, seed=chosen.seed
    )
    found: list[Verdict] = []
    versions: dict[str, str] = {}
    async with _engine(chosen) as url:
        for dialect, ids in _runs(chosen.conventions, chosen.dialects):
            # A fresh proxy for each run: none may go by what another has left.
            serve = ("serve", "--engine", url, "--port", "0", "--profile", chosen.profile)
            async with running(*serve, name="the proxy") as proxy:
                run, versions = await _run(
                    programs, rows, chosen, shape=shape, url=proxy.url, dialect=dialect, ids=ids
                )
            found += run
            print(_line(run[0]), flush=True)
    return Digest(
        schema=SCHEMA,
        command=["python", "-m", "agentsched_bench.recognition", *sys.argv[1:]],
        measured_at=datetime.now(tz=UTC).isoformat(timespec="seconds"),
        versions=versions,
        engine=chosen.engine,
        traces=rows,
        options={
            "programs": len(programs),
            "steps_max": chosen.steps,
            "choice": str(chosen.choice),
            "echo": chosen.echo,
            "scale_tokens": chosen.scale_tokens,
            "scale_time": chosen.scale_time,
            "profile": chosen.profile,
            "seed": chosen.seed,
        },
        verdicts=found,
        programs={program.program: program.calls for program in programs},
    )


def _runs(conventions: str | None, dialects: str | None) -> list[tuple[Dialect, str]]:
    """The runs that are wanted. Raises ConfigError if there are none."""
    names = None if conventions is None else conventions.split(",")
    spoken = None if dialects is None else dialects.split(",")
    for name in names or ():
        style(name)
    runs = [
        (dialect, ids)
        for dialect, ids in RUNS
        if (names is None or ids in names) and (spoken is None or str(dialect) in spoken)
    ]
    if not runs:
        raise ConfigError("no run is in these conventions and dialects")
    return runs


async def _run(
    programs: Sequence[PlannedProgram],
    rows: Sequence[TraceRow],
    chosen: argparse.Namespace,
    *,
    shape: ShapeOptions,
    url: str,
    dialect: Dialect,
    ids: str,
) -> tuple[list[Verdict], dict[str, str]]:
    arm = live.Arm(name=ids, url=url, ids=ids)
    options = live.ReplayOptions(
        dialect=dialect,
        # As many at a time as there are: all of them are interleaved.
        arrivals=parse_arrivals(f"closed:{len(programs)}"),
        seed=chosen.seed,
        salt=new_salt(),
        echoes_whole=chosen.echo == "whole",
    )
    recorder = Recorder(new_result(rows[0], [arm], shape=shape, replay_options=options), path=None)
    await live.replay_all(programs, [arm], options, recorder)
    result = recorder.result
    return verdicts(result, dialect=str(dialect)), result.versions


@contextlib.asynccontextmanager
async def _engine(chosen: argparse.Namespace) -> AsyncIterator[str]:
    if chosen.engine == "sim":
        arguments = ("engine", "sim", "--port", "0", "--preset", "h100-8b")
        speed = ("--speed", f"{chosen.speed:g}")
        async with running(*arguments, *speed, name="the embedded engine") as ready:
            yield ready.url
        return
    async with LocalVllm(
        LocalVllmConfig(blocks=chosen.blocks, max_model_len=_CONTEXT_TOKENS)
    ) as vllm:
        yield vllm.url


def _line(verdict: Verdict) -> str:
    seen = verdict.attribution
    figures = "the proxy names no programs"
    if seen is not None:
        figures = (
            f"{100 * seen.right_share:.2f} % right ({100 * seen.main_right_share:.2f} % without "
            f"sub-agents), precision {seen.precision:.4f}, recall {seen.recall:.4f}, "
            f"{seen.merged} merged, {seen.split} split"
        )
    return (
        f"{verdict.dialect} {verdict.convention}: {verdict.completed}/{verdict.programs} programs, "
        f"{verdict.calls} calls, {verdict.errors} errors, {verdict.duration_s:g} s; {figures}"
    )


if __name__ == "__main__":
    sys.exit(main())
