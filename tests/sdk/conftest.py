"""A place that reports are sent to, and nothing left configured behind a test."""

from __future__ import annotations

import http.server
import json
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import agentsched
from agentsched.sdk import reporter as module


class Inbox(http.server.ThreadingHTTPServer):
    """Takes reports over real HTTP; answers with `status`."""

    daemon_threads = True

    def __init__(self) -> None:
        self.status = 202
        self.answer = b"{}"
        #: Connections are ended after each answer without a word of it, as idle ones are.
        self.ends_when_idle = False
        #: Nothing is answered, and the connection ended.
        self.is_mute = False
        self.posts: queue.Queue[tuple[str, dict[str, str], Any]] = queue.Queue()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def events(self, count: int) -> list[dict[str, Any]]:
        """The next so many reports."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            found += self.posts.get(timeout=60)[2]["events"]
        return found


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, Inbox)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        # Before it is answered: whoever was answered may look at once.
        self.server.posts.put((self.path, headers, json.loads(body)))
        self.close_connection = self.server.ends_when_idle or self.server.is_mute
        if self.server.is_mute:
            return
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *args: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    monkeypatch.setattr(module, "_TIMEOUT_S", 60.0)  # this inbox is slow at most, never away
    with Inbox() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        agentsched.configure(server.url)
        yield server
        agentsched.configure("")
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AGENTSCHED_URL", "AGENTSCHED_API_KEY", "AGENTSCHED_TENANT"):
        monkeypatch.delenv(name, raising=False)
    yield
    agentsched.configure("")
