"""Draw the execution graph of a recorded program, as the proxy sees it.

    python -m agentsched_bench.portrait TRACE --only ID --out graph.png [--steps 40]

Starts the embedded engine and a proxy in this process, replays the program with its tool calls and
sub-agents, and writes its graph: png, svg, json, mmd (Mermaid) or dot, by the file's name.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from agentsched.inspection.drawing import draw
from agentsched.model import ProgramId
from agentsched_bench.portrait.replay import Scale, proxy_on_embedded_engine, replay_program
from agentsched_bench.workload.trace import RecordedProgram, group_programs, read_trace
from agentsched_graphs.builder import GraphBuilder
from agentsched_graphs.export import to_dot, to_json, to_mermaid
from agentsched_graphs.snapshot import Snapshot, snapshot


def main(arguments: list[str] | None = None) -> int:
    """Replay and draw; returns the exit code."""
    parser = argparse.ArgumentParser(prog="agentsched_bench.portrait", description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--only", default="", help="part of the program's id; default: the first")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--scale-time", type=float, default=4.0)
    parser.add_argument("--scale-tokens", type=float, default=16.0)
    parser.add_argument("--out", type=Path, nargs="+", required=True)
    chosen = parser.parse_args(arguments)
    programs = group_programs(read_trace(chosen.trace))
    found = [p for p in programs if chosen.only in p.main.session_id]
    if not found:
        parser.error(f"no program of {chosen.trace} is called {chosen.only!r}")
    scale = Scale(tokens=chosen.scale_tokens, time=chosen.scale_time, steps_max=chosen.steps)
    shown = asyncio.run(_replay(found[0], scale))
    for path in chosen.out:
        path.write_bytes(_render(shown, path.suffix.removeprefix(".")))
    print(f"{shown.program}: {len(shown.nodes)} nodes, {len(shown.edges)} edges")
    return 0


async def _replay(recorded: RecordedProgram, scale: Scale) -> Snapshot:
    async with proxy_on_embedded_engine(scale) as (gateway, url):
        program = await replay_program(url, recorded, scale)
        graphs = gateway.host.scheduler.graphs
        assert isinstance(graphs, GraphBuilder)
        graph = graphs.graph(ProgramId(program))
        assert graph is not None
        return snapshot(graph, now=gateway.host.now())


def _render(shown: Snapshot, suffix: str) -> bytes:
    match suffix:
        case "json":
            return to_json(shown)
        case "mmd":
            return to_mermaid(shown).encode()
        case "dot":
            return to_dot(shown).encode()
        case _:
            return draw(shown, format=suffix)


if __name__ == "__main__":
    sys.exit(main())
