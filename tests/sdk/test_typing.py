"""What a strict type checker sees of decorated code: what was there before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USE = """
from typing import assert_type, overload

from agentsched import agent_step, program, tool_call


class Model:
    def __call__(self, prompt: str) -> str:
        return prompt


class Agent:
    @agent_step(tools=["bash"])
    async def think(self, prompt: str, *, limit: int = 3) -> str:
        return prompt

    @tool_call("bash", call_id="call")
    def bash(self, command: str, call: str) -> str:
        return command


@overload
def ask(prompt: int) -> int: ...
@overload
def ask(prompt: str) -> str: ...
def ask(prompt: int | str) -> int | str:
    return prompt


bare: type[Model] = agent_step(Model)
told: type[Model] = agent_step(tools=["bash"])(Model)
tool: type[Model] = tool_call(Model)
opened: type[Model] = program(agent="m")(Model)
assert_type(agent_step(ask)(3), int)
assert_type(tool_call("ask")(ask)("x"), str)


async def run(agent: Agent) -> None:
    assert_type(await agent.think("x", limit=4), str)
    assert_type(agent.bash("ls", call="c"), str)
"""


@pytest.mark.slow
def test_what_is_decorated_keeps_its_type(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(USE)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache"]
    checked = subprocess.run(
        [*command, "--config-file", "", "use.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
