"""Our own commands as subprocesses: ready, refused, silent, and always gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from live import eventually

from agentsched.model import EngineError, EngineUnreachable
from agentsched_bench.live import processes
from agentsched_bench.live.processes import running, stop_group

_SIM = ("engine", "sim", "--port", "0")


def _children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return {int(number) for number in file.read().split()}


@pytest.mark.slow
async def test_a_process_answers_while_it_is_held_and_is_gone_after() -> None:
    before = _children()

    async with running(*_SIM, name="an engine") as ready:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", ready.url)
        assert "ready" in ready.line
        assert len(_children() - before) == 1

    assert _children() == before


@pytest.mark.slow
async def test_a_failure_inside_still_ends_the_process() -> None:
    before = _children()

    with pytest.raises(RuntimeError, match="inside"):
        async with running(*_SIM, name="an engine"):
            raise RuntimeError("inside")

    assert _children() == before


@pytest.mark.slow
async def test_what_cannot_start_gives_its_last_words() -> None:
    with pytest.raises(EngineUnreachable, match=r"an engine did not start.*unknown preset"):
        async with running(*_SIM, "--preset", "none-such", name="an engine"):
            raise AssertionError("it must not get this far")


@pytest.mark.slow
async def test_what_is_never_ready_is_ended() -> None:
    before = _children()

    with pytest.raises(EngineError, match=r"was not ready within 0\.01 s"):
        async with running(*_SIM, name="an engine", ready_s=0.01):
            raise AssertionError("it must not get this far")

    assert _children() == before


async def _begin(text: str) -> tuple[Process, int]:
    """A shell in a group of its own, and the child that it names first."""
    process = await asyncio.create_subprocess_exec("sh", "-c", text, stdout=PIPE, process_group=0)
    assert process.stdout is not None
    async with asyncio.timeout(60):
        return process, int(await process.stdout.readline())


def _lives(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("first", ["wait", "exit 1"])
async def test_nothing_is_left_of_a_group_whose_first_process_has_ended(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first word, or long before it; the child does not care to be asked."""
    monkeypatch.setattr(processes, "_LOOKS", 1)
    process, child = await _begin(
        f"trap '' TERM; sleep 600 >/dev/null & echo $!; trap - TERM; {first}"
    )
    if first == "exit 1":
        await process.wait()
    assert _lives(child)

    try:
        await stop_group(process)
        await eventually(lambda: not _lives(child))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


async def test_the_rest_of_a_group_is_asked_before_it_is_killed(tmp_path: Path) -> None:
    said = tmp_path / "said"
    child = f"trap 'echo bye > {said}; exit' TERM; echo $$; while :; do sleep 0.01; done"
    process, _ = await _begin(f'sh -c "{child}" & wait')

    await stop_group(process)

    assert said.read_text(encoding="utf-8") == "bye\n"


async def test_a_number_that_is_anothers_by_now_is_left_alone() -> None:
    """A process that has ended without a group has given its number away."""
    ended = await asyncio.create_subprocess_exec("true", process_group=0)
    await ended.wait()
    other, _ = await _begin("echo $$; exec sleep 600")
    stands_in = SimpleNamespace(pid=other.pid, returncode=0, wait=ended.wait)
    try:
        await stop_group(cast("Process", stands_in))
        assert _lives(other.pid)
    finally:
        await stop_group(other)
    assert not _lives(other.pid)
