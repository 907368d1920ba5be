"""A short life of a proxy, and what its control plane answers meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httpx

from agentsched.config import Config
from agentsched.proxy.serve import running
from agentsched_bench.engine.cost import CPU_2CORE
from agentsched_bench.engine.playback import Playback, Script, ScriptedAnswer, ScriptedCall
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine
from agentsched_bench.reference.operations import BASE, OPERATIONS

_TOOL: Final = {
    "type": "function",
    "function": {"name": "bash", "parameters": {"type": "object", "properties": {}}},
}
_LOOK: Final = ScriptedAnswer(tool_calls=(ScriptedCall(name="bash", arguments={"cmd": "ls"}),))
_WORKFLOW: Final = {
    "name": "fix",
    "start": "look",
    "steps": {"look": {"tools": ["bash"], "next": ["end"], "expected_s": 1.5}, "end": {}},
}
#: Operations whose answers are streams, or need a browser.
_LEFT_OUT: Final = frozenset(
    {
        ("GET", "/decisions"),
        ("GET", "/feed"),
        ("GET", "/openapi.json"),  # else it would describe itself, and grow each time
        ("POST", "/session"),
    }
)

Answers = dict[tuple[str, str], list[tuple[int, Any]]]


async def record() -> Answers:
    """Answers by operation, with their status; every operation but streams and logins has one."""
    engine = EngineConfig(
        cost=CPU_2CORE,
        blocks=513,
        block_size=16,
        max_num_seqs=8,
        max_num_batched_tokens=2_048,
        max_model_len=4_096,
    )
    script = Script(answers=(_LOOK, ScriptedAnswer(text="Done.")))
    server = ServerConfig(engine=engine, models=("sim",), speed=200, playback=Playback((script,)))
    async with running_engine(server) as sim, running_engine(server) as spare:
        # Of one that never answered less is known.
        away = {"url": "http://127.0.0.1:9", "id": "e9"}
        config = Config.model_validate(
            {"port": 0, "engines": [{"url": sim.url, "id": "e0"}, away], "tenants": {"red": {}}}
        )
        async with (
            running(config, reread=lambda: config) as (_, url),
            httpx.AsyncClient(base_url=url, timeout=30) as client,
        ):
            return await _Life(client, spare=spare.url).live()


class _Life:
    """Asks everything there is to ask, before, while and after a program runs."""

    def __init__(self, client: httpx.AsyncClient, *, spare: str) -> None:
        self._client = client
        self._spare = spare
        self._answers: Answers = {}
        self._program = "none"

    async def live(self) -> Answers:
        await self._look()
        await self._ask("POST", "/workflows", json=_WORKFLOW)
        await self._ask("PUT", "/tenants/{tenant}", json={"weight": 2.0})
        first = {"role": "user", "content": "go"}
        body = {"model": "sim", "messages": [first], "tools": [_TOOL], "max_tokens": 64}
        await self._ask("POST", "/plan{path}", json=body)
        said = await self._chat(body)
        await self._look()
        call = said["tool_calls"][0]["id"]
        report = {"event": "started", "program": "p", "call_id": call, "expected_s": 3}
        await self._ask("POST", "/tools", json=report)
        await self._look()
        result = {"role": "tool", "tool_call_id": call, "content": "a.txt"}
        await self._chat(body | {"messages": [first, said, result]})
        await self._chat(body, program="q", parent="p")
        await self._look()
        await self._steer()
        return self._answers

    async def _steer(self) -> None:
        await self._ask("POST", "/policies", json={"profile": "fcfs", "max_wait": "30s"})
        await self._ask("POST", "/policies", json={"profile": "none such"})
        await self._ask("POST", "/reload")
        await self._ask("POST", "/engines", json={"url": self._spare, "id": "e1"})
        await self._ask("POST", "/engines/{engine}/drain")
        await self._ask("POST", "/engines/{engine}/undrain")
        await self._ask("DELETE", "/engines/{engine}", engine="e1")
        await self._ask("POST", "/programs/{program}/release")
        await self._ask("DELETE", "/session")
        await self._look()

    async def _chat(
        self, body: dict[str, Any], *, program: str = "p", parent: str | None = None
    ) -> Any:
        headers = {
            "x-agentsched-program": program,
            "x-agentsched-tenant": "red",
            "x-agentsched-agent": "fix",
        } | ({"x-agentsched-parent": parent} if parent else {})
        answered = await self._client.post("/v1/chat/completions", json=body, headers=headers)
        answered.raise_for_status()
        self._program = answered.headers["x-agentsched-program"]
        return answered.json()["choices"][0]["message"]

    async def _look(self) -> None:
        looks = [key for key in OPERATIONS if key[0] == "GET" and key not in _LEFT_OUT]
        await asyncio.gather(*(self._ask(method, path) for method, path in looks))

    async def _ask(self, method: str, path: str, *, engine: str = "e0", **more: Any) -> None:
        filled = (
            path.replace("{program}", self._program)
            .replace("{engine}", engine)
            .replace("{tenant}", "red")
            .replace("{path}", "/v1/chat/completions")
        )
        # A report is its tenant's own, as its program is.
        headers = {"x-agentsched-tenant": "red"} if path == "/tools" else {}
        response = await self._client.request(method, BASE + filled, headers=headers, **more)
        known = self._answers.setdefault((method, path), [])
        known.append((response.status_code, response.json()))
