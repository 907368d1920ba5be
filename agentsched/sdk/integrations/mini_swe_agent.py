"""mini-swe-agent: a run is a program, its commands are reported.

    agent = mini_swe_agent.attach(DefaultAgent(model, environment, ...), program=instance_id)
    agent.run(task)

Works on the agent's own seams (`run`, the model's `query`, the environment's `execute`), so any
subclass will do. The model must pass further arguments on to the API, as `LitellmModel` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from agentsched.sdk.clients import api_key_of, root_of, with_headers
from agentsched.sdk.context import current_program
from agentsched.sdk.decorators import program as open_program
from agentsched.sdk.decorators import tool_call

A = TypeVar("A")

#: What mini-swe-agent calls its only tool.
_TOOL = "bash"


def connection(url: str | None = None, *, api_key: str | None = None) -> dict[str, Any]:
    """`model_kwargs` that make a `LitellmModel` named `openai/...` speak to the proxy."""
    return {
        "api_base": f"{root_of(url)}/v1",
        "api_key": api_key_of(api_key, "OPENAI_API_KEY"),
    }


def attach(
    agent: A,
    *,
    program: str | None = None,
    tenant: str | None = None,
    deadline_s: float | None = None,
) -> A:
    """Make each `agent.run()` a program. `program`: its id, as an instance's; else it is made up.

    Changes the agent, its model and its environment in place, and returns the agent. What several
    agents share may be attached several times: the program is the one that runs.
    """
    made: Any = agent
    run = made.run

    def run_as_program(*args: Any, **kwargs: Any) -> Any:
        opened = open_program(
            id=program, tenant=tenant, agent="mini-swe-agent", deadline_s=deadline_s
        )
        with opened:
            return run(*args, **kwargs)

    made.run = run_as_program
    if not hasattr(made.model.query, "__agentsched__"):
        made.model.query = _carrying(made.model, made.model.query)
    if not hasattr(made.env.execute, "__agentsched__"):
        made.env.execute = _reporting(made.env.execute)
    return agent


def _carrying(model: Any, query: Any) -> Any:
    """`query` that names the program at hand in each request."""

    def carrying(messages: Any, **kwargs: Any) -> Any:
        running = current_program()
        if running is None:
            return query(messages, **kwargs)
        own = getattr(model.config, "model_kwargs", {})
        given = kwargs.pop("extra_headers", None) or own.get("extra_headers")
        key = kwargs.get("api_key") or own.get("api_key")
        headers: Mapping[str, str] = with_headers(given)
        carried = {"authorization": f"Bearer {key}"} if key else dict(running.credential)
        running.sent_with(carried | {name.lower(): value for name, value in headers.items()})
        return query(messages, extra_headers=dict(headers), **kwargs)

    carrying.__agentsched__ = True  # type: ignore[attr-defined]
    return carrying


def _reporting(execute: Any) -> Any:
    """`execute` that reports when a command starts and ends."""

    def reporting(action: Any, *args: Any, **kwargs: Any) -> Any:
        call_id = action.get("tool_call_id") if isinstance(action, Mapping) else None
        with tool_call(_TOOL, call_id=call_id if isinstance(call_id, str) else ""):
            try:
                return execute(action, *args, **kwargs)
            except Exception as error:
                if not _steers(error):
                    raise
                steering = error
        raise steering  # no failure of the command

    reporting.__agentsched__ = True  # type: ignore[attr-defined]
    return reporting


def _steers(error: Exception) -> bool:
    """Whether it is how the agent's run goes on or ends: the last command raises `Submitted`.

    All such carry messages for the agent.
    """
    return isinstance(getattr(error, "messages", None), tuple)
