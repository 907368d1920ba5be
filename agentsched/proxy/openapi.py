"""The control plane's description of itself, OpenAPI 3.1: drawn from the routes, and shipped."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final

from aiohttp import web

#: Beside this module. `python -m agentsched_bench.reference` draws it.
FILE: Final = "openapi.json"


class OpenApi:
    """Serves the description, read once. It is the same for everybody and tells no data."""

    def __init__(self) -> None:
        self._body = files("agentsched.proxy").joinpath(FILE).read_bytes()
        self._tag = f'"{hashlib.sha256(self._body).hexdigest()[:16]}"'

    async def show(self, request: web.Request) -> web.Response:
        """The description; 304 for whoever has it."""
        headers = {"ETag": self._tag, "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == self._tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=self._body, content_type="application/json", headers=headers)
