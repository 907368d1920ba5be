"""An agent in a plain asynchronous loop, with the official `anthropic` client.

AGENTSCHED_URL=http://127.0.0.1:8900 python examples/plain_loop_anthropic.py "What is 6 times 7?"
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import agentsched

MODEL = os.environ.get("MODEL", "sim")
TOOLS: list[Any] = [
    {
        "name": "multiply",
        "description": "Multiply two numbers.",
        "input_schema": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    }
]


@agentsched.agent_step(tools=["multiply"], expects={"multiply": 0.5})
async def think(client: Any, messages: list[Any]) -> Any:
    return await client.messages.create(model=MODEL, messages=messages, tools=TOOLS, max_tokens=256)


async def answer(question: str) -> str:
    messages: list[Any] = [{"role": "user", "content": question}]
    async with agentsched.async_anthropic() as client, agentsched.program(agent="calculator"):
        while True:
            said = await think(client, messages)
            messages.append({"role": "assistant", "content": said.to_dict()["content"]})
            calls = [block for block in said.content if block.type == "tool_use"]
            if not calls:
                return "".join(block.text for block in said.content if block.type == "text")
            results = []
            for call in calls:
                with agentsched.tool_call("multiply", call_id=call.id):
                    product = call.input["a"] * call.input["b"]
                result = {"type": "tool_result", "tool_use_id": call.id, "content": str(product)}
                results.append(result)
            messages.append({"role": "user", "content": results})


if __name__ == "__main__":
    print(asyncio.run(answer(sys.argv[1])))
