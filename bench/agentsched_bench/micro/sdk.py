"""What the SDK costs the agent that uses it: `python -m agentsched_bench.micro sdk`.

CPU microseconds of the calling thread for each call, less what the same function costs undecorated,
the best of the repeats. Reports really go out, to a server in this process; the thread that sends
them is not the caller's. Imports are timed in fresh interpreters.
"""

from __future__ import annotations

import argparse
import asyncio
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import thread_time_ns
from typing import Any, Final

import agentsched
from agentsched.sdk.clients import httpx_hooks
from agentsched.sdk.reporter import reporter

_IMPORTS: Final = {
    "import agentsched": "import agentsched",
    "import agentsched, and all that decorates": (
        "import agentsched; agentsched.program, agentsched.agent_step, agentsched.tool_call"
    ),
}
_TIMED: Final = "import time; t = time.process_time(); {}; print((time.process_time() - t) * 1e3)"


def costs_us(*, calls: int, repeat: int) -> dict[str, float]:
    """Microseconds for each call, by what is called."""
    plain = _best(_nothing, calls=calls, repeat=repeat)
    waiting = _best_async(_nothing_async, calls=calls, repeat=repeat)
    step = agentsched.agent_step(tools=["bash"], expects={"bash": 1.0})
    tool = agentsched.tool_call(name="bash")
    request = _request()
    [hook] = httpx_hooks("http://127.0.0.1:1")["request"]

    def best(function: Callable[[], Any]) -> float:
        return _best(function, calls=calls, repeat=repeat) - plain

    found = {
        "agent_step, a function": best(step(_nothing)),
        "agent_step, a coroutine": _best_async(step(_nothing_async), calls=calls, repeat=repeat)
        - waiting,
        "tool_call without a proxy": best(tool(_nothing)),
    }
    with agentsched.program(id="p", tenant="t", deadline_s=600):
        found["headers of a call"] = best(agentsched.current_headers)
        found["a request's hook"] = best(lambda: hook(request))
        with _listening():
            # In parts that the bounded queue holds, so that none is measured that is dropped.
            found["tool_call, start and end reported"] = best(tool(_nothing))
    found["program opened and closed"] = best(_program)
    return found


def _nothing() -> None:
    return None


async def _nothing_async() -> None:
    return None


def _program() -> None:
    with agentsched.program():
        pass


def _request() -> Any:
    import httpx

    return httpx.Request("POST", "http://127.0.0.1:1/v1/chat/completions")


def _best(function: Callable[[], Any], *, calls: int, repeat: int) -> float:
    best = float("inf")
    for _ in range(repeat):
        began = thread_time_ns()
        for _ in range(calls):
            function()
        best = min(best, (thread_time_ns() - began) / calls / 1_000)
        reporter().flush()
    return best


def _best_async(function: Callable[[], Any], *, calls: int, repeat: int) -> float:
    async def run() -> int:
        began = thread_time_ns()
        for _ in range(calls):
            await function()
        return thread_time_ns() - began

    return min(asyncio.run(run()) for _ in range(repeat)) / calls / 1_000


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing on the terminal."""


@contextmanager
def _listening() -> Iterator[None]:
    """Reports are on, and somebody takes them."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        agentsched.configure(f"http://127.0.0.1:{server.server_address[1]}")
        try:
            yield
        finally:
            agentsched.configure("")
            server.shutdown()
            thread.join()


def imports_ms(*, repeat: int) -> dict[str, float]:
    """CPU milliseconds to import, the best of so many fresh interpreters."""
    return {
        name: min(
            float(
                subprocess.run(
                    [sys.executable, "-c", _TIMED.format(text)],
                    capture_output=True,
                    check=True,
                    text=True,
                    timeout=60,
                ).stdout
            )
            for _ in range(repeat)
        )
        for name, text in _IMPORTS.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What the SDK costs an agent.")
    parser.add_argument("--calls", type=int, default=2_000)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    costs = costs_us(calls=options.calls, repeat=options.repeat)
    imports = imports_ms(repeat=options.repeat)
    if options.json:
        print(json.dumps({"us": costs, "ms": imports}))
        return
    print(f"CPU microseconds a call, best of {options.repeat} times {options.calls}")
    for name, cost in costs.items():
        print(f"{name:<44}{cost:>8.2f}")
    for name, cost in imports.items():
        print(f"{name + ', CPU milliseconds':<60}{cost:>6.1f}")
