"""What adapters report, and that one can be attached to an agent of mini-swe-agent's shape.

The adapters with their frameworks are run in tests/examples.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import quote
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


@contextlib.contextmanager
def adapter(
    name: str, monkeypatch: pytest.MonkeyPatch, fakes: dict[str, dict[str, Any]]
) -> Iterator[Any]:
    """An adapter, with as much of its framework as it reads."""
    for module, holds in fakes.items():
        made = ModuleType(module)
        vars(made).update(holds)
        monkeypatch.setitem(sys.modules, module, made)
    monkeypatch.setattr(context, "_FINDERS", [])
    path = f"agentsched.sdk.integrations.{name}"
    monkeypatch.delitem(sys.modules, path, raising=False)
    yield importlib.import_module(path)
    del sys.modules[path]


class BubbleUp(Exception):  # as LangGraph calls it
    """Says where a graph goes on."""


class Interrupt(BubbleUp):
    """Says that it waits for somebody."""


@pytest.fixture
def langgraph(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    fakes: dict[str, dict[str, Any]] = {
        "langchain_core": {},
        "langchain_core.callbacks": {"BaseCallbackHandler": object},
        "langchain_core.runnables": {},
        "langchain_core.runnables.config": {
            "var_child_runnable_config": ContextVar("config", default=None)
        },
        "langgraph": {},
        "langgraph.errors": {"GraphBubbleUp": BubbleUp, "GraphInterrupt": Interrupt},
    }
    with adapter("langgraph", monkeypatch, fakes) as made:
        yield made


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

    def test_each_block_around_one_has_its_own_deadline_and_tenant(self, langgraph: Any) -> None:
        """A chat's turns: `program(id="chat")` around the same thread again and again."""
        node = {"thread_id": "t", "checkpoint_ns": "sub:01234567-8|node:1"}
        config = langgraph.var_child_runnable_config

        def turn(sent: dict[str, str], **said: Any) -> tuple[Any, ...]:
            """What a call of this turn says, and what a report before it would have said."""
            with agentsched.program(id="chat", **said):
                token = config.set({"configurable": node})
                here, headers = agentsched.current_program(), agentsched.current_headers()
                assert here is not None
                assert here is agentsched.current_program()
                assert headers["x-agentsched-program"] == "t.sub-01234567"
                credential = here.credential
                here.sent_with(sent)
                config.reset(token)
                deadline = headers.get("x-agentsched-deadline")
                return headers["x-agentsched-tenant"], deadline, credential

        key = {"authorization": "Bearer k"}
        assert turn(key, tenant="a", deadline_s=-1) == ("a", "0.001", {})
        assert turn(key, tenant="a") == ("a", None, key)
        assert turn(key, tenant="b") == ("b", None, {})
        assert langgraph.close("t") == 2

    def test_a_block_of_its_name_gives_it_and_its_sub_graphs_tenant_and_deadline(
        self, inbox: Any, langgraph: Any
    ) -> None:
        config = langgraph.var_child_runnable_config
        with agentsched.program(id="t", tenant="red", deadline_s=-1) as block:
            token = config.set({"configurable": {"thread_id": "t", "checkpoint_ns": "node:1"}})
            assert agentsched.current_program() is block
            config.reset(token)
            below = {"thread_id": "t", "checkpoint_ns": "sub:01234567-8|node:1"}
            token = config.set({"configurable": below})
            assert agentsched.current_headers() == {
                "x-agentsched-program": "t.sub-01234567",
                "x-agentsched-parent": "t",
                "x-agentsched-tenant": "red",
                "x-agentsched-agent": "sub",
                "x-agentsched-deadline": "0.001",
            }
            config.reset(token)
        assert inbox.events(1) == [{"event": "closed", "program": "t"}]
        later = langgraph._programs.of(below)
        assert (later.tenant, later.deadline_s) == (None, None)
        assert langgraph.close("t") == 2
        assert [e["program"] for e in inbox.events(2)] == ["t.sub-01234567", "t"]

    def test_graphs_that_one_node_calls_are_no_graphs_of_each_other(self, langgraph: Any) -> None:
        """LangGraph counts them: a number follows the node's level, but for the first of them."""
        spaces = (
            "sub:01234567-8|think:1",
            "sub:01234567-8|1|think:1",
            "sub:01234567-8|2|deep:89abcdef-0|1|think:1",
        )
        found = [
            langgraph._programs.of({"thread_id": "t", "checkpoint_ns": space}) for space in spaces
        ]
        assert [(program.id, program.parent, program.agent) for program in found] == [
            ("t.sub-01234567", "t", "sub"),
            ("t.sub-01234567-1", "t", "sub"),
            ("t.sub-01234567-2.deep-89abcdef-1", "t.sub-01234567-2", "deep"),
        ]


class TestToolsOfLangGraph:
    def whose(self, langgraph: Any, inbox: Any, metadata: dict[str, str]) -> str:
        """Whose tool that is of which a callback is told so."""
        tools, run = langgraph.Tools(), UUID(int=1)
        tools.on_tool_start({"name": "bash"}, "", run_id=run, metadata=metadata)
        tools.on_tool_end("", run_id=run)
        began, ended = inbox.events(2)
        assert began["program"] == ended["program"]
        return str(began["program"])

    def test_one_in_a_sub_graph_is_the_sub_programs(self, inbox: Any, langgraph: Any) -> None:
        told = {
            "thread_id": "t",
            "checkpoint_ns": "sub:01234567-8",  # where the sub-graph began
            "langgraph_checkpoint_ns": "sub:01234567-8|tools:1",
        }
        assert self.whose(langgraph, inbox, told) == "t.sub-01234567"

    def test_it_is_whose_an_llm_call_there_would_be(self, inbox: Any, langgraph: Any) -> None:
        """A thread that runs inside a node of another one: the metadata names the outer one."""
        told = {"thread_id": "outer", "langgraph_checkpoint_ns": "tools:1"}
        here = {"thread_id": "inner", "checkpoint_ns": "tools:1"}
        langgraph.var_child_runnable_config.set({"configurable": here})
        assert agentsched.current_headers()["x-agentsched-program"] == "inner"
        assert self.whose(langgraph, inbox, told) == "inner"
        with agentsched.program(id="asked-inside"):
            assert self.whose(langgraph, inbox, told) == "asked-inside"

    def test_one_that_waits_for_a_human_has_not_ended(self, inbox: Any, langgraph: Any) -> None:
        tools = langgraph.Tools()
        for number, error in enumerate((Interrupt(), BubbleUp(), KeyError())):
            run = UUID(int=number)
            tools.on_tool_start({"name": "ask"}, "", run_id=run, metadata={"thread_id": "t"})
            tools.on_tool_error(error, run_id=run)
        assert not tools._calls._calls
        assert [(e["event"], e.get("is_error")) for e in inbox.events(5)] == [
            ("started", None),
            ("started", None),
            ("finished", None),
            ("started", None),
            ("finished", True),
        ]


@dataclass
class RunConfig:
    """As much as is read of the framework's."""

    group_id: str | None = None
    trace_id: str | None = None
    call_model_input_filter: Any = None
    model_provider: Any = None


class Generic:
    """Any class of the framework's."""

    def __class_getitem__(cls, item: object) -> type[Generic]:
        return cls


@pytest.fixture
def openai_agents(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    names = ("Agent", "OpenAIProvider", "RunHooks", "Tool")
    fakes: dict[str, dict[str, Any]] = {
        "agents": {"RunConfig": RunConfig} | dict.fromkeys(names, Generic),
        "agents.models": {},
        "agents.models.multi_provider": {"MultiProvider": Generic},
        "agents.run": dict.fromkeys(("CallModelData", "ModelInputData"), Generic),
        "agents.run_context": {"RunContextWrapper": Generic},
    }
    with adapter("openai_agents", monkeypatch, fakes) as made:
        yield made


class Runs:
    """Runs agents as the framework does: the first turn is a task of its own, the others are not,
    and what a turn calls is a task of that turn. `whose` are the programs of all turns."""

    def __init__(self, config: RunConfig) -> None:
        self._filter = config.call_model_input_filter
        self.whose: list[str] = []

    async def run(self, question: str, *turns: tuple[str, Any]) -> None:
        """A turn is the agent's name, and what its answer calls."""
        for number, (agent, tool) in enumerate(turns):
            turn = self._turn(agent, tool, [question, *range(number)])
            await (turn if number else asyncio.create_task(turn))

    async def _turn(self, agent: str, tool: Any, said: list[object]) -> None:
        asked = SimpleNamespace(
            agent=SimpleNamespace(name=agent), model_data=SimpleNamespace(input=said)
        )
        assert await self._filter(asked) is asked.model_data
        self.whose.append(agentsched.current_headers()["x-agentsched-program"])
        if tool is not None:
            await asyncio.create_task(tool())


class TestAgentsOfOpenAI:
    async def test_a_call_of_an_agent_is_one_program(self, openai_agents: Any) -> None:
        async with openai_agents.through_proxy(RunConfig(group_id="g")) as config:
            runs = Runs(config)

            async def first() -> None:
                await runs.run("Is it 42?", *[("checker", None)] * 3)

            async def second() -> None:
                await runs.run("Is it 43?", *[("checker", None)] * 2)

            await runs.run("6 * 7?", ("front", None), ("sums", first), ("sums", second))
        assert runs.whose == [
            "g",
            "g.sums",
            *["g.sums.checker-1"] * 3,
            "g.sums",
            *["g.sums.checker-2"] * 2,
        ]

    async def test_a_later_run_goes_on_in_its_agents_program(self, openai_agents: Any) -> None:
        async with openai_agents.through_proxy(RunConfig(group_id="g")) as config:
            runs = Runs(config)
            for _ in range(2):
                await runs.run("6 * 7?", ("front", None), ("sums", None))
            await runs.run("And 7 * 7?", ("sums", None))
        assert runs.whose == ["g", "g.sums", "g", "g.sums", "g.sums"]

    async def test_the_proxy_is_asked_over_http_whatever_the_frameworks_default(
        self, openai_agents: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[dict[str, Any]] = []
        monkeypatch.setattr(openai_agents, "OpenAIProvider", lambda **more: asked.append(more))
        config = RunConfig(model_provider=Generic())
        async with openai_agents.through_proxy(config, use_responses=True):
            assert asked.pop()["use_responses_websocket"] is False
        async with openai_agents.through_proxy(config):
            assert "use_responses_websocket" not in asked.pop()  # older ones know no such thing

    async def test_names_in_any_script_are_told_apart(self, openai_agents: Any) -> None:
        async with openai_agents.through_proxy(RunConfig(group_id="g")) as config:
            runs = Runs(config)
            await runs.run("6 * 7?", ("受付", None), ("計算", None), ("検査 1", None))
        assert runs.whose == ["g", f"g.{quote('計算')}", f"g.{quote('検査')}-1"]


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


class Submitted(Exception):  # as mini-swe-agent calls it
    """How its last command ends a run."""

    def __init__(self, *messages: dict[str, str]) -> None:
        self.messages = messages


@pytest.mark.parametrize(
    ("error", "is_error"), [(Submitted({"role": "exit"}), None), (KeyError("x"), True)]
)
def test_the_command_that_submits_has_not_failed(
    inbox: Any, error: Exception, is_error: bool | None
) -> None:
    def execute(action: dict[str, Any], cwd: str = "") -> str:
        raise error

    agent = Agent()
    agent.env = SimpleNamespace(execute=execute)
    with pytest.raises(type(error)) as raised:
        mini_swe_agent.attach(agent, program="p").run("submit")
    assert raised.value is error
    _, finished, _ = inbox.events(3)
    assert finished["event"] == "finished"
    assert finished.get("is_error") is is_error


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
