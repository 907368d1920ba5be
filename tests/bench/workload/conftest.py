"""Recordings to test with: small ones made here, and the recorded files where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agentsched_bench.workload.trace import RecordedStep, Recording

_TRACES = Path(__file__).parents[3].parent / "shared" / "traces"

MakeRecording = Callable[..., Recording]


def make_recording(
    *prompts: tuple[int, int, int | None], name: str = "p1", **fields: object
) -> Recording:
    """A recording from (input, output, new input) triples."""
    steps = tuple(
        RecordedStep(step=index, input_tokens=tokens, output_tokens=output, new_input_tokens=new)
        for index, (tokens, output, new) in enumerate(prompts)
    )
    given = {"source": "test", "agent": "agent", "model": "model"} | fields
    return Recording(session_id=name, steps=steps, **given)  # type: ignore[arg-type]


@pytest.fixture
def recording() -> MakeRecording:
    return make_recording


@pytest.fixture
def traces() -> Path:
    """The folder of recorded traces. Mark tests that use it `traces`."""
    if not _TRACES.is_dir():
        pytest.skip(f"no recorded traces at {_TRACES}")
    return _TRACES
