"""A private mosquitto: its own folder, a free port. Can be killed and restarted."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from agentsched.model import AgentschedError
from agentsched_bench.ports import free_port
from agentsched_bench.services.local import LocalService

_START_S: Final = 60.0


def find_mosquitto() -> Path | None:
    """The broker's program; None where it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which("mosquitto", path=path)
    return Path(found) if found else None


class LocalMosquitto(LocalService):
    """One broker. `kill` is `kill -9`; `start` brings it back on the same port.

    `settings` are lines of its configuration beside the listener.
    """

    def __init__(self, *, settings: tuple[str, ...] = ("allow_anonymous true",)) -> None:
        found = find_mosquitto()
        if found is None:
            raise AgentschedError("no mosquitto is installed")
        self._program = found
        self._settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="agentsched-mosquitto-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        """As a proxy's configuration takes it."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        lines = [f"listener {self.port} 127.0.0.1", "persistence false", *self._settings]
        if os.getuid() == 0:
            lines.append("user root")  # it would go down to a user who cannot read our folder
        file = self.folder / "mosquitto.conf"
        file.write_text("\n".join(lines) + "\n")
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [str(self._program), "-c", str(file)], stdout=log, stderr=log
            )
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise AgentschedError(f"mosquitto ended: {(self.folder / 'log').read_text()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise AgentschedError(f"mosquitto did not listen within {_START_S:g} s")

    def kill(self) -> None:
        """As a crash does."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(60)

    def close(self) -> None:
        """Stop it and remove its folder."""
        self._end(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)
