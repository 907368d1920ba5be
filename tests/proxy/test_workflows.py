"""Workflows that are declared to a running proxy."""

from __future__ import annotations

from typing import Any

import pytest
from proxy_upstream import Upstream

from agentsched import agent_step, declared_workflow
from agentsched.model import WorkflowDeclared
from agentsched_graphs.workflow import read_workflow

PATH = "/agentsched/v1/workflows"


@agent_step(name="explore", tools=["grep"], expects={"grep": 0.5}, next=["edit"])
def explore() -> None: ...


@agent_step(name="edit", tools=["edit"], expects={"edit": 0.1})
def edit() -> None: ...


FIX = declared_workflow("fix-bug", explore, edit, agent="fixer")
YAML = """
name: fixer
start: look
steps:
  look: {tools: [grep], next: {look: 0.5, done: 0.5}}
  done: {}
"""


async def grepping(exchange: Any) -> None:
    """An engine that asks for a tool of the first step."""
    call = {"id": "c1", "type": "function", "function": {"name": "grep", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    await exchange.json(
        {"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}
    )


async def declare(proxy: Any, workflow: dict[str, Any] | bytes, status: int) -> Any:
    sent = {"content": workflow} if isinstance(workflow, bytes) else {"json": workflow}
    response = await proxy.client.post(PATH, **sent)
    assert response.status_code == status, response.text
    return response.json()


async def test_what_decorators_declare_is_known_and_in_the_journal(proxy: Any) -> None:
    shown = await declare(proxy, FIX, 201)
    assert shown["agent"] == "fixer"
    assert shown["replaces"] is None
    assert shown["steps"]["explore"]["next"] == {"edit": 1.0}
    assert shown["steps"]["explore"]["expected_s"] == 0.5
    assert shown["steps"]["explore"]["steps_left"] == 1.0
    (event,) = proxy.turns.events(WorkflowDeclared)
    assert read_workflow(event.text) == read_workflow(FIX)
    listed = (await proxy.client.get(PATH)).json()["workflows"]
    assert [w["name"] for w in listed] == ["fix-bug"]


async def test_a_programs_forecast_comes_from_it(proxy: Any, upstream: Upstream) -> None:
    await declare(proxy, FIX, 201)
    upstream.script = grepping
    headers = {"x-agentsched-program": "p", "x-agentsched-agent": "fixer"}
    answered = await proxy.chat("go", headers=headers)
    program = answered.headers["x-agentsched-program"]
    shown = (await proxy.client.get(f"/agentsched/v1/programs/{program}")).json()
    assert shown["agent"] == "fixer"
    (conversation,) = shown["forecast"]["conversations"].values()
    assert conversation["next_tools"] == {"edit": 1.0}
    assert shown["forecast"]["steps_left"] == 1.0


async def test_the_newest_word_about_an_agent_counts_and_yaml_will_do(proxy: Any) -> None:
    await declare(proxy, FIX, 201)
    shown = await declare(proxy, YAML.encode(), 201)
    assert shown["replaces"] == "fix-bug"
    assert shown["steps"]["look"]["steps_left"] == pytest.approx(2.0)
    listed = (await proxy.client.get(PATH)).json()["workflows"]
    assert [w["name"] for w in listed] == ["fixer"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "neither YAML nor JSON"),
        (b'{"name": "w", "start": "nowhere", "steps": {"a": {}}}', "nowhere"),
        (b'{"name": "w", "start": "a", "steps": {"a": {"next": ["b"]}}}', "'a'"),
        (b'{"name": "w", "start": "a", "steps": {"a": {}}, "more": 1}', "more"),
    ],
)
async def test_a_wrong_one_says_what_is_wrong_and_changes_nothing(
    proxy: Any, body: bytes, said: str
) -> None:
    refused = await declare(proxy, body, 400)
    assert refused["error"]["code"] == "bad_workflow"
    assert said in refused["error"]["message"]
    assert (await proxy.client.get(PATH)).json() == {"workflows": []}
    assert not proxy.turns.events(WorkflowDeclared)


async def test_there_are_limits(proxy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = await declare(proxy, b'{"name": "' + b"x" * (1 << 18) + b'"}', 413)
    assert "bytes" in refused["error"]["message"]
    monkeypatch.setattr("agentsched.proxy.workflows.WORKFLOWS_MAX", 1)
    await declare(proxy, FIX, 201)
    refused = await declare(proxy, FIX | {"agent": "other"}, 409)
    assert refused["error"]["code"] == "too_many_workflows"
    await declare(proxy, FIX, 201)  # the same agent's may be replaced
