"""`agentsched top`: the command."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Annotated

import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live

from agentsched.dashboard.shapes import Frame
from agentsched.inspection.client import (
    DEFAULT_URL,
    AdminKey,
    AsJson,
    ControlClient,
    ProxyError,
    Url,
)
from agentsched.model import ConfigError
from agentsched.top.keys import Keys, press
from agentsched.top.screen import View, everything, lines


def top(
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
    interval: Annotated[
        float, typer.Option("--interval", "-n", min=0.2, max=60.0, help="Seconds between looks.")
    ] = 1.0,
    is_once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
    is_json: AsJson = False,
) -> None:
    """Watch a running proxy in the terminal: programs, pauses, pins, queues, engines, tenants.

    Press ? for the keys. Where the output is no terminal it prints one look, as with --once.
    """
    with ControlClient(url, admin_key=admin_key) as client:
        if is_json:
            sys.stdout.write(client.get("/overview").decode() + "\n")
            return
        console = Console(highlight=False)
        if is_once or not (sys.stdout.isatty() and sys.stdin.isatty()):
            shown = everything(_look(client), View(), width=console.width)
            for line in shown:
                console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
            return
        keys = Keys(sys.stdin.fileno())
        with keys.listening():
            _watch(lambda: _look(client), keys, console, interval=interval)


def _look(client: ControlClient) -> Frame:
    body = client.get("/overview")
    try:
        return msgspec.json.decode(body, type=Frame)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{client.url}: the proxy is of another version: {error}") from error


def _watch(look: Callable[[], Frame], keys: Keys, console: Console, *, interval: float) -> None:
    """Look, show, and do as the keys say, until one says to end."""
    view, frame = View(), look()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        due = time.monotonic() + interval
        while True:
            width, height = console.size
            live.update(Group(*lines(frame, view, width=width, height=height)), refresh=True)
            wishes = [press(key, view) for key in keys.wait(due - time.monotonic())]
            if "quit" in wishes:
                return
            if "look" in wishes or (time.monotonic() >= due and not view.is_paused):
                try:
                    frame, view.error = look(), ""
                except ProxyError as error:
                    view.error = str(error)
            if time.monotonic() >= due:
                due = time.monotonic() + interval
