"""Imports of shapes that other versions and other programs write, in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trace_files import imported, lines, written

from agentsched_bench.workload.trace import Recording

# -- files ------------------------------------------------------------------------------------


def _chat(name: str) -> dict[str, Any]:
    asked = [{"role": "user", "content": "do it"}, {"role": "assistant", "content": "done"}]
    return {"session_id": name, "messages": asked}


def _names(rows: list[Recording]) -> list[str]:
    return [row.session_id for row in rows]


def test_documents_in_a_row_are_read_and_a_broken_one_is_named(tmp_path: Path) -> None:
    """As `jq .` leaves them: each over several lines, one after the other."""
    path = tmp_path / "pretty.json"
    parts = [json.dumps(_chat(name), indent=2) for name in ("a", "b", "c")]
    path.write_text("\n".join(parts) + "\n")
    rows, report = imported(path, tmp_path / "t.jsonl")
    assert (_names(rows), report.errors_count) == (["a", "b", "c"], 0)
    path.write_text("\n".join(parts)[:-20])
    rows, report = imported(path, tmp_path / "t.jsonl")
    assert _names(rows)[:2] == ["a", "b"]
    assert [row.is_cut for row in rows] == [False, False, True][: len(rows)]
    assert report.errors[0].line is not None
    assert report.errors[0].line > len("\n".join(parts[:2]).splitlines())


def test_a_bad_first_line_costs_that_line_only(tmp_path: Path) -> None:
    good = [json.dumps(_chat(name)) for name in ("a", "b")]
    path = tmp_path / "x.jsonl"
    path.write_text("\r\n".join([good[0][:30], *good]) + "\r\n")
    rows, report = imported(path, tmp_path / "t.jsonl")
    assert _names(rows) == ["a", "b"]
    assert [error.line for error in report.errors] == [1]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_what_windows_writes_is_read(encoding: str, tmp_path: Path) -> None:
    """Marks of byte order, line ends of two signs, names in capitals."""
    folder = tmp_path / "runs"
    folder.mkdir()
    text = "".join(json.dumps(_chat(name)) + "\r\n" for name in ("a", "b"))
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (folder / "RUN.JSONL").write_bytes((mark + text).encode(encoding))
    rows, report = imported(folder, tmp_path / "t.jsonl")
    assert (_names(rows), report.errors_count) == (["a", "b"], 0)


def test_a_line_that_is_too_long_costs_that_line_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched_bench.workload.trace.LINE_BYTES_MAX", 1 << 20)
    long = _chat("long") | {"padding": "x" * (3 << 20)}
    path = lines(tmp_path / "x.jsonl", _chat("a"), long, _chat("b"))
    rows, report = imported(path, tmp_path / "t.jsonl")
    assert _names(rows) == ["a", "b"]
    assert [str(error) for error in report.errors] == [f"{path}:2: the line is longer than 1 MiB"]


# -- SWE-agent --------------------------------------------------------------------------------


def _swe_step(number: int, **more: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": f"task {number}"}]
    step = {"query": asked, "response": f"thought {number}", "action": "ls", "observation": "a b"}
    return step | {"execution_time": 0.5} | more


def test_swe_agents_own_last_words_are_no_call(tmp_path: Path) -> None:
    """Out of money or room it writes an answer itself; then its counts are of the same calls."""
    steps = [_swe_step(0), _swe_step(1)]
    gave_up = {"response": "Exit due to cost limit", "thought": "Exit due to cost limit"}
    stats = {"tokens_sent": 24, "tokens_received": 6, "api_calls": 2}
    info = {"exit_status": "submitted (exit_cost)", "model_stats": stats}
    config = json.dumps({"agent": {"model": {"name": "some/model"}}})
    whole = {"environment": "e", "info": info, "replay_config": config}
    exited = {"query": [{}], "action": "", "observation": "", **gave_up}
    sent = written(tmp_path / "new.traj", whole | {"trajectory": [*steps, exited]})
    told = [{"role": "assistant", "content": step["response"]} for step in steps]
    history = [steps[0]["query"][0], told[0], {"role": "user", "content": "a b"}, told[1]]
    last = [{"role": "assistant", "content": gave_up["response"]}]
    old = [{k: v for k, v in step.items() if k != "query"} for step in [*steps, exited]]
    for name, ends in (("newer", last), ("older", [])):
        value = whole | {"trajectory": old, "history": [*history, *ends]}
        sent.with_name(f"{name}.traj").write_text(json.dumps(value))
    rows, report = imported(tmp_path, tmp_path / "t.jsonl")
    assert (report.errors_count, _names(rows)) == (0, ["new", "newer", "older"])
    for row in rows:
        assert [step.gap_s for step in row.steps] == [0.5, None]
        assert sum(step.input_tokens for step in row.steps) == 24
        assert row.token_source["input"] == "estimated, scaled to recorded totals"
        assert row.model == "some/model"


def test_swe_agents_attempts_are_sessions(tmp_path: Path) -> None:
    """Beside its attempts the file repeats the best of them."""
    runs = [{"trajectory": [_swe_step(i)] * (i + 1), "info": {}} for i in range(2)]
    written(tmp_path / "task.traj", {"attempts": runs, **runs[1]})
    written(tmp_path / "unchosen.traj", {"attempts": runs[:1]})
    rows, _ = imported(tmp_path, tmp_path / "t.jsonl")
    assert [(row.session_id, len(row.steps)) for row in rows] == [
        ("task/attempt-1", 1),
        ("task/attempt-2", 2),
        ("unchosen", 1),
    ]


def test_swe_agents_demonstrations_may_be_a_history_alone(tmp_path: Path) -> None:
    """And runs may be called alike, each in a folder of its own."""
    call = {"id": "c", "type": "function", "function": {"name": "submit", "arguments": "{}"}}
    said = {"role": "assistant", "content": "so", "thought": "so", "action": "submit"}
    history = [
        {"role": "user", "content": "fix it", "agent": "main", "message_type": "observation"},
        said | {"tool_calls": [call], "message_type": "action"},
        {"role": "tool", "content": "diff", "tool_call_ids": ["c"]},
    ]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "trajectory.traj", {"history": history})
    rows, report = imported(tmp_path, tmp_path / "t.jsonl")
    assert (report.errors_count, _names(rows)) == (0, ["one", "two"])
    assert [tool.name for tool in rows[0].steps[0].tools] == ["submit"]


def test_swe_agents_tool_calls_are_told_by_the_next_prompt(tmp_path: Path) -> None:
    """From 1.1 on a step has none; of the last one the history tells."""

    def answer(name: str, text: str) -> dict[str, Any]:
        function = {"name": name, "arguments": '{"command": "view"}'}
        call = {"id": f"{name}-1", "type": "function", "function": function}
        own = {"thought": text, "action": f"{name} view", "message_type": "action"}
        return {"role": "assistant", "content": text, "tool_calls": [call], **own}

    def seen(name: str) -> dict[str, Any]:
        return {"role": "tool", "content": "a b", "tool_call_ids": [f"{name}-1"]}

    def step(text: str, action: str, *query: dict[str, Any]) -> dict[str, Any]:
        return _swe_step(0, query=list(query), response=text, action=action)

    task = _swe_step(0)["query"][0]
    first, last = answer("str_replace_editor", ""), answer("submit", "so")
    wrong = {"role": "assistant", "content": "well"}
    complaint = {"role": "user", "content": "call a tool"}
    told = [task, first, seen("str_replace_editor")]
    steps = [
        step("", "str_replace_editor view", task),
        step("well", "", *told),
        step("so", "submit view", *told, wrong, complaint),
        {"query": [{}], "response": "Exit due to cost limit", "action": "", "observation": ""},
    ]
    history = [*told, last, seen("submit"), {"role": "assistant", "content": "Exit due to cost"}]
    value = {"trajectory": steps, "history": history, "environment": "e"}
    path = written(tmp_path / "x.traj", value)
    (row,), _ = imported(path, tmp_path / "t.jsonl", text=True)
    tools = [[(tool.name, tool.call_id) for tool in step.tools] for step in row.steps]
    assert tools == [[("str_replace_editor", "str_replace_editor-1")], [], [("submit", "submit-1")]]
    assert [step.new_input_tokens is None for step in row.steps] == [True, False, False]
    said = [message for message in row.messages if message.role == "assistant"]
    assert [len(message.tool_calls) for message in said] == [1, 0, 1]


def _answered_again() -> dict[str, Any]:
    """A run of 1.0 whose second and third answer were refused: the history has neither."""

    def step(text: str, took: float) -> dict[str, Any]:
        own = {"action": text, "observation": "o", "response": text, "thought": text}
        return own | {"execution_time": took, "messages": []}

    told = [{"role": "user", "content": "task"}]
    for text in ("one", "two"):
        told += [{"role": "assistant", "content": text, "message_type": "action"}]
        told += [{"role": "user", "content": "o"}]
    steps = [step("one", 1.0), step("bad", 0.0), step("worse", 0.5), step("two", 2.0)]
    return {"trajectory": steps, "history": told, "environment": "e"}


def test_swe_agents_answers_that_were_asked_for_again_are_calls(tmp_path: Path) -> None:
    value = _answered_again()
    (row,), _ = imported(written(tmp_path / "x.traj", value), tmp_path / "t.jsonl", text=True)
    assert [step.tools[0].duration_s for step in row.steps] == [1.0, 0.0, 0.5, 2.0]
    answers = [row.messages[step.answer or 0].text for step in row.steps]
    assert answers == ["one", "bad", "worse", "two"]
    assert row.steps[1].prompt == row.steps[2].prompt == row.steps[3].prompt
    # Cut off in the history: what is not in it stands behind.
    value["history"] = value["history"][:3]
    (row,), _ = imported(written(tmp_path / "x.traj", value), tmp_path / "t.jsonl", text=True)
    assert len(row.steps) == 4


def test_swe_agents_fork_counts_each_call(tmp_path: Path) -> None:
    """The Complexity Trap's, which is of 1.0: tokens, and the time in milliseconds."""
    value = _answered_again()
    for number, step in enumerate(value["trajectory"]):
        tokens: dict[str, Any] = {"raw_input": 100 + number, "cached_input": 900, "output": 20}
        tokens["internal_reasoning"] = None if number else 15
        step["turn_statistics"] = {"cost": 0.1, "tokens": tokens, "inference_time": 2500.0}
    (row,), _ = imported(written(tmp_path / "x.traj", value), tmp_path / "t.jsonl")
    assert [step.input_tokens for step in row.steps] == [1000, 1001, 1002, 1003]
    assert {step.prefix_tokens for step in row.steps} == {900}
    assert [step.reasoning_tokens for step in row.steps] == [15, 0, 0, 0]
    assert {(step.output_tokens, step.llm_s) for step in row.steps} == {(20, 2.5)}
    assert row.token_source["input"] == "recorded"
    value["trajectory"][1]["turn_statistics"] = None
    (row,), _ = imported(written(tmp_path / "x.traj", value), tmp_path / "t.jsonl")
    assert row.token_source["input"] == "recorded, partly"


# -- data sets of messages --------------------------------------------------------------------


def test_messages_are_found_where_data_sets_put_them(tmp_path: Path) -> None:
    system = {"role": "system", "system_prompt": "be good", "text": None, "mask": False}
    told = [system, {"role": "user", "text": "do it"}, {"role": "ai", "text": "```\nls\n```"}]
    rows = [
        {"instance_id": "i", "trajectory_id": "one", "trajectory": told},
        {"traj_id": "two", "messages": json.dumps(_chat("")["messages"])},
    ]
    found, report = imported(lines(tmp_path / "rows.jsonl", *rows), tmp_path / "t.jsonl", text=True)
    assert (_names(found), report.errors_count) == (["one", "two"], 0)
    assert [message.text for message in found[0].messages[:2]] == ["be good", "do it"]
    assert found[0].steps[0].tools[0].command == "ls"


@pytest.mark.parametrize("tells", ["chat", "responses", "no created"])
def test_mini_swe_agents_answers_of_a_wrong_form_are_calls(tells: str, tmp_path: Path) -> None:
    """They are beside the complaint, which has no time of its own; nobody is sent them."""

    def response(created: float, prompt: int, text: str) -> dict[str, Any]:
        told: dict[str, Any] = {"usage": {"prompt_tokens": prompt, "completion_tokens": 9}}
        told |= {"created": created, "choices": [{"message": {"content": text}}]}
        if tells == "responses":
            usage = {"input_tokens": prompt, "output_tokens": 9}
            output = [{"type": "message", "content": [{"type": "output_text", "text": text}]}]
            told = {"object": "response", "created_at": created, "usage": usage, "output": output}
        if tells == "no created":
            del told["created"]
        return told

    def answer(text: str, at: float, told: dict[str, Any]) -> dict[str, Any]:
        function = {"name": "bash", "arguments": '{"command": "ls"}'}
        calls = [{"id": "c1", "type": "function", "function": function}]
        extra = {"timestamp": at, "response": told}
        return {"role": "assistant", "content": text, "tool_calls": calls, "extra": extra}

    def complaint(told: dict[str, Any]) -> dict[str, Any]:
        extra = {"interrupt_type": "FormatError", "cost": 0.1, "response": told}
        return {"role": "user", "content": "wrong form", "extra": extra}

    messages = [
        {"role": "user", "content": "t", "extra": {"timestamp": 1000.0}},
        answer("look", 1002.5, response(1002, 100, "look")),
        {"role": "tool", "tool_call_id": "c1", "content": "ok", "extra": {"timestamp": 1003.25}},
        complaint(response(1004, 140, "oops")),
        complaint(response(1006, 145, "again")),
        answer("done", 1010.0, response(1008, 150, "done")),
        {"role": "tool", "tool_call_id": "c1", "content": "ok", "extra": {"timestamp": 1011.5}},
        {"role": "exit", "content": "", "extra": {"exit_status": "Submitted"}},
    ]
    value = {"messages": messages, "info": {"mini_version": "2.4.6"}}
    (row,), _ = imported(written(tmp_path / "x.traj.json", value), tmp_path / "t.jsonl", text=True)
    assert [step.input_tokens for step in row.steps] == [100, 140, 145, 150]
    assert row.token_source["input"] == "recorded"
    answers = [row.messages[step.answer or 0].text for step in row.steps]
    assert answers == ["look", "oops", "again", "done"]
    assert [step.new_input_tokens for step in row.steps[2:]] == [None, None]
    assert row.steps[0].gap_s == 0.75
    assert [step.llm_s for step in row.steps[:3]] == [2.5, None, None]
    if tells == "no created":
        # Nothing tells the three apart: together they took as long as that.
        assert (row.steps[1].t_s, row.steps[3].t_s) == (3.25, 10.0)
        assert row.steps[3].llm_s is None
        return
    assert [step.cycle_s for step in row.steps[1:3]] == [2.75, 2.0]
    assert row.steps[3].llm_s == 2.0
    assert [tool.duration_s for tool in row.steps[3].tools] == [1.5]


def test_mini_swe_agents_first_releases_kept_the_text_of_what_was_wrong(tmp_path: Path) -> None:
    extra = {"interrupt_type": "FormatError", "n_actions": 0, "model_response": "oops " * 40}
    messages = [
        {"role": "user", "content": "t"},
        {"role": "user", "content": "wrong form", "extra": extra},
        {"role": "assistant", "content": "done"},
    ]
    value = {"messages": messages, "info": {"mini_version": "2.0.0"}}
    (row,), _ = imported(written(tmp_path / "x.traj.json", value), tmp_path / "t.jsonl")
    assert len(row.steps) == 2
    assert row.steps[0].output_tokens > row.steps[1].output_tokens


@pytest.mark.parametrize("form", ["version 1", "version 2", "timeout", "anthropic"])
def test_results_say_whether_their_tools_failed(form: str, tmp_path: Path) -> None:
    def turn(code: int) -> list[dict[str, Any]]:
        said: dict[str, Any] = {"role": "assistant", "content": "```bash\nls\n```"}
        seen: dict[str, Any] = {"role": "user", "content": f"<returncode>{code}</returncode>\nout"}
        match form:
            case "version 2":
                seen |= {"content": "out", "extra": {"returncode": code}}
            case "timeout":
                told = {"returncode": None, "exception_info": "timed out" if code else ""}
                seen |= {"content": "out", "extra": told}
            case "anthropic":
                asked = {"type": "tool_use", "id": f"c{code}", "name": "bash", "input": {}}
                result = {"type": "tool_result", "tool_use_id": f"c{code}", "content": "out"}
                said["content"] = [asked]
                seen["content"] = [result | {"is_error": bool(code)}]
            case _:
                pass
        return [said, seen]

    messages = [{"role": "user", "content": "t"}, *turn(0), *turn(2)]
    value = {"messages": [*messages, {"role": "assistant", "content": "done"}]}
    (row,), _ = imported(written(tmp_path / "x.json", value), tmp_path / "t.jsonl")
    assert [tool.is_error for step in row.steps for tool in step.tools] == [False, True]


def test_results_in_parts_are_no_answers(tmp_path: Path) -> None:
    """The Responses API's items in a list of messages: a result may be a list, too."""
    asked = {"type": "function_call", "call_id": "c", "name": "bash", "arguments": "{}"}
    usage = {"input_tokens": 100, "output_tokens": 40}
    response = {"object": "response", "usage": usage, "output": [asked]}
    result: dict[str, Any] = {"type": "function_call_output", "call_id": "c"}
    result["output"] = [{"type": "input_text", "text": "a b " * 100}]
    messages = [{"role": "user", "content": "t"}, response, result, response]
    (row,), _ = imported(written(tmp_path / "x.json", {"messages": messages}), tmp_path / "t.jsonl")
    assert len(row.steps) == 2
    assert (row.steps[0].tools[0].result_tokens or 0) > 90


# -- OpenHands --------------------------------------------------------------------------------


def _sdk_events() -> list[dict[str, Any]]:
    """A run of the new SDK: two parallel calls, a condensation, an answer."""

    def event(number: int, kind: str, source: str, **more: Any) -> dict[str, Any]:
        stamp = f"2025-10-30T03:50:{number:02d}.000000"
        return {"kind": kind, "id": f"e{number}", "timestamp": stamp, "source": source, **more}

    def act(number: int, call: str, response: str) -> dict[str, Any]:
        asked = {"id": call, "name": "terminal", "arguments": '{"command": "make test"}'}
        action = {"kind": "TerminalAction", "command": "make test", "is_input": False}
        more = {"tool_name": "terminal", "tool_call_id": call, "llm_response_id": response}
        return event(number, "ActionEvent", "agent", action=action, tool_call=asked, **more)

    def seen(number: int, call: str, of: str, code: int) -> dict[str, Any]:
        text = [{"type": "text", "text": "output " * 40}]
        found = {"kind": "TerminalObservation", "content": text, "metadata": {"exit_code": code}}
        more = {"tool_name": "terminal", "tool_call_id": call, "action_id": of}
        return event(number, "ObservationEvent", "environment", observation=found, **more)

    prompt = {"type": "text", "text": "be good"}
    task = {"role": "user", "content": [{"type": "text", "text": "fix it"}]}
    last = {"role": "assistant", "content": [{"type": "text", "text": "fixed"}]}
    return [
        event(0, "SystemPromptEvent", "agent", system_prompt=prompt, tools=[]),
        event(1, "MessageEvent", "user", llm_message=task),
        act(4, "c1", "r1"),
        act(5, "c2", "r1"),
        seen(6, "c1", "e4", 0),
        seen(7, "c2", "e5", 2),
        act(9, "c3", "r2"),
        seen(12, "c3", "e9", 0),
        event(
            13,
            "Condensation",
            "environment",
            forgotten_event_ids=["e4", "e5", "e6", "e7"],
            summary="what was",
        ),
        event(15, "MessageEvent", "agent", llm_message=last, llm_response_id="r3"),
    ]


def _sdk_metrics() -> dict[str, Any]:
    sizes = (("r1", 300, 3.0), ("r2", 500, 1.5), ("r3", 400, 2.0))
    usages = [
        {"response_id": name, "prompt_tokens": size, "completion_tokens": 20, "model": "m"}
        for name, size, _ in sizes
    ]
    latencies = [{"response_id": name, "latency": took, "model": "m"} for name, _, took in sizes]
    return {"token_usages": usages, "response_latencies": latencies}


def _check_sdk(row: Recording) -> None:
    first, second, third = row.steps
    assert [step.input_tokens for step in row.steps] == [300, 500, 400]
    assert [tool.is_error for tool in first.tools] == [False, True]
    assert [tool.command for tool in first.tools] == ["make", "make"]
    assert (first.llm_s, first.gap_s, second.llm_s) == (3.0, 3.5, 1.5)
    assert (third.is_compaction, third.t_s) == (True, 12.0)
    # Of the prompt the forgotten events are gone, with a summary in their place.
    texts = [
        row.messages[number].text
        for low, high in third.prompt or ()
        for number in range(low, high + 1)
    ]
    assert texts[:3] == ["be good", "fix it", "what was"]
    assert [row.messages[1].role, len(texts)] == ["user", 5]


@pytest.mark.parametrize("layout", ["evaluation", "download", "journal", "folder"])
def test_openhands_new_events_wherever_they_are(layout: str, tmp_path: Path) -> None:
    events, metrics = _sdk_events(), _sdk_metrics()
    folder = tmp_path / "runs"
    kept = folder / "conv-1" / "events"
    kept.mkdir(parents=True)
    stats = {"usage_to_metrics": {"agent": metrics}}
    update: dict[str, Any] = {
        "kind": "ConversationStateUpdateEvent",
        "id": "s",
        "source": "environment",
    }
    update |= {"key": "stats", "value": stats}
    match layout:
        case "evaluation":
            lines(
                folder / "output.jsonl", {"instance_id": "i", "history": events, "metrics": metrics}
            )
        case "download":
            written(folder / "i.json", {"trajectory": events, "metrics": metrics})
        case "journal":
            lines(folder / "i.jsonl", *events, update)
        case _:
            for number, event in enumerate(events):
                written(kept / f"event-{number:05d}-{event['id']}.json", event)
            written(kept.parent / "base_state.json", {"id": "conv-1", "stats": stats})
            (kept.parent / "event_cache").mkdir()
            written(kept.parent / "event_cache" / "0-25.json", events)
    rows, report = imported(folder, tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    (row,) = rows
    assert row.session_id == ("conv-1" if layout == "folder" else "i")
    _check_sdk(row)


@pytest.mark.parametrize("key", ["events", "items", "trajectory", "history"])
def test_other_programs_events_are_nobodys(key: str, tmp_path: Path) -> None:
    """Beside sessions there are logs of all kinds in a folder."""
    row = {"id": "1", "kind": "page_view", "source": "web", "action": "click"}
    written(tmp_path / "analytics.json", {key: [row, row]})
    lines(tmp_path / "more.jsonl", row, row)
    _, report = imported(tmp_path, tmp_path / "t.jsonl")
    assert (report.skipped, report.errors_count, dict(report.files)) == (2, 0, {})


def test_openhands_task_that_no_event_tells(tmp_path: Path) -> None:
    """Evaluations of the new SDK may leave the first events out; the task is beside them."""
    record = {"instance_id": "i", "instruction": "fix this", "history": _sdk_events()[2:8]}
    (row,), _ = imported(written(tmp_path / "o.json", record), tmp_path / "t.jsonl", text=True)
    assert [message.text for message in row.messages[:1]] == ["fix this"]
    assert len(row.steps) == 2


# -- requests with prefix blocks ----------------------------------------------------------------


def test_bailian_rows_name_the_request_before_them(tmp_path: Path) -> None:
    """Seconds, blocks of 16 tokens, and a second answer to a request is a branch."""

    def row(own: int, parent: int, at: float, prompt: int) -> dict[str, Any]:
        facts = {"chat_id": own, "parent_chat_id": parent, "timestamp": at, "type": "text"}
        blocks = list(range(-(-prompt // 16)))
        return facts | {"input_length": prompt, "output_length": 20, "hash_ids": blocks}

    rows = [row(1, -1, 0.0, 100), row(2, -1, 1.5, 90), row(3, 1, 61.25, 200), row(4, 1, 70.0, 210)]
    found, report = imported(lines(tmp_path / "q.jsonl", *rows), tmp_path / "t.jsonl")
    assert report.errors_count == 0
    told = {row.session_id: [step.input_tokens for step in row.steps] for row in found}
    assert told == {"q/1": [100, 200], "q/2": [90], "q/4": [210]}
    assert {row.block_size for row in found} == {16}
    assert [[step.t_s for step in row.steps] for row in found if len(row.steps) > 1] == [[0, 61.25]]


def test_blocks_have_the_size_that_fits(tmp_path: Path) -> None:
    rows = [
        {
            "timestamp": i,
            "input_length": n,
            "output_length": 1,
            "hash_ids": list(range(-(-n // 128))),
        }
        for i, n in enumerate((1000, 700, 2049))
    ]
    found, _ = imported(lines(tmp_path / "m.jsonl", *rows), tmp_path / "t.jsonl")
    assert {row.block_size for row in found} == {128}


def test_mooncake_sessions_that_tell_only_what_is_new(tmp_path: Path) -> None:
    rows = [
        {"session_id": "s", "timestamp": 0, "input_length": 500, "output_length": 40},
        {"session_id": "s", "delay": 100, "input_length": 150, "output_length": 10},
        {"session_id": "s", "delay": 100, "input_length": 700, "output_length": 10},
    ]
    (row,), _ = imported(lines(tmp_path / "m.jsonl", *rows), tmp_path / "t.jsonl")
    assert [step.input_tokens for step in row.steps] == [500, 690, 1400]
    assert [step.new_input_tokens for step in row.steps] == [None, 150, 700]


def test_mooncake_rows_that_name_their_session_may_stand_in_any_order(tmp_path: Path) -> None:
    rows = [
        {"session_id": own, "timestamp": at, "input_length": 100 + at, "output_length": 5}
        for own, at in (("s", 40), ("t", 10), ("s", 0), ("t", 30), ("s", 20))
    ]
    found, _ = imported(lines(tmp_path / "m.jsonl", *rows), tmp_path / "t.jsonl")
    found.sort(key=lambda row: row.session_id)
    assert [[step.input_tokens for step in row.steps] for row in found] == [
        [100, 120, 140],
        [110, 130],
    ]
    assert [[step.cycle_s for step in row.steps] for row in found] == [
        [0.02, 0.02, None],
        [0.02, None],
    ]
    assert [row.start_s for row in found] == [0.0, 0.01]


def test_mooncake_sessions_whose_blocks_do_not_go_on_were_rewritten(tmp_path: Path) -> None:
    def row(at: int, prompt: int, blocks: list[int]) -> dict[str, Any]:
        facts = {"session_id": "s", "timestamp": at, "input_length": prompt, "output_length": 10}
        return facts | {"hash_ids": blocks}

    rows = [
        row(0, 1100, [0, 1, 2]),
        row(1000, 1500, [0, 1, 3]),
        row(2000, 2100, [0, 1, 4, 5, 6]),
        row(3000, 2600, [0, 7, 8, 9, 10, 11]),
    ]
    (found,), _ = imported(lines(tmp_path / "m.jsonl", *rows), tmp_path / "t.jsonl")
    assert [step.new_input_tokens for step in found.steps] == [None, 390, 590, None]
    assert [step.prefix_tokens for step in found.steps] == [None, 1100, 1500, 512]


# -- lists of chat messages -------------------------------------------------------------------


def test_anthropics_requests_keep_their_system_prompt_and_what_stands_beside_results(
    tmp_path: Path,
) -> None:
    def asked(own: str) -> dict[str, Any]:
        return {"type": "tool_use", "id": own, "name": "bash", "input": {"command": "ls"}}

    def result(own: str) -> dict[str, Any]:
        return {"type": "tool_result", "tool_use_id": own, "content": f"result {own}"}

    picture = {"type": "image", "source": {"type": "base64", "data": "aGk="}}
    request: dict[str, Any] = {
        "system": [{"type": "text", "text": "be good", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "task"},
            {"role": "assistant", "content": [asked("a"), asked("b")]},
            {
                "role": "user",
                "content": [result("a"), result("b"), picture, {"type": "text", "text": "hurry"}],
            },
            {"role": "assistant", "content": "done"},
        ],
    }
    path = written(tmp_path / "r.json", request)
    (row,), report = imported(path, tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    assert [(message.role, message.text) for message in row.messages] == [
        ("system", "be good"),
        ("user", "task"),
        ("assistant", ""),
        ("tool", "result a"),
        ("tool", "result b"),
        ("user", "hurry"),
        ("assistant", "done"),
    ]
    assert [step.prompt for step in row.steps] == [((0, 1),), ((0, 5),)]
    assert [tool.result_tokens for tool in row.steps[0].tools] == [2, 2]
    # A prompt that says it among its messages has it once.
    messages = [{"role": "system", "content": "be better"}, *request["messages"]]
    path = written(tmp_path / "s.json", request | {"messages": messages})
    (other,), _ = imported(path, tmp_path / "t2.jsonl", text=True)
    assert [m.text for m in other.messages if m.role == "system"] == ["be better"]
