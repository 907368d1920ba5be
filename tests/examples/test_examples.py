"""The examples, run as users run them, and what the proxy made of them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentsched.model import (
    ProgramClosed,
    StepArrived,
    ToolFinished,
    ToolStarted,
)
from agentsched.policy.registry import load

pytestmark = [pytest.mark.slow]

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "examples/policy"
MULTIPLY = ("multiply", {"a": 6, "b": 7})
QUESTION = "What is 6 times 7?"


def programs(here: Any) -> dict[str, str | None]:
    """Programs without their tenant -> their parents."""
    arrived = here.events(StepArrived)
    return {bare(e.program): e.parent and bare(e.parent) for e in arrived}


def bare(program: str) -> str:
    """Without the tenant, which goes before the first slash."""
    return program.partition("/")[2] or program


def steps(here: Any) -> list[str]:
    return [bare(e.program) for e in here.events(StepArrived)]


def tools(here: Any) -> list[tuple[str, str]]:
    """Reported tools: program and tool, as started; each of them has also ended."""
    started = [(e.program, e.tool, e.call_id) for e in here.events(ToolStarted)]
    finished = [(e.program, e.tool, e.call_id) for e in here.events(ToolFinished)]
    assert sorted(started) == sorted(finished)
    assert all(e.took is not None for e in here.events(ToolFinished))
    return [(bare(program), tool.partition(" ")[0]) for program, tool, _ in started]


class TestPlainLoops:
    @pytest.mark.parametrize("example", ["plain_loop.py", "plain_loop_anthropic.py"])
    async def test_one_program_with_its_tool(self, stand: Any, plays: Any, example: str) -> None:
        async with stand(plays("6 times 7", MULTIPLY, "It is 42.")) as here:
            assert await here.run(example, QUESTION) == "It is 42."
            [(name, parent)] = programs(here).items()
            assert parent is None
            assert name.startswith("sdk-")
            assert steps(here) == [name, name]
            assert tools(here) == [(name, "multiply")]
            assert [bare(e.program) for e in here.events(ProgramClosed)] == [name]
            assert here.events(StepArrived)[0].agent == "calculator"


class TestWorkflow:
    async def test_it_is_declared_and_counted(self, stand: Any) -> None:
        async with stand() as here:
            here.url += "/v1"  # as clients need it; the SDK takes both
            printed = (await here.run("declare_workflow.py")).splitlines()
            assert printed[0].startswith("explore: ")
            assert printed[-1] == "conclude: 0.0 steps to come"
            assert list(here.gateway.host.scheduler.graphs.learnt.workflows) == ["fix-bug"]


class TestPolicy:
    async def test_a_strangers_policy_serves(
        self, stand: Any, plays: Any, installed_policy: str
    ) -> None:
        chosen = tomllib.loads((POLICY / "agentsched.toml").read_text())["policies"]
        async with stand(plays("6 times 7", MULTIPLY, "It is 42."), policies=chosen) as here:
            assert here.gateway.host.scheduler.policies.names["order"] == installed_policy
            assert await here.run("plain_loop.py", QUESTION) == "It is 42."
            assert here.gateway.host.scheduler.statistics().policy_errors_total == 0

    def test_it_sorts_by_size_and_has_few_lines(self, installed_policy: str) -> None:
        policy: Any = load("order", installed_policy, {})
        small, large = (SimpleNamespace(prompt_tokens=n) for n in (10, 20))
        assert policy.rank(small, None, now=0) < policy.rank(large, None, now=0)
        lines = (POLICY / "shortest_prompt.py").read_text().splitlines()
        assert sum(bool(line.strip()) for line in lines) <= 15


class TestTraces:
    def test_a_synthetic_trace_is_described_and_simulated(self, tmp_path: Path) -> None:
        here = Path(sys.executable).parent
        done = subprocess.run(
            [ROOT / "examples/your-traces.sh"],
            env={"PATH": f"{here}:/usr/bin:/bin", "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        for arm in ("direct", "agentsched", "unlimited"):
            assert arm in done.stdout


@pytest.mark.clients
class TestFrameworks:
    async def test_langgraph(self, stand: Any, plays: Any, frameworks: str) -> None:
        scripts = (
            plays("Check this", "It is right."),
            plays("6 times 7", MULTIPLY, "It is 42."),
        )
        async with stand(*scripts) as here:
            printed = await here.run("langgraph_agent.py", "t-1", QUESTION, python=frameworks)
            assert printed.splitlines() == ["It is 42.", "It is right."]
            opened = programs(here)
            (sub,) = set(opened) - {"t-1"}
            assert opened == {"t-1": None, sub: "t-1"}
            assert sub.startswith("t-1.checker-")
            assert steps(here) == ["t-1", "t-1", sub]
            assert tools(here) == [("t-1", "multiply")]
            assert {bare(e.program) for e in here.events(ProgramClosed)} == {"t-1", sub}

    async def test_openai_agents(self, stand: Any, plays: Any, frameworks: str) -> None:
        scripts = (
            plays("42?", "It is right."),
            plays(
                "6 times 7",
                ("transfer_to_calculator", {}),
                MULTIPLY,
                ("check", {"input": "Is it 42?"}),
                "It is 42, checked.",
            ),
        )
        async with stand(*scripts) as here:
            printed = await here.run(
                "openai_agents_team.py", "chat-42", QUESTION, python=frameworks
            )
            assert printed == "It is 42, checked."
            calculator, checker = "chat-42.Calculator", "chat-42.Calculator.Checker-1"
            assert programs(here) == {
                "chat-42": None,
                calculator: "chat-42",
                checker: calculator,
            }
            assert steps(here) == ["chat-42", calculator, calculator, checker, calculator]
            assert tools(here) == [(calculator, "multiply"), (calculator, "check")]
            closed = [bare(e.program) for e in here.events(ProgramClosed)]
            assert closed == [checker, calculator, "chat-42"]

    async def test_mini_swe_agent(self, stand: Any, plays: Any, frameworks: str) -> None:
        look = ("bash", {"command": "echo hello"})
        submit = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && echo done"
        async with stand(plays("Fix", look, ("bash", {"command": submit}))) as here:
            printed = await here.run(
                "mini_swe_agent_run.py", "django-11099", "Fix it", python=frameworks
            )
            assert printed == "done"
            assert programs(here) == {"django-11099": None}
            assert steps(here) == ["django-11099"] * 2
            assert tools(here) == [("django-11099", "bash")] * 2
            assert [bare(e.program) for e in here.events(ProgramClosed)] == ["django-11099"]
