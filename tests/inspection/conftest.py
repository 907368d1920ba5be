"""A proxy on the embedded engine in this process, with one recorded-like program run through it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from agentsched_bench.portrait.replay import Scale, proxy_on_embedded_engine, replay_program
from agentsched_bench.workload.trace import (
    RecordedProgram,
    RecordedStep,
    RecordedTool,
    Recording,
)


def step(number: int, *tools: str, gap_s: float = 0.0) -> RecordedStep:
    return RecordedStep(
        step=number,
        input_tokens=300 + 40 * number,
        output_tokens=8,
        gap_s=gap_s,
        gap_kind="tool",
        tools=tuple(RecordedTool(name=name, result_tokens=20) for name in tools),
    )


PROGRAM = RecordedProgram(
    main=Recording(
        session_id="fix-it",
        source="made",
        agent="claude-code",
        steps=(step(0, "Read", "Grep"), step(1, "Task"), step(2, "Bash"), step(3)),
    ),
    children=(
        Recording(
            session_id="fix-it/sub",
            source="made",
            agent="claude-code",
            parent="fix-it",
            steps=(step(0, "Glob"), step(1)),
        ),
    ),
)


@dataclass(frozen=True)
class Running:
    """Where proxy and engine answer, and the program's id."""

    url: str
    engine_url: str
    program: str


@pytest.fixture(scope="module")
def proxy() -> Iterator[Running]:
    """The proxy runs on a loop of its own, since commands block."""
    found: list[Running] = []
    ready, done = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    async def serve() -> None:
        scale = Scale(tokens=4.0, engine_speed=20.0)
        async with proxy_on_embedded_engine(scale) as (gateway, url):
            program = await replay_program(url, PROGRAM, scale)
            [member] = gateway.fleet.members.values()
            found.append(Running(url=url, engine_url=member.url, program=program))
            ready.set()
            await asyncio.to_thread(done.wait)

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(60)
    if not found:
        thread.join(10)
        raise RuntimeError("the proxy did not come up") from (failed[0] if failed else None)
    yield found[0]
    done.set()
    thread.join(30)
    assert not failed
