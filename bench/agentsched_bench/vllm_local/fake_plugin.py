"""The vLLM plugin's control endpoints without a vLLM: for tests that need what a proxy talks to.

The operations are the plugin's own (`vllm_plugin.control`, with its host, pins and books); made up
are the engine under them, a pool of blocks that steps fill and that evicts what was used longest
ago, and the HTTP server before them. `tests/contract/test_plugin_control.py` holds it to what the
routes of a real vLLM do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import msgspec
from aiohttp import web

from agentsched_adapters.vllm_plugin.blocks import BlockPins
from agentsched_adapters.vllm_plugin.control import serve, state_body
from agentsched_adapters.vllm_plugin.host import EngineHost
from agentsched_adapters.vllm_plugin.settings import PluginSettings
from agentsched_adapters.vllm_plugin.wire import (
    PATH,
    XARG_CONVERSATION,
    XARG_PROGRAM,
    XARG_TENANT,
)

_BODY_BYTES_MAX: Final = 16_384


@dataclass(slots=True, eq=False)
class _Block:
    block_id: int
    ref_cnt: int = 0
    is_null: bool = False
    block_hash: object | None = None
    block_hash_num_tokens: int | None = None


class _Pool:
    """As much of vLLM's `BlockPool` as pins use. One block is the pool's own, as there."""

    def __init__(self, blocks: int) -> None:
        self.num_gpu_blocks = blocks
        #: Blocks that nobody holds, the one to be evicted next first.
        self.free: OrderedDict[int, _Block] = OrderedDict(
            (number, _Block(number)) for number in range(1, blocks)
        )
        #: All and only blocks with a hash.
        self.cached: dict[object, _Block] = {}

    def touch(self, blocks: Sequence[_Block]) -> None:
        for block in blocks:
            self.free.pop(block.block_id, None)
            block.ref_cnt += 1

    def free_blocks(self, ordered_blocks: Iterable[_Block]) -> None:
        for block in ordered_blocks:
            block.ref_cnt -= 1
            assert block.ref_cnt >= 0
            if not block.ref_cnt:
                self.free[block.block_id] = block

    def get_num_free_blocks(self) -> int:
        return len(self.free)

    def get_new_blocks(self, num_blocks: int) -> list[_Block]:
        taken = [self.free.popitem(last=False)[1] for _ in range(num_blocks)]
        for block in taken:
            self.cached.pop(block.block_hash, None)
            block.block_hash = block.block_hash_num_tokens = None
            block.ref_cnt = 1
        return taken


class _Manager:
    """As much of vLLM's `KVCacheManager` as pins use: one group of full attention."""

    def __init__(self, pool: _Pool) -> None:
        self.block_pool = pool
        kind = type("FullAttentionManager", (), {})
        self.coordinator = SimpleNamespace(single_type_managers=(kind(),))
        self.held: dict[str, list[_Block]] = {}

    def get_blocks(self, request_id: str) -> Any:
        return SimpleNamespace(blocks=(self.held.get(request_id, []),))

    def allocate_slots(self, request: _Request, missing: int, **_: Any) -> list[_Block] | None:
        """The blocks for `missing` more of a request; None where there are not so many."""
        if missing > self.block_pool.get_num_free_blocks():
            return None
        fresh = self.block_pool.get_new_blocks(missing)
        self.held[request.request_id].extend(fresh)
        return fresh


@dataclass(slots=True, kw_only=True)
class _Request:
    request_id: str
    num_prompt_tokens: int
    sampling_params: Any
    prefill_stats: Any = None


@dataclass(slots=True)
class FakePlugin:
    """One engine with the plugin. `step` does what a request does; `app` serves the routes.

    `key` is the engine's API key, asked for as vLLM does.
    """

    blocks: int = 257
    block_size: int = 32
    key: str = ""
    settings: PluginSettings = field(default_factory=PluginSettings)
    host: EngineHost = field(init=False)
    _manager: Any = field(init=False)
    _steps: int = 0
    _running: int = 0

    def __post_init__(self) -> None:
        self._manager = _Manager(_Pool(self.blocks))
        pins = BlockPins(
            self._manager,
            block_size=self.block_size,
            budget=self.settings.budget,
            tenant_budget=self.settings.tenant_budget,
            ttl_max=self.settings.ttl_max,
            pins_max=self.settings.pins_max,
        )
        self.host = EngineHost(pins=pins, settings=self.settings, vllm="fake")

    def get_request_counts(self) -> tuple[int, int]:
        """As vLLM's scheduler: how many run, and how many wait."""
        return self._running, 0

    def step(self, prompt: Sequence[int], xargs: dict[str, object] | None = None) -> int:
        """A request from its arrival to its end; how many of its tokens were cached."""
        request, cached = self.begin(prompt, xargs)
        self.end(request)
        return cached

    def begin(
        self, prompt: Sequence[int], xargs: dict[str, object] | None = None
    ) -> tuple[Any, int]:
        """A request arrives and computes its prompt; itself, and how much of it was cached."""
        self._steps += 1
        self._running += 1
        params = SimpleNamespace(extra_args=dict(xargs or {}))
        request = _Request(
            request_id=f"r{self._steps}", num_prompt_tokens=len(prompt), sampling_params=params
        )
        self.host.arrived(request)
        self.host.step_begins()
        hits = self._compute(request, prompt)
        request.prefill_stats = SimpleNamespace(num_cached_tokens=hits)
        self.host.scheduled([request.request_id])
        return request, hits

    def end(self, request: Any, *, is_whole: bool = True) -> None:
        """A request ends; aborted where not `is_whole`."""
        self._running -= 1
        self.host.ends(request, is_whole=is_whole)
        blocks = self._manager.held.pop(request.request_id)
        self._manager.block_pool.free_blocks(list(reversed(blocks)))

    def _compute(self, request: _Request, prompt: Sequence[int]) -> int:
        pool, size = self._manager.block_pool, self.block_size
        hashes = [tuple(prompt[:end]) for end in range(size, len(prompt) + 1, size)]
        hits: list[_Block] = []
        for one in hashes[: (len(prompt) - 1) // size]:
            if one not in pool.cached:
                break
            hits.append(pool.cached[one])
        pool.touch(hits)
        held = self._manager.held[request.request_id] = list(hits)
        missing = -(-len(prompt) // size) - len(hits)
        # As vLLM's scheduler: by the manager's own door, which pins stand behind.
        assert self._manager.allocate_slots(request, missing) is not None, "does not fit"
        for number in range(len(hits), len(hashes)):
            held[number].block_hash = hashes[number]
            held[number].block_hash_num_tokens = (number + 1) * size
            pool.cached.setdefault(hashes[number], held[number])
        return len(hits) * size

    def app(self) -> web.Application:
        """The routes, and `/v1/completions` for prompts of tokens."""
        app = web.Application(client_max_size=1 << 20)
        for operation in ("pin", "extend", "release"):
            app.router.add_post(f"{PATH}/{operation}", self._operation)
        app.router.add_get(f"{PATH}/state", self._operation)
        app.router.add_post("/v1/completions", self._completions)
        return app

    async def _operation(self, request: web.Request) -> web.Response:
        if not self._is_allowed(request):
            return _say(401, "Unauthorized")
        operation = request.path.rpartition("/")[2]
        body = await request.read()
        if len(body) > _BODY_BYTES_MAX:
            return _say(413, "the body is too long")
        if operation == "state":
            body = state_body(request.query).encode()
        answer = msgspec.json.decode(serve(self.host, self, operation, body.decode()))
        if "error" in answer:
            return _say(500 if answer.get("is_ours") else 400, answer["error"])
        return web.json_response({"engines": [answer]} if operation == "state" else answer)

    async def _completions(self, request: web.Request) -> web.Response:
        if not self._is_allowed(request):
            return _say(401, "Unauthorized")
        asked = msgspec.json.decode(await request.read())
        known = (XARG_CONVERSATION, XARG_PROGRAM, XARG_TENANT)
        xargs = {k: v for k, v in (asked.get("vllm_xargs") or {}).items() if k in known}
        cached = self.step(asked["prompt"], xargs)
        usage = {"prompt_tokens_details": {"cached_tokens": cached}}
        return web.json_response({"usage": usage})

    def _is_allowed(self, request: web.Request) -> bool:
        return not self.key or request.headers.get("authorization") == f"Bearer {self.key}"


def _say(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status)
