"""The balancer's configuration is one that nginx takes, and the documentation shows it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agentsched_bench.cluster.balancer import Balance, configuration, find_nginx

DOCS = Path(__file__).parents[2] / "docs" / "real-processes.md"


@pytest.mark.services
@pytest.mark.parametrize("balance", ["round-robin", "sticky"])
def test_nginx_takes_it(tmp_path: Path, balance: Balance) -> None:
    program = find_nginx()
    assert program is not None
    text = configuration(["10.0.0.1:80"], folder=tmp_path, port=1, balance=balance)
    file = tmp_path / "nginx.conf"
    file.write_text(text)
    done = subprocess.run(
        [program, "-t", "-c", str(file), "-p", str(tmp_path), "-e", str(tmp_path / "log")],
        check=False,
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_the_documented_lines_are_those_that_were_measured(tmp_path: Path) -> None:
    text = configuration(["replica-0:8900"], folder=tmp_path, port=80)
    shown = DOCS.read_text()
    for line in text.splitlines():
        line = line.strip()
        if line.startswith(("proxy_next_upstream", "proxy_buffering", "proxy_connect_timeout")):
            assert line in shown
