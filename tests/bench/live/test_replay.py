"""Replay against a server that listens: lengths, echoes, retries, failures, interrupts."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentsched.model import EngineError
from agentsched.proxy.request import Dialect
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.live.client import Client, Patience
from agentsched_bench.live.replay import Arm, Progress, ReplayOptions, replay_all
from agentsched_bench.live.results import (
    SCHEMA,
    ArmRow,
    Recorder,
    Result,
    TraceRow,
    read_result,
)
from agentsched_bench.workload.shape import (
    Piece,
    PlannedCall,
    PlannedConversation,
    PlannedProgram,
)

if TYPE_CHECKING:
    from tests.bench.live.conftest import FakeOpenAi

_QUICK = Patience(backoff_s=0.001, timeout_s=20)
_OPTIONS = ReplayOptions(arrivals=parse_arrivals("closed:3"), patience=_QUICK, salt="test")


def _recorder(*arms: Arm, path: Path | None = None) -> Recorder:
    trace = TraceRow(name="t", sha256="0", programs=0, calls=0, is_synthetic=True)
    return Recorder(
        Result(
            schema=SCHEMA,
            command=["test"],
            seed=0,
            versions={},
            trace=trace,
            options={},
            arms=[ArmRow(name=arm.name, url=arm.url, ids=arm.ids) for arm in arms],
        ),
        path=path,
    )


def _call(index: int, *, prompt: int, output: int, base_tokens: int = 0) -> PlannedCall:
    return PlannedCall(
        base=None if index == 0 else index - 1,
        keep_tokens=base_tokens,
        echo_tokens=0 if index == 0 else 5,
        pieces=(Piece(stream=f"own/{index}", tokens=200),),
        prompt_tokens=prompt,
        output_tokens=output,
        pause_s=0.0,
    )


def _program(name: str = "p", calls: int = 2) -> PlannedProgram:
    planned = tuple(
        _call(i, prompt=100 + 100 * i, output=5, base_tokens=100 * i) for i in range(calls)
    )
    main = PlannedConversation(conversation=name, calls=planned)
    return PlannedProgram(program=name, main=main)


@pytest.mark.parametrize(
    "dialect", [Dialect.CHAT, Dialect.COMPLETIONS, Dialect.RESPONSES, Dialect.MESSAGES]
)
async def test_every_dialect_gets_its_lengths(
    dialect: Dialect, fake: FakeOpenAi, plans: list[PlannedProgram]
) -> None:
    arm = Arm(name="a", url=fake.url)
    recorder = _recorder(arm)

    await replay_all(plans, [arm], dataclasses.replace(_OPTIONS, dialect=dialect), recorder)

    (summary,) = recorder.result.summary
    assert summary.programs == {"completed": 6, "failed": 0, "interrupted": 0}
    assert summary.errors == 0
    assert summary.prompt_error == pytest.approx(0.0, abs=0.02)
    assert recorder.result.is_complete
    for row in recorder.result.calls:
        assert row.ttft_s is not None
        assert 0 < row.ttft_s <= row.latency_s
        assert row.output_tokens == row.planned_output_tokens
        assert row.prompt_tokens is not None
        # Two messages with a word each are the least that a step adds; token ids are exact.
        slack = 0 if dialect is Dialect.COMPLETIONS else 2 + 9 * row.step
        assert row.prompt_tokens == pytest.approx(row.planned_prompt_tokens, abs=slack)


async def test_answers_are_echoed_and_prompts_extended(fake: FakeOpenAi) -> None:
    arm = Arm(name="a", url=fake.url)

    await replay_all([_program(calls=3)], [arm], _OPTIONS, _recorder(arm))

    calls = [s for s in fake.seen if s.body["max_tokens"] == 5]
    first, second, third = (seen.messages for seen in calls)
    assert second[: len(first)] == first
    assert second[len(first)] == {"role": "assistant", "content": "word word word word word "}
    assert third[: len(second)] == second
    assert [m["role"] for m in third] == ["user", "assistant"] * 2 + ["user"]


@pytest.mark.parametrize(("echoes_whole", "words"), [(False, 2), (True, 5)])
async def test_dropped_reasoning_is_left_out_or_kept(
    echoes_whole: bool, words: int, fake: FakeOpenAi
) -> None:
    arm = Arm(name="a", url=fake.url)
    program = _program()
    first, second = program.main.calls
    calls = (first, dataclasses.replace(second, echo_tokens=2))
    main = dataclasses.replace(program.main, calls=calls)
    options = dataclasses.replace(_OPTIONS, echoes_whole=echoes_whole)

    await replay_all([dataclasses.replace(program, main=main)], [arm], options, _recorder(arm))

    answer = fake.seen[-1].messages[-2]
    assert answer["role"] == "assistant"
    assert len(answer["content"].split()) == words


async def test_token_ids_of_answers_are_echoed(fake: FakeOpenAi) -> None:
    arm = Arm(name="a", url=fake.url)
    options = dataclasses.replace(_OPTIONS, dialect=Dialect.COMPLETIONS)

    await replay_all([_program()], [arm], options, _recorder(arm))

    first, second = (seen.body["prompt"] for seen in fake.seen)
    assert second[:105] == first[:100] + [7] * 5


async def test_a_server_without_token_ids_still_gets_exact_lengths(fake: FakeOpenAi) -> None:
    fake.gives_ids = False
    arm = Arm(name="a", url=fake.url)
    options = dataclasses.replace(_OPTIONS, dialect=Dialect.COMPLETIONS)

    await replay_all([_program()], [arm], options, _recorder(arm))

    assert len(fake.seen[1].body["prompt"]) == 305
    assert 7 not in fake.seen[1].body["prompt"]


async def test_a_closed_loop_keeps_its_limit(fake: FakeOpenAi, plans: list[PlannedProgram]) -> None:
    arm = Arm(name="a", url=fake.url)
    options = dataclasses.replace(_OPTIONS, arrivals=parse_arrivals("closed:1"))

    await replay_all([p for p in plans if not p.children], [arm], options, _recorder(arm))

    assert fake.running_max == 1


async def test_sub_agents_start_after_their_call_and_join(fake: FakeOpenAi) -> None:
    child = PlannedConversation(
        conversation="child",
        calls=(_call(0, prompt=80, output=3),),
        parent="p",
        parent_call=0,
        joins=True,
    )
    program = dataclasses.replace(_program(), children=(child,))
    arm = Arm(name="a", url=fake.url, ids="claude-code")
    recorder = _recorder(arm)

    await replay_all([program], [arm], _OPTIONS, recorder)

    rows = [(row.conversation, row.step) for row in recorder.result.calls]
    assert rows == [("p", 0), ("child", 0), ("p", 1)]
    assert {row.program for row in recorder.result.calls} == {"p"}
    agents = [s.headers.get("x-claude-code-agent-id") for s in fake.seen[-3:]]
    assert [agent is None for agent in agents] == [True, False, True]


async def test_refusals_are_retried_and_counted(fake: FakeOpenAi) -> None:
    arm = Arm(name="a", url=fake.url)
    recorder = _recorder(arm)
    options = dataclasses.replace(_OPTIONS, dialect=Dialect.COMPLETIONS)
    fake.refuse = [429, 503]
    fake.retry_after = "0"

    await replay_all([_program(calls=1)], [arm], options, recorder)

    (row,) = recorder.result.calls
    assert (row.attempts, row.status, row.error) == (3, 200, "")
    assert row.ttft_s is not None
    assert 0 < row.refused_s < row.ttft_s, "its last try was sent then"
    assert recorder.result.summary[0].retries == 2


async def test_retry_after_is_honoured(fake: FakeOpenAi) -> None:
    client = Client(
        fake.url,
        dialect=Dialect.COMPLETIONS,
        patience=dataclasses.replace(_QUICK, retry_after_s_max=0.02),
        rng=random.Random(0),
    )
    fake.refuse, fake.retry_after = [429], "30"
    body = {"prompt": [1], "max_tokens": 1}

    outcome = await client.call(body, headers={})

    await client.aclose()
    # What was asked for, up to the most that we wait.
    assert outcome.waited_s == 0.02
    assert outcome.latency_s >= 0.02
    assert not outcome.error


@pytest.mark.parametrize("statuses", [[500], [400], [503] * 9])
async def test_a_refusal_for_good_fails_the_program_and_is_shown(
    statuses: list[int], fake: FakeOpenAi
) -> None:
    arm = Arm(name="a", url=fake.url)
    recorder = _recorder(arm)
    options = dataclasses.replace(_OPTIONS, dialect=Dialect.COMPLETIONS)
    fake.refuse = list(statuses)

    await replay_all([_program()], [arm], options, recorder)

    (row,) = recorder.result.calls
    assert row.status == statuses[0]
    assert "try later" in row.error
    (program,) = recorder.result.programs
    assert (program.outcome, program.jct_s, program.calls_done) == ("failed", None, 0)
    assert recorder.result.summary[0].errors == 1


async def test_a_cut_stream_is_a_failure(fake: FakeOpenAi) -> None:
    fake.cut = True
    arm = Arm(name="a", url=fake.url)
    recorder = _recorder(arm)
    options = dataclasses.replace(_OPTIONS, dialect=Dialect.COMPLETIONS)

    await replay_all([_program()], [arm], options, recorder)

    assert recorder.result.calls[0].error == "the stream ended before the answer did"


async def test_a_silent_server_is_given_up(fake: FakeOpenAi) -> None:
    fake.hang_from = 1
    client = Client(
        fake.url,
        dialect=Dialect.COMPLETIONS,
        patience=dataclasses.replace(_QUICK, timeout_s=0.05),
        rng=random.Random(0),
    )

    outcome = await client.call({"prompt": [1], "max_tokens": 4}, headers={})

    await client.aclose()
    assert outcome.error == "no complete answer within 0.05 s"


async def test_an_interrupt_keeps_what_was_measured(fake: FakeOpenAi, tmp_path: Path) -> None:
    # Each of the three has had an answer, and waits for its second.
    fake.hang_from, fake.hang_count = 4, 3
    arm = Arm(name="a", url=fake.url)
    recorder = _recorder(arm, path=tmp_path / "r.json")
    options = dataclasses.replace(_OPTIONS, dialect=Dialect.COMPLETIONS)
    programs = [_program("p"), _program("q"), _program("r")]

    task = asyncio.create_task(replay_all(programs, [arm], options, recorder))
    await fake.hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    result = read_result(tmp_path / "r.json")
    assert not result.is_complete
    assert sum(not row.error for row in result.calls) == 3
    assert {row.error for row in result.calls} == {"", "interrupted"}
    assert result.summary[0].programs["interrupted"] == 3
    assert result.summary[0].errors == 0
    assert os.listdir(tmp_path) == ["r.json"]


async def test_arms_alternate_and_are_compared(
    fake: FakeOpenAi, plans: list[PlannedProgram]
) -> None:
    arms = [Arm(name="a", url=fake.url), Arm(name="b", url=fake.url, ids="session")]
    recorder = _recorder(*arms)
    options = dataclasses.replace(_OPTIONS, repeat=2)
    steps: list[Progress] = []

    await replay_all(plans, arms, options, recorder, on_progress=steps.append)

    assert [(run.arm, run.repeat) for run in recorder.result.runs] == [
        ("a", 0),
        ("b", 0),
        ("a", 1),
        ("b", 1),
    ]
    first, second = recorder.result.summary
    assert first.jct_ratio is None
    assert second.jct_ratio is not None
    assert second.jct_ratio > 0
    assert len(first.run_jct_s) == 2
    assert steps[-1].calls_done == steps[-1].calls_planned
    sessions = {s.headers["x-session-id"] for s in fake.seen if "x-session-id" in s.headers}
    assert len(sessions) == 2 * len(plans), "a program is another one in each run"


async def test_runs_have_content_of_their_own_unless_caches_are_emptied(
    fake: FakeOpenAi,
) -> None:
    options = dataclasses.replace(_OPTIONS, repeat=2, dialect=Dialect.COMPLETIONS)
    plain = Arm(name="a", url=fake.url)
    await replay_all([_program(calls=1)], [plain], options, _recorder(plain))
    reset = Arm(name="a", url=fake.url, reset_url=f"{fake.url}/reset_prefix_cache")
    unsalted = dataclasses.replace(options, salt=None)
    await replay_all([_program(calls=1)], [reset], unsalted, _recorder(reset))

    one, two, three, four = (seen.body["prompt"] for seen in fake.seen)
    assert one != two
    assert three == four
    assert fake.resets == 2


def _with_tools(program: PlannedProgram) -> PlannedProgram:
    calls = tuple(
        dataclasses.replace(call, tools=(f"Bash {index}", "Read")[: 2 - index % 2])
        for index, call in enumerate(program.main.calls)
    )
    return dataclasses.replace(program, main=dataclasses.replace(program.main, calls=calls))


async def test_a_proxy_is_told_what_each_pause_is_for(fake: FakeOpenAi) -> None:
    fake.gives_labels = True
    program = _with_tools(_program(calls=3))
    for tells_tools in (False, True):
        arm = Arm(name="a", url=fake.url, tells_tools=tells_tools)
        recorder = _recorder(arm)
        await replay_all([program], [arm], _OPTIONS, recorder)
        if not tells_tools:
            assert fake.reports == []
    told = sorted((report["event"], report["tool"]) for report in fake.reports)
    # After the last answer nobody waits for anything.
    assert told == [("started", "Bash 0"), ("started", "Bash 1"), ("started", "Read")]
    assert {report["program"] for report in fake.reports} == {recorder.result.calls[0].label}
    assert len({report["call_id"] for report in fake.reports}) == 3


async def test_tools_are_told_as_the_tenant_whose_program_waits(fake: FakeOpenAi) -> None:
    """The pins of published methods were never asked for where the load had tenants."""
    fake.gives_labels = True
    program = _with_tools(_program(calls=3))
    arm = Arm(name="a", url=fake.url, tells_tools=True)
    options = dataclasses.replace(_OPTIONS, tenants={program.program: "heavy"})
    await replay_all([program], [arm], options, _recorder(arm))
    assert len(fake.reports) == 3


async def test_reports_that_become_nothing_end_the_run(fake: FakeOpenAi) -> None:
    fake.gives_labels, fake.forgets = True, True
    arm = Arm(name="a", url=fake.url, tells_tools=True)
    recorder = _recorder(arm)
    with pytest.raises(EngineError, match="knows none of our programs"):
        await replay_all([_with_tools(_program())], [arm], _OPTIONS, recorder)
    assert not recorder.result.runs[0].is_complete


async def test_a_proxy_that_takes_no_reports_ends_the_run(fake: FakeOpenAi) -> None:
    fake.gives_labels, fake.takes_reports = True, False
    arm = Arm(name="a", url=fake.url, tells_tools=True)
    with pytest.raises(ExceptionGroup, match="unhandled errors") as raised:
        await replay_all([_with_tools(_program())], [arm], _OPTIONS, _recorder(arm))
    assert raised.group_contains(EngineError, match="takes no reports of tools")


async def test_attribution_is_measured_where_the_other_side_says(
    fake: FakeOpenAi, plans: list[PlannedProgram]
) -> None:
    fake.gives_labels = True
    arm = Arm(name="a", url=fake.url)
    recorder = _recorder(arm)

    await replay_all(plans, [arm], _OPTIONS, recorder)

    seen = recorder.result.summary[0].attribution
    assert seen is not None
    assert seen.main_right_share == 1.0
    assert seen.merged == 0
    assert recorder.result.calls[0].decision == "order=fcfs"


async def test_a_server_that_sends_no_counts_cannot_be_calibrated(fake: FakeOpenAi) -> None:
    fake.gives_usage = False
    arm = Arm(name="a", url=fake.url)

    with pytest.raises(EngineError, match="sends no usage"):
        await replay_all([_program()], [arm], _OPTIONS, _recorder(arm))


async def test_a_server_that_is_not_there_is_named() -> None:
    arm = Arm(name="a", url="http://127.0.0.1:9")

    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9 does not name a model"):
        await replay_all([_program()], [arm], _OPTIONS, _recorder(arm))


async def test_a_program_says_how_much_time_is_left(fake: FakeOpenAi) -> None:
    arm = Arm(name="a", url=fake.url, ids="agentsched")
    options = dataclasses.replace(_OPTIONS, deadlines_s={"p": 60.0})

    await replay_all([_program("p", calls=3), _program("q")], [arm], options, _recorder(arm))

    left: dict[str, list[float | None]] = {}
    for seen in fake.seen:
        if name := seen.headers.get("x-agentsched-program"):
            said = seen.headers.get("x-agentsched-deadline")
            left.setdefault(name, []).append(None if said is None else float(said))
    wanted, other = sorted(left.values(), key=len, reverse=True)
    assert other == [None, None]
    told = [each for each in wanted if each is not None]
    assert len(told) == 3
    assert 60.0 >= told[0] >= told[1] >= told[2] > 0.0
