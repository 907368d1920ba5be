"""What is done to a process of a cluster is done to all that it started."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from live import eventually

from agentsched_bench.cluster.processes import Member
from agentsched_bench.cluster.tree import groups_of
from agentsched_bench.ports import free_port

#: As vLLM under `agentsched engine vllm`: what computes is in a group of its own.
SERVER = """
import http.server, subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], process_group=0)
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words): pass
print(worker.pid, flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""


def state(pid: int) -> str:
    """One letter of Linux's; "" once it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_stop_and_a_kill_reach_workers_in_groups_of_their_own(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", SERVER, str(port)]
    member = Member("server", command, port=port, folder=tmp_path)
    try:
        await member.start()
        worker = int((tmp_path / "server.log").read_text())
        member.signal(signal.SIGSTOP)
        await eventually(lambda: state(member.pid) == state(worker) == "T")
        member.signal(signal.SIGCONT)
        await eventually(lambda: state(worker) == "S")
        await member.kill()
        await eventually(lambda: state(worker) in ("", "Z"))
    finally:
        member.close()


def test_names_of_processes_may_hold_anything(tmp_path: Path) -> None:
    """Brackets and spaces stand in their names, and a process may end while it is looked at."""
    lines = {
        7: "7 (vllm serve) S 1 7 7",
        8: "8 (a) b (c) S 7 8 7",
        9: "9 (VLLM::EngineCor) R 8 8 7",
        10: "10 (worker) R 9 10 10",
        11: "11 (another's) R 1 11 11",
    }
    for pid, line in lines.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(line + " 0 -1 4194560\n")
    (tmp_path / "12").mkdir()
    assert groups_of(7, proc=tmp_path) == [7, 8, 10]
    assert groups_of(404, proc=tmp_path) == [404]


def test_one_that_has_ended_is_asked_for_no_children(tmp_path: Path) -> None:
    member = Member("gone", [sys.executable, "-c", ""], port=free_port(), folder=tmp_path)
    member.signal(signal.SIGTERM)  # not started: nothing happens
    process = subprocess.Popen([sys.executable, "-c", ""], process_group=0)
    process.wait()
    member._process = process
    member.signal(signal.SIGTERM)
