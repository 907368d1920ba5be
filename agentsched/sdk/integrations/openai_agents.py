"""OpenAI Agents SDK: a group of runs is a program, other agents in it are sub-programs.

    async with openai_agents.through_proxy(RunConfig(group_id="chat-42")) as config:
        await Runner.run(agent, "...", run_config=config, hooks=openai_agents.Tools())

The program's id is the group's, else the trace's, else made up. An agent that takes over by a
handoff, or that another one calls as a tool, is a sub-program of its own: it has other instructions
and other tools, hence a prefix of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Final

from agents import Agent, OpenAIProvider, RunConfig, RunHooks, Tool
from agents.models.multi_provider import MultiProvider
from agents.run import CallModelData, ModelInputData
from agents.run_context import RunContextWrapper

from agentsched.sdk.clients import async_openai
from agentsched.sdk.context import Program, current_program, find_with, put_back
from agentsched.sdk.decorators import program as open_program
from agentsched.sdk.integrations.reports import OpenCalls

#: Names in any script are told apart: what is beyond ASCII is percent-encoded on its way.
_UNFIT: Final = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the code at hand is: which agent of which program runs in this task."""

    agent: str
    program: Program
    task: asyncio.Task[Any] | None


_PLACE: ContextVar[_Place | None] = ContextVar("agentsched_agents_place", default=None)


def _at_hand() -> Program | None:
    place = _PLACE.get()
    return None if place is None else place.program


find_with(_at_hand)


class _Group:
    """The programs of one group of runs."""

    def __init__(self, root: Program) -> None:
        self._root = root
        #: The agent that the group began with.
        self._first = ""
        #: Agents that took over, by name.
        self._takers: dict[str, Program] = {}
        #: Agents that were called as tools: by whom, their name, and what each was asked first.
        self._calls: dict[tuple[str, str, int], Program] = {}
        self._programs: list[Program] = []

    def enter(self, agent: str, said: Sequence[object]) -> None:
        """An agent's turn begins in this task; `said` is what its model is asked."""
        task, place = asyncio.current_task(), _PLACE.get()
        if place is not None and place.program.id not in self._ids():
            place = None  # another group's
        if place is not None and place.agent == agent:
            return
        # Any run's first turn has a task of its own, not only that of an agent called as a tool.
        is_known = agent == self._first or agent in self._takers
        if place is not None and place.task is not task and not is_known:
            program = self._call(agent, place.program, said)
        else:
            program = self._take_over(agent, place.program if place is not None else self._root)
        _PLACE.set(_Place(agent=agent, program=program, task=task))

    def _ids(self) -> set[str]:
        return {self._root.id, *(program.id for program in self._programs)}

    def _take_over(self, agent: str, before: Program) -> Program:
        """A handoff, or a handoff back; the first agent is the program itself."""
        self._first = self._first or agent
        if agent == self._first:
            return self._root
        if agent not in self._takers:
            self._takers[agent] = self._open(f"{self._root.id}.{_fit(agent)}", agent, before)
        return self._takers[agent]

    def _call(self, agent: str, caller: Program, said: Sequence[object]) -> Program:
        """One agent calls another as a tool: each call is a program.

        What a call's first turn sets in its task its later turns do not see: they are known by
        what the agent was asked first, which stands at the beginning of all that it is asked.
        """
        call = caller.id, agent, hash(repr(said[:1]))
        if call not in self._calls:
            key = f"{caller.id}.{_fit(agent)}-{len(self._calls) + 1}"
            self._calls[call] = self._open(key, agent, caller)
        return self._calls[call]

    def _open(self, key: str, agent: str, parent: Program) -> Program:
        opened = Program(id=key, agent=agent, parent=parent)
        self._programs.append(opened)
        return opened

    def close(self) -> None:
        """The sub-programs end; the program itself is its opener's."""
        for program in reversed(self._programs):
            program.close()


@asynccontextmanager
async def through_proxy(
    config: RunConfig | None = None,
    *,
    url: str | None = None,
    api_key: str | None = None,
    tenant: str | None = None,
    deadline_s: float | None = None,
    use_responses: bool = False,
) -> AsyncIterator[RunConfig]:
    """The configuration for runs through the proxy; they are one program, closed at the end.

    A `model_provider` of the caller's own is kept, unless it is a `MultiProvider`, as the one that
    the framework puts there is; else models are asked over chat completions, or over responses
    where `use_responses` says so.
    """
    config = config or RunConfig()
    name = config.group_id or config.trace_id
    with open_program(id=name, tenant=tenant, deadline_s=deadline_s) as root:
        group, given = _Group(root), config.call_model_input_filter

        async def follow(data: CallModelData[Any]) -> ModelInputData:
            # The one hook that runs in the task that then asks the model, also in nested runs.
            group.enter(data.agent.name, data.model_data.input)
            if given is None:
                return data.model_data
            changed = given(data)
            return await changed if inspect.isawaitable(changed) else changed

        changes: dict[str, Any] = {"call_model_input_filter": follow}
        client = None
        if isinstance(config.model_provider, MultiProvider):
            client = async_openai(url, api_key=api_key)
            # The framework may be told to ask over WebSockets, which our proxy does not relay.
            way = {"use_responses_websocket": False} if use_responses else {}
            changes["model_provider"] = OpenAIProvider(
                openai_client=client, use_responses=use_responses, **way
            )
        token = _PLACE.set(None)
        try:
            yield replace(config, **changes)
        finally:
            put_back(_PLACE, token)
            group.close()
            if client is not None:
                await client.close()


class Tools(RunHooks[Any]):  # type: ignore[misc]  # checked without the framework
    """Hooks that report tools' starts and ends. Nested runs need them too: `as_tool(hooks=)`."""

    def __init__(self) -> None:
        self._calls = OpenCalls()

    async def on_tool_start(
        self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool
    ) -> None:
        """A tool begins in the task of its agent."""
        program = current_program()
        if program is not None:
            call_id = getattr(context, "tool_call_id", "")
            self._calls.start(_key(context, tool), program, tool.name, call_id)

    async def on_tool_end(
        self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool, result: object
    ) -> None:
        """It has its result; a failure is a result here, too."""
        self._calls.finish(_key(context, tool))


def _key(context: Any, tool: Any) -> tuple[int, str]:
    # A tool's context lives as long as its call does; plain ones are the run's.
    return id(context), getattr(context, "tool_call_id", "") or tool.name


def _fit(name: str) -> str:
    """An agent's name as a part of an id."""
    return _UNFIT.sub("-", name).strip("-")[:64] or "agent"
