"""OpenAI Agents SDK: the group is the program; a handoff and an agent as a tool are sub-programs.

pip install 'agentsched[sdk]' openai-agents  # in a checkout: '.[sdk]'
AGENTSCHED_URL=http://127.0.0.1:8900 python examples/openai_agents_team.py chat-42 "6 times 7?"
"""

from __future__ import annotations

import asyncio
import os
import sys

from agents import Agent, RunConfig, Runner, function_tool, set_tracing_disabled

from agentsched.sdk.integrations import openai_agents

MODEL = os.environ.get("MODEL", "sim")


@function_tool
def multiply(a: float, b: float) -> float:
    """Multiply two numbers."""
    return a * b


tools = openai_agents.Tools()
checker = Agent(name="Checker", instructions="Check what you are given.", model=MODEL)
calculator = Agent(
    name="Calculator",
    instructions="Calculate, then have it checked.",
    model=MODEL,
    tools=[
        multiply,
        checker.as_tool("check", "Checks a result.", hooks=tools),
    ],
)
front = Agent(
    name="Front",
    instructions="Find out who can help.",
    model=MODEL,
    handoffs=[calculator],
)


async def answer(group: str, question: str) -> str:
    set_tracing_disabled(True)  # traces go to OpenAI otherwise
    async with openai_agents.through_proxy(RunConfig(group_id=group)) as config:
        result = await Runner.run(front, question, run_config=config, hooks=tools)
    return str(result.final_output)


if __name__ == "__main__":
    print(asyncio.run(answer(*sys.argv[1:])))
