"""One process of a cluster: started on a port of its own, signalled, killed, started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from agentsched.model import EngineTimeout, EngineUnreachable
from agentsched_bench.cluster.tree import groups_of

_LOOK_EVERY_S: Final = 0.05
_EXIT_S: Final = 60.0
_BOOT: Final = "import sys; from agentsched.cli import main; sys.exit(main())"
#: Our command line; `-P`: the folder that we were started in is no source of code.
AGENTSCHED: Final = (sys.executable, "-P", "-c", _BOOT)


class Member:
    """A process that answers `GET ready` with 200 when it serves.

    `prefix` goes before the command (to run it in a network namespace, say). One that has processes
    in groups of their own is given `stop_s` to end them before it is killed by `close`. It serves
    within `start_s` of its start.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        port: int,
        folder: Path,
        ready: str = "/readyz",
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        stop_s: float = 0.0,
        start_s: float = 90.0,
    ) -> None:
        self.name = name
        self.port = port
        self._stop_s = stop_s
        self._start_s = start_s
        self.url = f"http://{host}:{port}"
        self._command = [*prefix, *command]
        self._ready = ready
        #: Beside our own environment.
        self.environment = dict(environment or {})
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._began_ns = 0
        self._lives: list[tuple[int, int]] = []

    @property
    def lives(self) -> list[tuple[int, int]]:
        """When its processes began and ended, in ns since 1970; one that runs ends now."""
        running = [(self._began_ns, time.time_ns())] if self.is_running else []
        return [*self._lives, *running]

    @property
    def pid(self) -> int:
        """Of its process, or of the one that it had last."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether its process is there, stopped or not."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start it and wait until it serves.

        Raises:
            EngineUnreachable: it ended; the text has its last words.
            EngineTimeout: it did not serve in time.
        """
        assert not self.is_running
        self._began_ns = time.time_ns()
        self._process = self._begin()
        until = asyncio.get_running_loop().time() + self._start_s
        while not await asyncio.to_thread(self._is_ready):
            if self._process.poll() is not None:
                raise EngineUnreachable(f"{self.name} ended: {self.last_words()}")
            if asyncio.get_running_loop().time() > until:
                raise EngineTimeout(f"{self.name} is not ready: {self.last_words()}")
            await asyncio.sleep(_LOOK_EVERY_S)

    def _begin(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                process_group=0,
                env={**os.environ, **self.environment},
            )

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self._ready, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to all that it started, in whichever groups they are."""
        if self._process is None:
            return
        # Asked first: whoever is killed has no children any more. One that has ended has none, and
        # its number may be another's by now.
        groups = groups_of(self.pid) if self.is_running else [self.pid]
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)

    async def kill(self) -> None:
        """As a crash does."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def ended(self) -> int:
        """Wait for its end; its exit status."""
        assert self._process is not None
        status = await asyncio.to_thread(self._process.wait, _EXIT_S)
        self._lives.append((self._began_ns, time.time_ns()))
        return status

    def close(self) -> None:
        """End it, whatever it is doing."""
        if self._process is None:
            return
        if self._stop_s:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._stop_s)
        self.signal(signal.SIGKILL)
        self._process.wait(_EXIT_S)

    def last_words(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-1_500:] if self._log.exists() else ""
