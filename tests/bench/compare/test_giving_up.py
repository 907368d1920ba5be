"""Real agents that give up: programs that failed, and an arm that is left out where none began."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from agentsched.model import EngineError
from agentsched_bench.compare.agents import AgentLoad, run_agents
from agentsched_bench.compare.load import make_load
from agentsched_bench.compare.results import Run
from agentsched_bench.compare.scenario import load_scenario
from agentsched_bench.compare.stages import Endpoint, Engines

#: An agent that makes so many calls and ends with a status, as the plan says for its program.
MINI = """\
#!{python} -SE
import sys, urllib.request
url = next(each for each in sys.argv if "api_base=" in each).partition("api_base=")[2]
calls, status = {plan}[int(url.split("/p")[1].split("/")[0])]
for _ in range(calls):
    urllib.request.urlopen(urllib.request.Request(url + "/chat/completions", data=b"{{}}")).read()
print("I give up", file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    """An engine that answers everything."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def play(small: Path, upstream: str, run: Run, *agents: tuple[int | None, int]) -> list[str]:
    """Play the load with an agent for each program: so many calls (None: all), its status."""
    scenario = load_scenario(small)
    load = make_load(scenario.workload, seed=0, beside=small.parent)
    load = replace(load, starts_s=[0.0] * len(load.plans))
    plan = [
        (len(planned.main.calls) if calls is None else calls, status)
        for planned, (calls, status) in zip(load.plans, agents, strict=True)
    ]
    mini = small.parent / ".clients/python/bin/mini"
    mini.parent.mkdir(parents=True)
    mini.write_text(MINI.format(python=sys.executable, plan=plan))
    mini.chmod(0o755)
    (small.parent / ".clients/.installed").touch()
    await run_agents(
        AgentLoad(client="mini-swe-agent", load=load, model="sim", repeat=0),
        Endpoint(url=upstream),
        Engines(urls=(), kv_tokens=None, reset_path=None),
        scenario,
        run,
        show=lambda **_: None,
    )
    return [planned.program for planned in load.plans]


@pytest.mark.slow
async def test_an_agent_that_gives_up_is_a_program_that_failed(
    small: Path, upstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all of its calls answered, or without a single one; the others play to their end."""
    monkeypatch.chdir(small.parent)
    run = Run(arm="ours", repeat=0, seed=0)

    names = await play(small, upstream, run, (None, 1), (None, 0), (0, 1))

    assert run.is_complete
    assert [(row.program, row.outcome) for row in run.programs] == list(
        zip(names, ("failed", "completed", "failed"), strict=True)
    )
    assert [row.jct_s is None for row in run.programs] == [True, False, True]
    assert not any(call.error for call in run.calls)
    assert run.note.startswith("2 agents gave up; one of them: mini-swe-agent ended with status 1")
    assert run.note.endswith("I give up")


@pytest.mark.slow
async def test_agents_that_cannot_even_begin_are_no_finding(
    small: Path, upstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.parent)
    run = Run(arm="ours", repeat=0, seed=0)

    with pytest.raises(EngineError, match="ended with status 3: I give up"):
        await play(small, upstream, run, (0, 3), (0, 3), (0, 3))

    assert not run.is_complete
