"""Recorded programs through the proxy, on a real vLLM: all complete, each is known as one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentsched.proxy.request import Dialect
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.live.replay import Arm, ReplayOptions, replay_all
from agentsched_bench.live.results import SCHEMA, ArmRow, Recorder, Result
from agentsched_bench.recognition.mix import Choice, mixed
from agentsched_bench.workload.generate import sample_path
from agentsched_bench.workload.shape import PlannedProgram, ShapeOptions

if TYPE_CHECKING:
    from agentsched_bench.live.results import TraceRow
    from tests.real.conftest import Target

_TRACES = Path(__file__).parents[2].parent / "shared/traces"
_RECORDED = ("miniswe-gemini3-swebench-verified.jsonl.gz", "agentcgroup-swe-rebench.jsonl.gz")
PROGRAMS = 6
#: Whom the client tells that it is, in the dialect of the clients that do so.
SPOKEN = [
    (Dialect.CHAT, "none"),
    (Dialect.CHAT, "agentsched"),
    (Dialect.CHAT, "session"),
    (Dialect.CHAT, "program_id"),
    (Dialect.CHAT, "prompt_cache_key"),
    (Dialect.MESSAGES, "none"),
    (Dialect.MESSAGES, "claude-code"),
    (Dialect.RESPONSES, "none"),
    (Dialect.RESPONSES, "codex"),
]
Plans = tuple[list[PlannedProgram], list["TraceRow"]]


@pytest.fixture(scope="session")
def recorded() -> Plans:
    """Six programs of eight calls at most, recorded ones where they are at hand.

    Elsewhere they are of the synthetic sample that is shipped.
    """
    traces = [_TRACES / name for name in _RECORDED]
    if not all(trace.is_file() for trace in traces):
        traces = [sample_path()]
    shape = ShapeOptions(
        scale_tokens=8, scale_time=20, gap_cap_s=2.0, steps_max=8, context_tokens_max=3_500
    )
    return mixed(traces, count=PROGRAMS, choice=Choice.GROWING, shape=shape, seed=0, steps_min=4)


async def _replay(plans: Plans, target: Target, *, dialect: Dialect, ids: str) -> Result:
    programs, rows = plans
    arm = Arm(name="proxied", url=target.proxied, ids=ids)
    result = Result(
        schema=SCHEMA,
        command=[],
        seed=0,
        versions={},
        trace=rows[0],
        options={},
        arms=[ArmRow(name=arm.name, url=arm.url, ids=ids)],
    )
    options = ReplayOptions(
        dialect=dialect,
        arrivals=parse_arrivals(f"closed:{PROGRAMS}"),
        salt=f"real/{dialect}/{ids}",
        echoes_whole=True,
    )
    recorder = Recorder(result, path=None)
    await replay_all(programs, [arm], options, recorder)
    return recorder.result


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("dialect", "ids"), SPOKEN, ids=[f"{d}-{i}" for d, i in SPOKEN])
async def test_programs_complete_and_each_is_known_as_one(
    dialect: Dialect, ids: str, recorded: Plans, target: Target
) -> None:
    result = await _replay(recorded, target, dialect=dialect, ids=ids)

    (summary,) = result.summary
    assert {(row.status, row.error) for row in result.calls} == {(200, "")}
    assert summary.programs["completed"] == PROGRAMS
    assert summary.retries == 0
    assert summary.prompt_error == pytest.approx(0.0, abs=0.05)
    seen = summary.attribution
    assert seen is not None
    assert seen.programs == seen.labels == PROGRAMS
    assert (seen.precision, seen.recall, seen.merged, seen.split) == (1.0, 1.0, 0, 0)
    assert seen.calls == sum(program.calls for program in recorded[0]) >= 4 * PROGRAMS


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_programs_of_several_runs_are_not_mistaken(recorded: Plans, target: Target) -> None:
    """The same programs once more, with the same content: other programs all the same."""
    first = await _replay(recorded, target, dialect=Dialect.CHAT, ids="none")
    again = await _replay(recorded, target, dialect=Dialect.CHAT, ids="none")

    labels = [{row.label for row in result.calls} for result in (first, again)]
    assert [len(found) for found in labels] == [PROGRAMS, PROGRAMS]
    assert not labels[0] & labels[1]
