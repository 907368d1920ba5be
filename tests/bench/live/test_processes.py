"""Our own commands as subprocesses: ready, refused, silent, and always gone afterwards."""

from __future__ import annotations

import os
import re

import pytest

from agentsched.model import EngineError, EngineUnreachable
from agentsched_bench.live.processes import running

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
