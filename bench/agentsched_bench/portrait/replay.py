"""Replays one recorded program through a proxy on the embedded engine, tool calls included.

`agentsched replay` measures, and leaves tools to pauses. Here the engine's answers call the tools
that were recorded, their results come back in the next prompt, and sub-agents run inside the tool
call that started them, so that the proxy sees what it would see of the real agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx

from agentsched.config import Config
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.serve import running
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.workload.trace import RecordedProgram, RecordedStep, Recording

#: The tools that start sub-agents, in the recordings.
_SPAWNING: Final = frozenset({"Task", "Agent"})
_TIMEOUT: Final = httpx.Timeout(60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much smaller and quicker than recorded. `pause_s_max` caps a pause before that."""

    tokens: float = 16.0
    time: float = 4.0
    pause_s_max: float = 12.0
    steps_max: int = 40
    engine_speed: float = 1.0


@contextlib.asynccontextmanager
async def proxy_on_embedded_engine(scale: Scale) -> AsyncIterator[tuple[Gateway, str]]:
    """A proxy and its engine in this process; both are gone at the end."""
    sizes = replace(EngineConfig.from_preset(preset("cpu-2core")), blocks=1_200)
    server = ServerConfig(engine=sizes, speed=scale.engine_speed)
    async with running_engine(server) as engine:
        config = Config(port=0, engines=({"url": engine.url, "id": "sim-0"},))  # type: ignore[arg-type]
        async with running(config) as (gateway, url):
            yield gateway, url


async def replay_program(
    url: str, recorded: RecordedProgram, scale: Scale, *, tenant: str | None = None
) -> str:
    """Replay it; returns the id under which the proxy knows it."""
    key = recorded.main.session_id.rpartition("/attempt")[0] or recorded.main.session_id
    key = key.rpartition("/")[2]
    # Proxies of the environment are for the world outside.
    async with httpx.AsyncClient(
        base_url=url,
        timeout=_TIMEOUT,
        trust_env=False,
        headers={"x-agentsched-tenant": tenant} if tenant is not None else None,
    ) as client:
        agent = _Agent(client, scale, key)
        children = list(recorded.children)
        await agent.run(recorded.main, thread=key, children=children)
        return agent.program


class _Agent:
    def __init__(self, client: httpx.AsyncClient, scale: Scale, key: str) -> None:
        self._client = client
        self._scale = scale
        self._key = key
        self.program = key
        self._spawned = 0

    async def run(self, recording: Recording, *, thread: str, children: list[Recording]) -> None:
        """One conversation from its first call to its last; sub-agents inside their tool calls."""
        steps = recording.steps[: self._scale.steps_max]
        tokens = self._tokens(steps[0].input_tokens)
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": f"You are {recording.agent}. " + "word " * (tokens // 2)},
            {"role": "user", "content": f"Task of {thread}. " + "word " * (tokens // 2)},
        ]
        for step in steps:
            is_last = step is steps[-1]
            calls = await self._call(recording, step, messages, thread, is_last=is_last)
            if is_last:
                return
            await self._tools(step, calls, messages, thread, children)

    async def _tools(
        self,
        step: RecordedStep,
        calls: list[dict[str, Any]],
        messages: list[dict[str, Any]],
        thread: str,
        children: list[Recording],
    ) -> None:
        spawned = []
        for tool in step.tools:
            if tool.name in _SPAWNING and children:
                child = children.pop(0)
                self._spawned += 1
                name = f"{self._key}-{self._spawned}"
                spawned.append(self.run(child, thread=name, children=[]))
        pause = min(step.gap_s or 0.0, self._scale.pause_s_max) / self._scale.time
        await asyncio.gather(*spawned, *([] if spawned else [asyncio.sleep(pause)]))
        for tool, call in zip(step.tools, calls, strict=False):
            result = "result " * self._tokens(tool.result_tokens or 40)
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        if not calls:
            messages.append({"role": "user", "content": "go on"})

    async def _call(
        self,
        recording: Recording,
        step: RecordedStep,
        messages: list[dict[str, Any]],
        thread: str,
        *,
        is_last: bool,
    ) -> list[dict[str, Any]]:
        """One streamed call; the answer joins the messages, its tool calls are returned."""
        tools = [] if is_last else [{"name": t.name, "arguments": {}} for t in step.tools]
        words = "word " * self._tokens(step.output_tokens)
        scripted = {"text": words, "tool_calls": tools, "finish": "stop"}
        names = sorted({tool.name for s in recording.steps for tool in s.tools})
        offered = [{"type": "function", "function": {"name": name}} for name in names]
        body = {
            "model": "sim",
            "messages": messages,
            "stream": True,
            "vllm_xargs": {"agentic_context": self._context(recording, thread)},
        } | ({"tools": offered} if offered else {})
        text, calls = "", dict[int, dict[str, Any]]()
        async with self._client.stream(
            "POST",
            "/v1/chat/completions",
            json=body,
            headers={"x-sim-answer": json.dumps(scripted)},
        ) as response:
            if response.status_code != 200:
                raise RuntimeError(f"{response.status_code}: {(await response.aread())[:300]!r}")
            self.program = response.headers["x-agentsched-program"]
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    text += _take(json.loads(line[6:]), calls)
        made = [calls[index] for index in sorted(calls)]
        answer: dict[str, Any] = {"role": "assistant", "content": text}
        messages.append(answer | ({"tool_calls": made} if made else {}))
        return made

    def _context(self, recording: Recording, thread: str) -> dict[str, str]:
        said = {"program_id": thread, "agent_id": thread, "agent_role": recording.agent or "agent"}
        if thread != self._key:
            said |= {"root_program_id": self._key, "parent_program_id": self._key}
        return said

    def _tokens(self, count: int) -> int:
        return max(4, round(count / self._scale.tokens))


def _take(chunk: dict[str, Any], calls: dict[int, dict[str, Any]]) -> str:
    """The text of a chunk; its parts of tool calls join `calls`."""
    if not chunk.get("choices"):
        return ""
    delta = chunk["choices"][0]["delta"]
    for part in delta.get("tool_calls") or ():
        call = calls.setdefault(
            part["index"],
            {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
        )
        call["id"] = part.get("id") or call["id"]
        for name, value in (part.get("function") or {}).items():
            call["function"][name] += value or ""
    return delta.get("content") or ""
