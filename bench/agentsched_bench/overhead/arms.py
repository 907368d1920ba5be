"""The sides of the comparison: how each is started, and what to say where it is not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

import agentsched
from agentsched_bench.ports import free_port

#: More than any run has programs, steps or tokens: the router must not hold anything back.
_PLENTY: Final = 1_000_000
#: Our own command line, of the environment that runs the benchmark.
_MAIN: Final = "import sys; from agentsched.cli import main; sys.exit(main())"
_NGINX: Final = """\
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_max_body_size 64m;
  client_body_buffer_size 1m;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000;
  upstream engine {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where an arm runs: the upstream's port, its own, and a folder for its files."""

    upstream: int
    port: int
    folder: Path

    @property
    def engine(self) -> str:
        return f"http://127.0.0.1:{self.upstream}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side. `command` is None for the engine itself, `missing` says why it cannot run.

    `with_ids` sends `x-session-id`; `health` answers 200 when it is ready.
    """

    name: str
    about: str
    version: str
    command: Callable[[Site], Sequence[str]] | None
    health: str = "/health"
    with_ids: bool = False
    missing: str = ""


DIRECT: Final = "direct"
NGINX: Final = "nginx"
PASSTHROUGH: Final = "agentsched-passthrough"
INFERRED: Final = "agentsched"
WITH_IDS: Final = "agentsched-ids"
STORE: Final = "agentsched-store"
ROUND_ROBIN: Final = "vllm-router"
PROGRAMS: Final = "vllm-router-programs"
NAMES: Final = (DIRECT, NGINX, PASSTHROUGH, INFERRED, WITH_IDS, STORE, ROUND_ROBIN, PROGRAMS)


def all_arms(peers: Path) -> list[Arm]:
    """Every arm, those that are not installed included. `peers` is a virtual environment."""
    return [
        Arm(name=DIRECT, about="the engine without a proxy", version="", command=None),
        _nginx(),
        _ours(PASSTHROUGH, "profile passthrough, no ids", profile="passthrough"),
        _ours(INFERRED, "profile fcfs, programs recognised without ids", profile="fcfs"),
        _ours(WITH_IDS, "profile fcfs, x-session-id", profile="fcfs", with_ids=True),
        _ours(STORE, "as agentsched, with a store in SQLite", profile="fcfs", with_store=True),
        _router(peers, ROUND_ROBIN, "policy round_robin", with_ids=False),
        _router(peers, PROGRAMS, "program scheduling, x-session-id", with_ids=True),
    ]


def _ours(
    name: str, about: str, *, profile: str, with_ids: bool = False, with_store: bool = False
) -> Arm:
    def command(site: Site) -> list[str]:
        serve = [sys.executable, "-c", _MAIN, "serve", "--engine", site.engine]
        if with_store:
            file = site.folder / "store.toml"
            file.write_text(f'[store]\nurl = "sqlite:///{site.folder}/store.db"\n')
            serve += ["--config", str(file)]
        return [*serve, "--port", str(site.port), "--profile", profile]

    return Arm(
        name=name,
        about=about,
        version=agentsched.__version__,
        command=command,
        health="/readyz",
        with_ids=with_ids,
    )


def _nginx() -> Arm:
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

    def command(site: Site) -> list[str]:
        # As root the worker would become somebody who may not write into our folder.
        user = "user root;" if os.geteuid() == 0 else ""
        text = _NGINX.format(user=user, folder=site.folder, upstream=site.upstream, port=site.port)
        file = site.folder / "nginx.conf"
        file.write_text(text)
        log = str(site.folder / "error.log")
        return [str(found), "-e", log, "-p", str(site.folder), "-c", str(file)]

    return Arm(
        name=NGINX,
        about="proxy_pass, kept alive, unbuffered, one worker",
        version=_said([found, "-v"]).rpartition("/")[2] if found else "",
        command=command,
        missing="" if found else "nginx is not installed (apt-get install nginx)",
    )


def _router(peers: Path, name: str, about: str, *, with_ids: bool) -> Arm:
    beside = peers / "bin" / "vllm-router"
    found = str(beside.absolute()) if beside.is_file() else shutil.which("vllm-router")

    def command(site: Site) -> list[str]:
        where = ["--host", "127.0.0.1", "--port", str(site.port)]
        quiet = ["--log-level", "error", "--prometheus-port", str(free_port())]
        base = [str(found), *where, "--worker-urls", site.engine, *quiet]
        base += ["--policy", "round_robin", "--worker-startup-check-interval", "1"]
        return base + (_program_options() if with_ids else [])

    python = Path(found).parent / "python" if found else None
    ask = "import importlib.metadata as m; print(m.version('vllm-router'))"
    return Arm(
        name=name,
        about=about,
        version=_said([str(python), "-c", ask]) if python is not None and python.is_file() else "",
        command=command,
        with_ids=with_ids,
        missing="" if found else f"vllm-router is not in {peers} (pip install vllm-router there)",
    )


def _program_options() -> list[str]:
    config = {
        "program_scheduling_enable_key": "auto",
        "max_active_programs_per_target": _PLENTY,
        "token_capacity_per_target": 1_000 * _PLENTY,
    }
    text = msgspec.json.encode(config).decode()
    return ["--enable-program-scheduling", "--program-scheduling-config-json", text]


def _said(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return (done.stdout + done.stderr).strip()
