"""A private PostgreSQL: its own folder, a free port, gone afterwards. Can be killed and restarted.

The server refuses to run as root; then it runs as the user `postgres`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from agentsched.model import AgentschedError
from agentsched_bench.ports import free_port
from agentsched_bench.services.local import LocalService

#: Names the folder of `initdb` and `postgres`, where they are not in PATH or where Debian has them.
BIN_VARIABLE: Final = "AGENTSCHED_POSTGRES_BIN"
_PROGRAMS: Final = ("initdb", "postgres", "pg_isready", "psql")
_START_S: Final = 60.0
_SETTINGS: Final = (
    ("fsync", "off"),  # the machine does not crash in a test; the server does
    ("unix_socket_directories", ""),
    ("listen_addresses", "127.0.0.1"),
    ("max_connections", "50"),
    ("shared_buffers", "32MB"),
    ("log_min_messages", "warning"),
)


def find_postgres() -> Path | None:
    """The folder of the server's programs; None where it is not installed."""
    named = os.environ.get(BIN_VARIABLE)
    on_path = shutil.which("postgres")
    places = [Path(named)] if named else []
    places += [Path(on_path).parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((p for p in places if all((p / name).exists() for name in _PROGRAMS)), None)


class LocalPostgres(LocalService):
    """One server. `kill` is `kill -9`; `start` brings it back on the same port.

    `where`: the folder that gets its own; else that for temporary files.
    """

    def __init__(self, *, where: Path | None = None) -> None:
        found = find_postgres()
        if found is None:
            raise AgentschedError(f"no PostgreSQL is installed (or set {BIN_VARIABLE})")
        self._bin = found
        self._folder = Path(tempfile.mkdtemp(prefix="agentsched-postgres-", dir=where))
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    def prepare(self) -> None:
        """Make the folder of its data."""
        self._own(self._folder)
        self._data.mkdir()
        self._own(self._data)
        initdb = [str(self._bin / "initdb"), "-D", str(self._data), "-U", "agentsched"]
        initdb += ["-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
        self._run(initdb)

    def url(self, database: str = "postgres") -> str:
        """The URL of one of its databases."""
        return f"postgresql://agentsched@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Make an empty database; returns its URL."""
        self.sql(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def sql(self, statement: str, *, database: str = "postgres") -> str:
        """Run a statement; returns what `psql` prints."""
        psql = [str(self._bin / "psql"), "-XAtq", self.url(database), "-c", statement]
        return subprocess.run(psql, check=True, capture_output=True, timeout=30).stdout.decode()

    def start(self) -> None:
        """Start, and wait until it answers."""
        settings = [part for name, value in _SETTINGS for part in ("-c", f"{name}={value}")]
        command = [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        log = (self._folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [*self._as_user(), *command, *settings],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self._folder,
            )
        deadline = time.monotonic() + _START_S
        ready = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False, timeout=10).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AgentschedError((self._folder / "log").read_text()[-2_000:])
            time.sleep(0.05)

    def kill(self) -> None:
        """End the server and all its processes at once, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            # The server's processes are in sessions of their own; their leader's pid is on file.
            for pid in _children(self._data):
                _kill(pid)
            (self._data / "postmaster.pid").unlink(missing_ok=True)

    def pause(self) -> None:
        """Stop all its processes: connections stay, and nothing answers on them."""
        self._signal_all(signal.SIGSTOP)

    def go_on(self) -> None:
        """Go on after `pause`."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in _children(self._data):
            _kill(pid, number)

    def close(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _as_user(self) -> list[str]:
        return ["setpriv", *self._user(), "--clear-groups"] if os.geteuid() == 0 else []

    def _user(self) -> list[str]:
        entry = pwd.getpwnam("postgres")
        return [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}"]

    def _own(self, path: Path) -> None:
        if os.geteuid() == 0:
            entry = pwd.getpwnam("postgres")
            os.chown(path, entry.pw_uid, entry.pw_gid)

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(
            [*self._as_user(), *command],
            check=False,
            capture_output=True,
            timeout=60,
            cwd=self._folder,
        )
        if done.returncode:
            raise AgentschedError(done.stderr.decode()[-2_000:])


def _children(data: Path) -> list[int]:
    """Processes that still work in a data folder (Linux)."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink() == data:
                found.append(int(link.parent.name))
        except OSError:
            continue
    return found


def _kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
