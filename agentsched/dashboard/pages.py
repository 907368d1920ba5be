"""The dashboard's own files: a page, a script and a style sheet that came with the package."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from aiohttp import web

_TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}

#: Nothing from elsewhere, nothing inline, no frames: what the page needs is beside it.
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One file, read once."""

    body: bytes
    content_type: str
    tag: str


class Pages:
    """Serves the files; they hold no data, so anybody may have them."""

    def __init__(self) -> None:
        self._pages = dict(_read())

    def routes(self) -> list[web.RouteDef]:
        """The table of routes."""
        return [
            web.get("/agentsched", self._redirect),
            web.get("/agentsched/", self._index),
            web.get(r"/agentsched/{name:[a-z]+\.(?:js|css|svg)}", self._asset),
        ]

    async def _redirect(self, request: web.Request) -> web.Response:
        # Relative, so that it holds behind a reverse proxy with a prefix, too.
        return web.Response(status=308, headers={"Location": "agentsched/"})

    async def _index(self, request: web.Request) -> web.Response:
        return self._show(request, "index.html")

    async def _asset(self, request: web.Request) -> web.Response:
        return self._show(request, request.match_info["name"])

    def _show(self, request: web.Request, name: str) -> web.Response:
        page = self._pages.get(name)
        if page is None:
            raise web.HTTPNotFound
        headers = HEADERS | {"ETag": page.tag, "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == page.tag:
            return web.Response(status=304, headers=headers)
        return web.Response(
            body=page.body, content_type=page.content_type, charset="utf-8", headers=headers
        )


def _read() -> Iterator[tuple[str, Page]]:
    for file in files("agentsched.dashboard").joinpath("assets").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _TYPES:
            body = file.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            yield file.name, Page(body=body, content_type=_TYPES[suffix], tag=tag)
