"""Each installed agent on one small task behind the proxy: does it end well, is it recognised?"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from agentsched_bench.clients.agents import AGENTS, Agent
from agentsched_bench.clients.command_lines import Installed, run
from agentsched_bench.clients.isolation import loopback_only
from agentsched_bench.clients.stand import Attribution, standing

_TASK: Final = "Look at the barn"
_LAST_WORD: Final = "The-barn-is-fine"
_COMMANDS: Final = ("echo hello", "echo again")
_LIMIT_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One agent's trial. `mistakes` says where the proxy took it for what it was not."""

    agent: str
    is_done: bool
    took_s: float
    rows: list[Attribution]
    mistakes: list[str]


def try_all(folder: Path, *, with_ids: bool) -> int:
    """Print a table of all agents. Exit status 1 where one failed or was mistaken.

    Raises:
        ConfigError: the agents are not in `folder`, or the network cannot be taken away.
    """
    installed = Installed(folder.resolve())
    agents = [agent for agent in AGENTS if agent.is_installed(installed)]
    with loopback_only():
        trials = [asyncio.run(_attempt(agent, installed, with_ids=with_ids)) for agent in agents]
    title = f"Agents behind the proxy, {'with' if with_ids else 'without'} ids"
    Console().print(_table(trials, title=title))
    return 0 if all(trial.is_done and not trial.mistakes for trial in trials) else 1


async def _attempt(agent: Agent, installed: Installed, *, with_ids: bool) -> Trial:
    scripts = agent.script(_TASK, _COMMANDS, last_word=_LAST_WORD)
    with tempfile.TemporaryDirectory() as folder:
        async with standing(Path(folder), scripts, strips_ids=not with_ids) as stand:
            line = agent.line(installed, stand.relay.url, stand.home)
            start = time.monotonic()
            done = await run(line, *agent.task(_TASK), folder=stand.folder, limit_s=_LIMIT_S)
            took_s = time.monotonic() - start
    return Trial(
        agent=agent.name,
        is_done=done.status == 0 and _LAST_WORD in done.output,
        took_s=took_s,
        rows=stand.attributions(),
        mistakes=stand.mistakes(),
    )


def _table(trials: list[Trial], *, title: str) -> Table:
    shown = Table(title=title)
    for name in ("agent", "done", "seconds", "requests", "programs", "went by", "mistakes"):
        shown.add_column(name)
    for trial in trials:
        shown.add_row(
            trial.agent,
            "yes" if trial.is_done else "no",
            f"{trial.took_s:.1f}",
            str(len(trial.rows)),
            str(len({row.program for row in trial.rows})),
            " ".join(dict.fromkeys(row.evidence for row in trial.rows)),
            "; ".join(trial.mistakes) or "none",
        )
    return shown
