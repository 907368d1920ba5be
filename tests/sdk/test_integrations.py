"""What adapters report, and that one can be attached to an agent of mini-swe-agent's shape.

The adapters with their frameworks are run in tests/examples.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

import agentsched
from agentsched.sdk import context
from agentsched.sdk.context import Program
from agentsched.sdk.integrations import mini_swe_agent
from agentsched.sdk.integrations.reports import _OPEN_MAX, OpenCalls


def test_calls_start_and_end_once(inbox: Any) -> None:
    calls, program = OpenCalls(), Program(id="p")
    calls.start("k", program, "bash", "call-1")
    calls.finish("k", is_error=True)
    calls.finish("k")
    calls.finish("never began")
    calls.start("next", program, "edit", "")
    told = inbox.events(3)
    assert [e["event"] for e in told] == ["started", "finished", "started"]
    assert told[0] == {"event": "started", "program": "p", "tool": "bash", "call_id": "call-1"}
    assert told[1]["is_error"] is True
    assert told[1]["took_s"] >= 0
    assert told[2] == {"event": "started", "program": "p", "tool": "edit"}


def test_calls_that_never_end_are_forgotten(inbox: Any) -> None:
    calls = OpenCalls()
    for number in range(_OPEN_MAX + 5):
        calls.start(number, Program(id="p"), "bash", "")
    assert len(calls._calls) == _OPEN_MAX
    assert 0 not in calls._calls


def test_without_a_proxy_nothing_is_kept() -> None:
    calls = OpenCalls()
    calls.start("k", Program(id="p"), "bash", "")
    assert not calls._calls


@pytest.fixture
def langgraph(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The adapter, with as much of the framework as it reads."""
    fakes = {
        "langchain_core.callbacks": {"BaseCallbackHandler": object},
        "langchain_core.runnables.config": {
            "var_child_runnable_config": ContextVar("config", default=None)
        },
    }
    for name, holds in fakes.items():
        module = ModuleType(name)
        vars(module).update(holds)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("langchain_core", "langchain_core.runnables"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(context, "_FINDERS", [])
    adapter = "agentsched.sdk.integrations.langgraph"
    monkeypatch.delitem(sys.modules, adapter, raising=False)
    yield importlib.import_module(adapter)
    del sys.modules[adapter]


class TestThreadsOfLangGraph:
    def test_closing_one_leaves_those_whose_names_begin_alike(
        self, inbox: Any, langgraph: Any
    ) -> None:
        of = langgraph._programs.of
        of({"thread_id": "chat.2"})
        of({"thread_id": "chat"})
        space = "plan:0123456789|node:1"
        assert of({"thread_id": "chat", "checkpoint_ns": space}).id == "chat.plan-01234567"
        assert langgraph.close("chat") == 2
        closed = [event["program"] for event in inbox.events(2)]
        assert closed == ["chat.plan-01234567", "chat"]
        assert langgraph.close("chat.2") == 1

    @pytest.mark.parametrize("thread", [7, UUID(int=7)])
    def test_an_id_is_what_the_framework_was_told(
        self, inbox: Any, langgraph: Any, thread: object
    ) -> None:
        langgraph._programs.of({"thread_id": thread})
        assert langgraph.close(thread) == 1
        assert inbox.events(1)[0]["program"] == str(thread)


class Agent:
    """The seams of a mini-swe-agent."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        config = SimpleNamespace(model_kwargs={"api_key": "k", "extra_headers": {"x-own": "1"}})
        self.model = SimpleNamespace(config=config, query=self._query)
        self.env = SimpleNamespace(execute=self._execute)

    def _query(self, messages: list[Any], **kwargs: Any) -> str:
        self.asked.append(kwargs)
        return "answer"

    def _execute(self, action: dict[str, Any], cwd: str = "") -> str:
        return f"{action['command']} in {cwd}"

    def run(self, task: str) -> str:
        assert self.model.query([task]) == "answer"
        return str(self.env.execute({"command": task, "tool_call_id": "c1"}, "here"))


def test_an_agent_of_mini_swe_agents_shape(inbox: Any) -> None:
    agent = mini_swe_agent.attach(Agent(), program="django-1", tenant="red")
    assert agent.run("ls") == "ls in here"
    [kwargs] = agent.asked
    headers = kwargs["extra_headers"]
    assert headers["x-agentsched-program"] == "django-1"
    assert headers["x-agentsched-tenant"] == "red"
    assert headers["x-own"] == "1"
    started, finished, closed = inbox.events(3)
    assert (started["tool"], started["call_id"]) == ("bash", "c1")
    assert finished["event"] == "finished"
    assert closed == {"event": "closed", "program": "django-1"}
    # Outside a run it is as it was.
    agent.model.query(["more"])
    assert agent.asked[1] == {}
    assert agentsched.current_program() is None


def test_shared_parts_are_wrapped_once(inbox: Any) -> None:
    one, two = Agent(), Agent()
    two.model, two.env = one.model, one.env
    for agent, name in ((one, "a"), (two, "b")):
        mini_swe_agent.attach(agent, program=name).run("ls")
    names = [kwargs["extra_headers"]["x-agentsched-program"] for kwargs in one.asked]
    assert names == ["a", "b"]
    assert len(inbox.events(6)) == 6


def test_connection_follows_the_configuration(inbox: Any) -> None:
    assert mini_swe_agent.connection() == {"api_base": f"{inbox.url}/v1", "api_key": "none"}
    assert mini_swe_agent.connection("http://p:1/v1", api_key="k") == {
        "api_base": "http://p:1/v1",
        "api_key": "k",
    }
