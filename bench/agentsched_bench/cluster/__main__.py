"""`python -m agentsched_bench.cluster run SCENARIO ...`, `list`, `table FILE ...`."""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from agentsched.model import AgentschedError
from agentsched_bench.cluster.run import SAMPLE, ClusterOptions, run_scenario
from agentsched_bench.cluster.scenarios import SCENARIOS
from agentsched_bench.cluster.share_gap import is_shared
from agentsched_bench.cluster.soak import soak
from agentsched_bench.cluster.table import comparison, table

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.command("list")
def list_scenarios() -> None:
    """What can be done to a cluster."""
    for scenario in SCENARIOS.values():
        mark = " (any router)" if scenario.is_common else ""
        print(f"{scenario.name:16} {scenario.about}{mark}")


@app.command()
def run(
    names: Annotated[list[str], typer.Argument(metavar="SCENARIO...")],
    *,
    target: Annotated[str, typer.Option(help="agentsched, vllm-router or litellm.")] = "agentsched",
    balance: Annotated[str, typer.Option(help="round-robin or sticky.")] = "round-robin",
    engine: Annotated[str, typer.Option(help="sim, or vllm for real ones.")] = "sim",
    agents: Annotated[int, typer.Option(min=1)] = 12,
    seconds: Annotated[float, typer.Option(min=5)] = 24.0,
    speed: Annotated[float, typer.Option(help="Of embedded engines.")] = 8.0,
    blocks: Annotated[int, typer.Option(min=64)] = 2_000,
    bus: Annotated[bool, typer.Option(help="With mosquitto.")] = True,
    store: Annotated[bool, typer.Option(help="With PostgreSQL.")] = True,
    greedy: Annotated[bool, typer.Option("--greedy", help="3 of 4 agents: one tenant.")] = False,
    old_tree: Annotated[Path | None, typer.Option(help="Checkout of another version.")] = None,
    trace: Annotated[Path, typer.Option(help="Recorded sessions.")] = SAMPLE,
    out: Annotated[Path | None, typer.Option(help="JSON; results are added.")] = None,
    logs: Annotated[Path | None, typer.Option(help="Keep all logs in this folder.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Of the dashboard; a folder.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Steps at an engine.")] = None,
) -> None:
    """Play scenarios one after the other, each with a cluster of its own.

    With `--greedy` and a store, exit code 1 where shares moved further apart than they may.
    """
    results = _read(out) if out is not None and out.exists() else []
    for name in names:
        options = ClusterOptions(
            target=target,  # type: ignore[arg-type]
            balance=balance,  # type: ignore[arg-type]
            engine_kind=engine,  # type: ignore[arg-type]
            agents=agents,
            seconds=seconds,
            speed=speed,
            blocks=blocks,
            has_bus=bus,
            has_store=store,
            is_greedy=greedy,
            old_tree=old_tree,
            trace=trace,
            logs=logs / f"{target}-{name}" if logs is not None else None,
            pictures=pictures,
            settings={"limits": {"running_steps_per_engine_max": slots}} if slots else {},
        )
        try:
            result = asyncio.run(_run(name, options))
        except AgentschedError as error:
            print(f"{name}: {error}", file=sys.stderr)
            raise typer.Exit(1) from error
        result["at"] = datetime.now(tz=UTC).isoformat(timespec="seconds")
        results.append(result)
        if out is not None:
            out.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
        print(table([result]), flush=True)
        if not is_shared(result):
            print(f"{name}: shares are not shown to be within the bound", file=sys.stderr)
            raise typer.Exit(1)


@app.command("soak")
def soak_for(
    *,
    minutes: Annotated[float, typer.Option(min=0)] = 30.0,
    round_s: Annotated[float, typer.Option("--round", min=5, help="Seconds.")] = 20.0,
    agents: Annotated[int, typer.Option(min=1)] = 8,
    out: Annotated[Path | None, typer.Option(help="JSON.")] = None,
    logs: Annotated[Path | None, typer.Option(help="Keep all logs in this folder.")] = None,
) -> None:
    """Rounds of load and faults; exit code 1 where something grew, hung or was lost."""
    options = ClusterOptions(agents=agents, logs=logs)
    try:
        result = asyncio.run(_soak(options, minutes=minutes, round_s=round_s))
    except AgentschedError as error:
        print(f"soak: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    text = msgspec.json.format(msgspec.json.encode(result), indent=1).decode()
    if out is not None:
        out.write_text(text + "\n")
    print(text)
    raise typer.Exit(0 if result["holds"] else 1)


async def _soak(options: ClusterOptions, *, minutes: float, round_s: float) -> dict[str, Any]:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await soak(options, minutes=minutes, round_s=round_s)


async def _run(name: str, options: ClusterOptions) -> dict[str, Any]:
    """SIGTERM ends it as Ctrl-C does: nothing that was started is left behind."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run_scenario(name, options)


@app.command("table")
def show(files: list[Path]) -> None:
    """Results as Markdown, ours and then all routers side by side."""
    results = [result for file in files for result in _read(file)]
    print(table([r for r in results if r["target"] == "agentsched"]))
    print()
    print(comparison(results))


def _read(file: Path) -> list[dict[str, Any]]:
    return msgspec.json.decode(file.read_bytes(), type=list[dict[str, Any]])


if __name__ == "__main__":
    app()
