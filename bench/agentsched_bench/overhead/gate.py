"""What the gate costs each request: `agentsched bench gate [--json]`.

The real gate is asked about real requests of the real router, many times over; the least of several
rounds counts, since a busy machine can only add to it. Microseconds for each request.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from agentsched.config import Config
from agentsched.model import WireError
from agentsched.proxy.access.keys import hash_key, new_key
from agentsched.proxy.app import GATEWAY, build_app, build_gateway

_ROUNDS: Final = 7
_REQUESTS: Final = 20_000
_PATH: Final = "/v1/chat/completions"


def _config(token: str, key: str, *, mode: str) -> Config:
    digest = f"sha256:{hash_key(token).hex()}"
    auth = {"mode": mode, "keys": [{"id": key, "hash": digest, "tenant": "red"}]}
    return Config.model_validate({"engines": [{"url": "http://127.0.0.1:1"}], "auth": auth})


async def _request(app: web.Application, headers: dict[str, str]) -> web.Request:
    request = make_mocked_request("POST", _PATH, headers=headers, app=app)
    request._match_info = await app.router.resolve(request)
    return request


def _least(ask: Callable[[], None]) -> float:
    """Microseconds for one call."""
    spans = []
    for _ in range(_ROUNDS):
        began = time.process_time_ns()
        for _ in range(_REQUESTS):
            ask()
        spans.append((time.process_time_ns() - began) / _REQUESTS / 1e3)
    return round(min(spans), 2)


async def measure() -> dict[str, float]:
    """Microseconds by what a request brings."""
    key, token = new_key()
    _, stranger = new_key()
    cases: dict[str, tuple[str, dict[str, str]]] = {
        "open": ("open", {}),
        "open, a key for the engine": ("open", {"Authorization": "Bearer sk-something"}),
        "a key that counts": ("keys", {"Authorization": f"Bearer {token}"}),
        "a key in x-agentsched-key": ("keys", {"x-agentsched-key": token}),
        "a key that nobody has": ("keys", {"Authorization": f"Bearer {stranger}"}),
        "no key": ("keys", {}),
    }
    found = {}
    for name, (mode, headers) in cases.items():
        app = build_app(build_gateway(_config(token, key, mode=mode)))
        asked, request = app[GATEWAY].gate, await _request(app, headers)

        def ask(asked: Any = asked, request: web.Request = request) -> None:
            try:
                asked.enter(request)
            except WireError:
                return

        found[name] = _least(ask)
    return found


def gate(
    is_json: Annotated[bool, typer.Option("--json", help="For a machine to read.")] = False,
) -> None:
    """Measure what looking at a request's key costs: CPU time in microseconds."""
    found = asyncio.run(measure())
    if is_json:
        print(json.dumps(found, indent=2))
        return
    for name, span in found.items():
        print(f"{name:<28}{span:6.2f} us")
