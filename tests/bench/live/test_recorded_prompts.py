"""Replays with real words: prompts extend each other, calls and results match, lengths hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentsched.proxy.request import Dialect
from agentsched_bench.live.arrivals import parse_arrivals
from agentsched_bench.live.calibrate import Calibration
from agentsched_bench.live.client import Outcome, Patience
from agentsched_bench.live.recorded_prompts import RecordedPrompts
from agentsched_bench.live.replay import Arm, ReplayOptions, replay_all
from agentsched_bench.live.results import SCHEMA, ArmRow, Recorder, Result, TraceRow
from agentsched_bench.workload.importers import ImportOptions, import_trace
from agentsched_bench.workload.shape import (
    PlannedProgram,
    ShapeOptions,
    SharedPrompts,
    plan_programs,
)
from agentsched_bench.workload.trace import (
    RecordedMessage,
    RecordedProgram,
    RecordedStep,
    Recording,
    group_programs,
    read_trace,
)

if TYPE_CHECKING:
    from tests.bench.live.conftest import FakeOpenAi

_WORDS = "alpha beta gamma delta "


def _session(name: str, task: str) -> dict[str, Any]:
    """Two parallel tool calls, then one, then the end."""

    def call(number: int) -> dict[str, Any]:
        arguments = json.dumps({"command": f"ls dir{number}"})
        function = {"name": "bash", "arguments": arguments}
        return {"id": f"c{number}", "type": "function", "function": function}

    return {
        "session_id": name,
        "messages": [
            {"role": "system", "content": _WORDS * 40},
            {"role": "user", "content": f"{task} " + _WORDS * 20},
            {"role": "assistant", "content": _WORDS * 10, "tool_calls": [call(1), call(2)]},
            {"role": "tool", "tool_call_id": "c1", "content": f"{task} one " + _WORDS * 8},
            {"role": "tool", "tool_call_id": "c2", "content": f"{task} two " + _WORDS * 12},
            {"role": "assistant", "content": _WORDS * 9, "tool_calls": [call(3)]},
            {"role": "tool", "tool_call_id": "c3", "content": f"{task} three " + _WORDS * 30},
            {"role": "assistant", "content": _WORDS * 6},
        ],
    }


@pytest.fixture
def worded(tmp_path: Path) -> list[PlannedProgram]:
    """Two sessions with texts, at their true size and without pauses."""
    path = tmp_path / "sessions.jsonl"
    rows = [_session("s1", "fix"), _session("s2", "test")]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    import_trace([path], tmp_path / "t.jsonl", options=ImportOptions(keeps_text=True))
    found = list(read_trace(tmp_path / "t.jsonl"))
    options = ShapeOptions(scale_tokens=1, scale_time=1, gap_cap_s=0.0)
    return plan_programs(group_programs(found), options, shared=SharedPrompts.learn(found))


def _recorder(arm: Arm) -> Recorder:
    trace = TraceRow(name="t", sha256="0", programs=0, calls=0, is_synthetic=True)
    return Recorder(
        Result(
            schema=SCHEMA,
            command=["test"],
            seed=0,
            versions={},
            trace=trace,
            options={},
            arms=[ArmRow(name=arm.name, url=arm.url, ids=arm.ids)],
        ),
        path=None,
    )


async def _replay(
    programs: list[PlannedProgram], fake: FakeOpenAi, dialect: Dialect = Dialect.CHAT
) -> Recorder:
    arm = Arm(name="a", url=fake.url)
    options = ReplayOptions(
        arrivals=parse_arrivals("closed:1"),
        patience=Patience(backoff_s=0.001, timeout_s=20),
        salt="run",
        dialect=dialect,
    )
    recorder = _recorder(arm)
    await replay_all(programs, [arm], options, recorder)
    return recorder


async def test_prompts_hold_recorded_words_calls_and_the_engines_answers(
    fake: FakeOpenAi, worded: list[PlannedProgram]
) -> None:
    await _replay(worded[:1], fake)

    first, second, third = (seen.messages for seen in fake.seen[-3:])
    assert [m["role"] for m in first] == ["system", "user"]
    assert "fix" in first[1]["content"]
    assert second[:2] == first
    assert [m["role"] for m in second[2:]] == ["assistant", "tool", "tool"]
    answer = second[2]
    # What the fake said stands there, not what was recorded.
    assert set(answer["content"].split()) == {"word"}
    assert [c["function"]["name"] for c in answer["tool_calls"]] == ["bash", "bash"]
    assert json.loads(answer["tool_calls"][0]["function"]["arguments"]) == {"command": "ls dir1"}
    called = [c["id"] for c in answer["tool_calls"]]
    assert [m["tool_call_id"] for m in second[3:]] == called
    assert "fix two" in second[4]["content"]
    assert third[: len(second)] == second


async def test_programs_begin_alike_and_call_with_ids_of_their_own(
    fake: FakeOpenAi, worded: list[PlannedProgram]
) -> None:
    await _replay(worded, fake)

    heads = {seen.messages[0]["content"] for seen in fake.seen[-6:]}
    assert len(heads) == 1
    assert heads.pop().startswith("[run/0]")
    ids = [
        call["id"]
        for seen in (fake.seen[-4], fake.seen[-1])
        for message in seen.messages
        for call in message.get("tool_calls", ())
    ]
    assert len(ids) == len(set(ids)) == 6


async def test_lengths_are_those_of_the_plan(
    fake: FakeOpenAi, worded: list[PlannedProgram]
) -> None:
    recorder = await _replay(worded, fake)

    assert recorder.result.summary[0].errors == 0
    assert len(recorder.result.calls) == 6
    for row in recorder.result.calls:
        assert row.output_tokens == row.planned_output_tokens
        # The fake counts words alone, which no text rate fits; its own counts set that right.
        if row.step == 2:
            assert row.prompt_tokens == pytest.approx(row.planned_prompt_tokens, rel=0.12)


@pytest.mark.parametrize("dialect", [Dialect.RESPONSES, Dialect.MESSAGES])
def test_other_dialects_word_calls_and_results_in_their_way(
    dialect: Dialect, worded: list[PlannedProgram]
) -> None:
    plan = worded[0].main
    assert plan.text is not None
    prompts = RecordedPrompts(plan, plan.text, dialect=dialect, calibration=Calibration(), salt="s")
    prompts.body(0, model="m")
    prompts.answered(0, Outcome(text="said " * 40, output_tokens=40, prompt_tokens=200))
    body = prompts.body(1, model="m")

    if dialect is Dialect.RESPONSES:
        items = body["input"]
        assert isinstance(items, list)
        kinds = [item.get("type", item.get("role")) for item in items]
        outputs = ["function_call_output"] * 2
        assert kinds == ["user", "assistant", "function_call", "function_call", *outputs]
        assert [i["call_id"] for i in items[2:4]] == [i["call_id"] for i in items[4:]]
    else:
        turns = body["messages"]
        assert isinstance(turns, list)
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
        asked = [b["id"] for b in turns[1]["content"] if b["type"] == "tool_use"]
        assert [block["tool_use_id"] for block in turns[2]["content"]] == asked
        assert turns[1]["content"][1]["input"] == {"command": "ls dir1"}


def test_scaled_prompts_are_cut_and_a_result_without_its_call_is_the_users(
    tmp_path: Path,
) -> None:
    session = _session("s", "fix")
    # After a compaction the prompt begins anew, with a result whose call is gone.
    session["messages"] = [session["messages"][0], *session["messages"][4:]]
    path = tmp_path / "s.json"
    path.write_text(json.dumps(session))
    import_trace([path], tmp_path / "t.jsonl", options=ImportOptions(keeps_text=True))
    rows = list(read_trace(tmp_path / "t.jsonl"))
    options = ShapeOptions(scale_tokens=4, scale_time=1)
    (program,) = plan_programs(group_programs(rows), options, shared=SharedPrompts.learn(rows))
    plan = program.main
    assert plan.text is not None
    prompts = RecordedPrompts(
        plan, plan.text, dialect=Dialect.CHAT, calibration=Calibration(), salt="s"
    )
    body = prompts.body(0, model="m")
    messages = body["messages"]
    assert isinstance(messages, list)
    assert [m["role"] for m in messages] == ["system", "user"]
    sent = sum(len(m["content"].split()) for m in messages)
    assert sent < 0.4 * sum(len(m["content"].split()) for m in session["messages"][:2])


def test_an_answer_that_was_given_twice_leaves_the_prompt_before_it_as_it_was() -> None:
    """SWE-agent's recordings keep a message once: answers of the same words have one number."""
    said = (("system", 100), ("user", 50), ("assistant", 10), ("user", 20))
    runs = (((0, 1),), ((0, 3),), ((0, 3), (2, 3)))
    row = Recording(
        session_id="s",
        source="swe-agent",
        messages=tuple(
            RecordedMessage(role=role, text=_WORDS * (tokens // 4), tokens=tokens)
            for role, tokens in said
        ),
        steps=tuple(
            RecordedStep(
                step=index,
                input_tokens=160 + 30 * index,
                output_tokens=10,
                prompt=prompt,
                answer=2,
            )
            for index, prompt in enumerate(runs)
        ),
    )
    options = ShapeOptions(scale_tokens=1, scale_time=1)
    (program,) = plan_programs([RecordedProgram(main=row)], options, shared=SharedPrompts())
    plan = program.main
    assert plan.text is not None
    prompts = RecordedPrompts(
        plan, plan.text, dialect=Dialect.CHAT, calibration=Calibration(), salt="s"
    )
    sent: list[list[dict[str, str]]] = []
    for index, words in enumerate(("here " * 10, "there " * 10, "nowhere " * 10)):
        messages = prompts.body(index, model="m")["messages"]
        assert isinstance(messages, list)
        sent.append(messages)
        prompts.answered(index, Outcome(text=words, output_tokens=10))

    assert sent[1][2]["content"].split()[0] == "here"
    assert sent[1][:2] == sent[0]
    assert sent[2][:4] == sent[1]


async def test_completions_go_by_token_ids_all_the_same(
    fake: FakeOpenAi, worded: list[PlannedProgram]
) -> None:
    recorder = await _replay(worded, fake, Dialect.COMPLETIONS)
    assert all(row.prompt_tokens == row.planned_prompt_tokens for row in recorder.result.calls)
