"""The demo as a newcomer runs it: both sides complete, and nothing is left running."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentsched_bench.live.results import read_result

_MAIN = "import sys; from agentsched.cli import main; sys.exit(main())"
_SMALL = ("--programs", "3", "--steps", "3", "--speed", "4")


def _demo(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _MAIN, "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _children(pid: int) -> list[int]:
    numbers = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(number) for number in numbers.split()]


@pytest.mark.slow
def test_both_sides_complete_and_programs_are_recognised(tmp_path: Path) -> None:
    out = tmp_path / "demo.json"

    with _demo(*_SMALL, "--out", str(out)) as process:
        said, _ = process.communicate()

    assert process.returncode == 0, said
    direct, proxied = read_result(out).summary
    assert direct.programs["completed"] == proxied.programs["completed"] == 3
    assert proxied.attribution is not None
    assert proxied.attribution.main_right_share == 1.0
    assert proxied.attribution.merged == 0
    assert b"no ids were sent" in said
    assert b"synthetic" in said


@pytest.mark.slow
def test_ctrl_c_stops_everything_and_keeps_the_results(tmp_path: Path) -> None:
    out = tmp_path / "demo.json"
    # Slow enough never to end by itself while this test looks.
    with _demo("--speed", "0.1", "--out", str(out)) as process:
        until = time.monotonic() + 60
        while not (out.exists() and read_result(out).calls):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.05)
        started = _children(process.pid)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate()

    assert len(started) == 2, "an engine and a proxy"
    assert process.returncode == 130, said
    assert not read_result(out).is_complete
    assert b"Interrupted" in said
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
