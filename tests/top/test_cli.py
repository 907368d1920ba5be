"""The command itself: once, as JSON, and live on a pseudo terminal of 80 by 24."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from top_frames import SIX, made

COMMAND = [str(Path(sys.executable).parent / "agentsched"), "top"]


class Proxy(BaseHTTPRequestHandler):
    """Answers as a proxy does; tells when it was asked for the second time."""

    asked = 0
    asked_again = threading.Event()

    def do_GET(self) -> None:
        type(self).asked += 1
        if self.asked > 1:
            self.asked_again.set()
        assert self.path == "/agentsched/v1/overview"
        body = msgspec.json.encode(made(*SIX))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "80", "NO_COLOR": "1"}
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )


@pytest.mark.slow
def test_once(url: str) -> None:
    done = run("--once", "--url", url)
    assert done.returncode == 0, done.stderr
    assert "1/1 engines" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


@pytest.mark.slow
def test_json(url: str) -> None:
    done = run("--json", "--url", url)
    assert json.loads(done.stdout)["programs_total"] == 6


@pytest.mark.slow
def test_no_proxy() -> None:
    done = run("--once", "--url", "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is the proxy running?" in done.stderr


class Terminal:
    """The other end of a pseudo terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.seen = ""

    def press(self, keys: str) -> None:
        self.seen = ""
        os.write(self._descriptor, keys.encode())

    def until(self, wanted: str) -> None:
        deadline = time.monotonic() + 40
        while wanted not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"no {wanted!r} in {self.seen[-2000:]!r}"
            if select.select([self._descriptor], [], [], left)[0]:
                self.seen += os.read(self._descriptor, 65_536).decode(errors="replace")


@contextlib.contextmanager
def terminal(*arguments: str) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=environment | {"TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(ours), process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        os.close(ours)


@pytest.mark.slow
def test_live(url: str) -> None:
    Proxy.asked = 0
    Proxy.asked_again.clear()
    with terminal("--url", url, "--interval", "0.2") as (screen, process):
        screen.until("contended")
        screen.until("help")
        assert "\x1b[?1049h" in screen.seen  # the other screen, so that this one is as it was
        screen.press("?")
        screen.until("hold still")
        screen.press("?/wait\r")
        screen.until("filter: wait")
        screen.press("s")
        screen.until("sort: age")
        assert Proxy.asked_again.wait(30)
        screen.press("q")
        screen.until("\x1b[?1049l")
        assert process.wait(timeout=60) == 0


@pytest.mark.slow
def test_a_proxy_that_goes_is_told(url: str) -> None:
    with terminal("--url", url, "--interval", "0.2") as (screen, process):
        screen.until("contended")
        Proxy.do_GET, kept = (lambda self: self.send_error(503)), Proxy.do_GET  # type: ignore[method-assign]
        try:
            screen.until("503")
        finally:
            Proxy.do_GET = kept  # type: ignore[method-assign]
        screen.press("q")
        assert process.wait(timeout=60) == 0
