"""nginx in front of the replicas, as an operator would set it up. The same file is in the docs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final, Literal

from agentsched.model import AgentschedError
from agentsched_bench.cluster.processes import Member
from agentsched_bench.ports import free_port

Balance = Literal["round-robin", "sticky"]

#: What tells conversations apart before anybody has read them: any id that a client sends.
_STICKY: Final = "$http_x_agentsched_program$http_session_id$http_x_session_id$remote_port"
_FILE: Final = """\
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 64m;
  client_body_buffer_size 1m;
  upstream replicas {{
{balance}{servers}
    keepalive 64;
  }}
  server {{
    listen 127.0.0.1:{port};
    location = /nginx-ready {{ return 200 "ok"; }}
    location / {{
      proxy_pass http://replicas;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_buffering off;
      proxy_request_buffering on;
      proxy_connect_timeout 2s;
      proxy_read_timeout {read_timeout};
      # A replica that drains says 503, one that died breaks the connection: the other one answers.
      # Asking again is safe: an engine stops working when its client's connection breaks.
      proxy_next_upstream error timeout http_503 non_idempotent;
      proxy_next_upstream_tries 3;
      add_header x-replica $upstream_addr always;
    }}
  }}
}}
"""


def configuration(
    servers: list[str],
    *,
    folder: Path,
    port: int,
    balance: Balance = "round-robin",
    read_timeout: str = "600s",
) -> str:
    """The configuration file for replicas at `host:port`."""
    # Never taken out for a while: with few replicas that leaves none when one comes back just as
    # another goes. A port that nobody listens on is found out at once, each time.
    lines = "\n".join(f"    server {server} max_fails=0;" for server in servers)
    by = f'    hash "{_STICKY}" consistent;\n' if balance == "sticky" else ""
    return _FILE.format(
        folder=folder, balance=by, servers=lines, port=port, read_timeout=read_timeout
    )


def find_nginx() -> str | None:
    """The balancer's program; None where it is not installed."""
    return shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


def make_nginx(servers: list[str], *, folder: Path, balance: Balance = "round-robin") -> Member:
    """A balancer, not yet started.

    Raises:
        AgentschedError: nginx is not installed.
    """
    program = find_nginx()
    if program is None:
        raise AgentschedError("no nginx is installed")
    folder.chmod(0o755)  # its workers are another user, and may have to write there
    port = free_port()
    file = folder / "nginx.conf"
    file.write_text(configuration(servers, folder=folder, port=port, balance=balance))
    command = [program, "-c", str(file), "-p", str(folder), "-e", str(folder / "nginx-error.log")]
    return Member("nginx", command, port=port, folder=folder, ready="/nginx-ready")
