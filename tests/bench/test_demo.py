"""The demo as a newcomer runs it: both sides complete, and nothing is left running."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentsched_bench.live.results import read_result

_MAIN = "import sys; from agentsched.cli import main; sys.exit(main())"
_SMALL = ("--programs", "3", "--steps", "3", "--speed", "4")


def _demo(
    *arguments: str, stderr: int = subprocess.STDOUT, env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _MAIN, "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=env,
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


#: The bar, once a call was answered.
_ANSWERED = re.compile(rb"\b[1-9]\d*/\d+ calls")


def _read_until(terminal: int, wanted: re.Pattern[bytes]) -> None:
    seen = b""
    while not wanted.search(seen):
        seen += os.read(terminal, 65_536)


def _read_to_the_end(terminal: int) -> None:
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while os.read(terminal, 65_536):
            pass


@pytest.mark.slow
def test_ctrl_c_stops_everything_and_keeps_the_results(tmp_path: Path) -> None:
    out = tmp_path / "demo.json"
    ours, theirs = pty.openpty()
    # Slow enough never to end by itself while this test looks.
    process = _demo(
        *("--speed", "0.5", "--out", str(out)),
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "200", "NO_COLOR": "1"},
    )
    os.close(theirs)
    try:
        _read_until(ours, _ANSWERED)
        started = _children(process.pid)
        process.send_signal(signal.SIGINT)
        _read_to_the_end(ours)
        said, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
        os.close(ours)

    assert len(started) == 2, "an engine and a proxy"
    assert process.returncode == 130, said
    assert read_result(out).calls
    assert not read_result(out).is_complete
    assert b"Interrupted" in said
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
