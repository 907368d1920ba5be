"""An agent in a plain loop, with the official `openai` client.

The program is opened once around the loop; every call inside carries it. The step says which tools
its answer may call and how long they take, the tool reports when it starts and ends. All three are
optional: without any of them the proxy recognises the program by its messages.

    AGENTSCHED_URL=http://127.0.0.1:8900 python examples/plain_loop.py "What is 6 times 7?"
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import agentsched

MODEL = os.environ.get("MODEL", "sim")
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "multiply",
            "description": "Multiply two numbers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
                "required": ["a", "b"],
            },
        },
    }
]


@agentsched.agent_step(tools=["multiply"], expects={"multiply": 0.5})
def think(client: Any, messages: list[Any]) -> Any:
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=TOOLS, max_tokens=256
    )
    return answer.choices[0].message


@agentsched.tool_call(name="multiply", call_id="call_id")
def multiply(a: float, b: float, *, call_id: str) -> float:
    return a * b


def answer(question: str) -> str:
    messages: list[Any] = [{"role": "user", "content": question}]
    with agentsched.openai() as client, agentsched.program(agent="calculator", tenant="demo"):
        while True:
            said = think(client, messages)
            messages.append(said.model_dump(exclude_none=True))
            if not said.tool_calls:
                return str(said.content)
            for call in said.tool_calls:
                result = multiply(**json.loads(call.function.arguments), call_id=call.id)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})


if __name__ == "__main__":
    print(answer(sys.argv[1]))
