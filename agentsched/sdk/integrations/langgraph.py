"""LangGraph: a thread is a program, a sub-graph is a sub-program, tools are reported.

    model = ChatOpenAI(model="...", **langgraph.connection())
    graph.invoke(state, {"configurable": {"thread_id": "t-1"}, "callbacks": [langgraph.Tools()]})

The thread's id is read where an LLM call is made: from the configuration that LangGraph keeps in
the context of a running node. A sub-graph runs in a namespace below its thread
(`checkpoint_ns`), whose path is its program's name. A thread outlives a run, so no run ends its
program: call `close(thread_id)` when it is done, or let the proxy forget it when it is idle.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Any, Final, NamedTuple
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.errors import GraphBubbleUp, GraphInterrupt

from agentsched.sdk.clients import api_key_of, async_httpx_hooks, httpx_hooks, root_of
from agentsched.sdk.context import Program, current_program, find_with, opened_program
from agentsched.sdk.integrations.reports import OpenCalls

#: Threads and sub-graphs whose programs are remembered, the one asked for longest ago goes first.
_PROGRAMS_MAX: Final = 4_096
#: Between the levels of a namespace, and between a node's name and its task's id.
_LEVEL, _TASK = "|", ":"
#: Between a program's id and what is below it.
_BELOW: Final = "."
#: So much of a task's id tells the runs of one sub-graph apart.
_ID_CHARS: Final = 8


class _Known(NamedTuple):
    """A program, the thread that it is of, and what it was made in."""

    #: Names alone do not tell a sub-graph from a thread called `t-1.2`.
    thread: str
    parent: Program | None
    program: Program


class _Programs:
    """The programs of threads and sub-graphs. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        #: By the ids of what they are in and their own.
        self._known: OrderedDict[tuple[str | None, str], _Known] = OrderedDict()

    def at_hand(self) -> Program | None:
        """Whose node runs here."""
        config = var_child_runnable_config.get()
        return None if config is None else self.of(config.get("configurable") or {})

    def of(self, told: Mapping[str, Any]) -> Program | None:
        """The program of a node, from what LangGraph says of it; None where there is no thread."""
        if told.get("thread_id") is None:
            return None
        thread = str(told["thread_id"])
        # A callback is told both: then `checkpoint_ns` is where its sub-graph began.
        space = told.get("langgraph_checkpoint_ns") or told.get("checkpoint_ns") or ""
        outer = opened_program()
        if outer is not None and thread in outer.ancestors:
            outer = None  # it was opened inside this thread
        found = self._program(thread, outer, thread=thread)
        for part, agent in _graphs(str(space)):
            key = f"{found.id}{_BELOW}{part}"
            found = self._program(key, found, thread=thread, agent=agent)
        return found

    def _program(
        self, key: str, parent: Program | None, *, thread: str, agent: str = ""
    ) -> Program:
        # A block of the thread's own name is the thread.
        own = parent if parent is not None and parent.id == key else None
        where = (parent.id if parent is not None and own is None else None, key)
        with self._lock:
            known = self._known.get(where)
            # Another block may have the same name, and a deadline and tenant of its own.
            if known is None or known.parent is not parent:
                made = own or Program(id=key, parent=parent, agent=agent)
                if known is not None and known.program.tenant == made.tenant:
                    # What its calls said counts for reports until they say so again.
                    made.credential = made.credential or known.program.credential
                known = self._known[where] = _Known(thread, parent, made)
            self._known.move_to_end(where)
            if len(self._known) > _PROGRAMS_MAX:
                self._known.popitem(last=False)
            return known.program

    def close(self, thread: object) -> int:
        """Close the programs of a thread; says how many there were."""
        with self._lock:
            keys = [key for key, known in self._known.items() if known.thread == str(thread)]
            programs = [self._known.pop(key).program for key in keys]
        for program in reversed(programs):
            program.close()
        return len(programs)


def _graphs(space: str) -> list[tuple[str, str]]:
    """The graphs that a node is in, the outermost first: what tells each apart, and its name.

    The last level of a namespace is the node itself. A number is no level: it tells the graphs
    apart that one node has called, all but the first.
    """
    found: list[tuple[str, str]] = []
    for level in space.split(_LEVEL)[:-1]:
        name, _, task = level.partition(_TASK)
        if found and level.isdigit():
            before, name = found.pop()
            found.append((f"{before}-{level}", name))
        else:
            found.append((f"{name}-{task[:_ID_CHARS]}" if task else name, name))
    return found


_programs = _Programs()
find_with(_programs.at_hand)


def connection(url: str | None = None, *, api_key: str | None = None) -> dict[str, Any]:
    """Arguments for `ChatOpenAI` that make it speak to the proxy and name its thread."""
    import openai

    root = root_of(url)
    return {
        "base_url": f"{root}/v1",
        "api_key": api_key_of(api_key, "OPENAI_API_KEY"),
        "http_client": openai.DefaultHttpxClient(event_hooks=httpx_hooks(root)),
        "http_async_client": openai.DefaultAsyncHttpxClient(event_hooks=async_httpx_hooks(root)),
    }


def close(thread_id: object) -> int:
    """Say that a thread and its sub-graphs are done; the proxy lets go of their KV.

    `thread_id` is what LangGraph was told: a text, a number or a UUID.
    """
    return _programs.close(thread_id)


class Tools(BaseCallbackHandler):  # type: ignore[misc]  # checked without the framework
    """A callback that reports tools' starts and ends, so that the next step can be prepared."""

    #: In the caller's own thread: a report is only put into a queue.
    run_inline = True

    def __init__(self) -> None:
        self._calls = OpenCalls()

    def on_tool_start(
        self,
        serialized: dict[str, Any],
        input_str: str,
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """A tool begins, for the program that an LLM call of this place would be of.

        The metadata says in which thread, but of a thread that runs inside a node of another one
        it names the outer; it counts where nothing else tells.
        """
        program = current_program() or _programs.of(metadata or {})
        name = (serialized or {}).get("name") or more.get("name")
        if program is not None and name:
            call_id = more.get("tool_call_id")
            told = call_id if isinstance(call_id, str) else ""
            self._calls.start(run_id, program, str(name), told)

    def on_tool_end(self, output: Any, *, run_id: UUID, **more: Any) -> None:
        """It has its result."""
        self._calls.finish(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **more: Any) -> None:
        """It failed; or it waits for a human's word, after which it is begun anew."""
        if isinstance(error, GraphInterrupt):
            self._calls.forget(run_id)
        else:  # what else bubbles up says where the graph goes on
            self._calls.finish(run_id, is_error=not isinstance(error, GraphBubbleUp))
