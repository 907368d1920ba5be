"""Reports of tools: what they change, and what they must not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from proxy_upstream import Upstream, answer

from agentsched.model import ProgramClosed, StepArrived, ToolFinished, ToolStarted
from agentsched_graphs.export import from_json

TOOLS = "/agentsched/v1/tools"


def calling(*names: str) -> Any:
    """An engine that asks for these tools."""
    calls = [
        {
            "id": f"call-{n}",
            "type": "function",
            "function": {"name": name, "arguments": '{"command": "git status"}'},
        }
        for n, name in enumerate(names)
    ]

    async def script(exchange: Any) -> None:
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        await exchange.json(
            {"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}
        )

    return script


@pytest.fixture
async def program(proxy: Any, upstream: Upstream) -> str:
    upstream.script = calling("bash", "edit")
    response = await proxy.chat(headers={"x-agentsched-program": "p1"})
    assert response.status_code == 200
    return str(response.headers["x-agentsched-program"])


async def report(proxy: Any, *events: Any, status: int = 202, **headers: str) -> Any:
    response = await proxy.client.post(TOOLS, json={"events": list(events)}, headers=headers)
    assert response.status_code == status, response.text
    return response.json()


async def test_a_call_by_its_id(proxy: Any, program: str) -> None:
    said = {"event": "started", "program": program, "call_id": "call-0", "expected_s": 3}
    assert await report(proxy, said) == {"accepted": 1, "ignored": {}}
    [started] = proxy.turns.events(ToolStarted)
    assert (started.call_id, started.tool) == ("call-0", "bash git")
    assert started.expected == 3_000_000_000
    ended = {"event": "finished", "program": program, "call_id": "call-0", "took_s": 0.5}
    await report(proxy, ended | {"is_error": True})
    [finished] = proxy.turns.events(ToolFinished)
    assert (finished.took, finished.is_error) == (500_000_000, True)
    response = await proxy.client.get(f"/agentsched/v1/programs/{program}/graph?format=json")
    tools = [n for n in from_json(response.content).nodes if n.kind == "tool"]
    assert [n.state for n in tools] == ["failed", "asked"]


async def test_a_call_by_its_tool(proxy: Any, program: str) -> None:
    await report(proxy, {"event": "finished", "program": program, "tool": "edit"})
    [finished] = proxy.turns.events(ToolFinished)
    assert finished.call_id == "call-1"


async def test_a_name_does_not_steer_terminals(proxy: Any, program: str) -> None:
    evil = "\x1b]0;owned\x07\x1b[2Jmake\n"
    said = {"program": program, "tool": evil}
    await report(proxy, said | {"event": "started"}, said | {"event": "finished"})
    for kind in (ToolStarted, ToolFinished):
        [event] = proxy.turns.events(kind)
        assert (event.tool, event.call_id) == ("]0;owned[2Jmake", "report:]0;owned[2Jmake")
    nothing = {"event": "started", "program": program, "tool": "\x1b\n"}
    assert (await report(proxy, nothing))["ignored"] == {"no_tool": 1}


async def test_a_report_that_the_next_step_overtook(
    proxy: Any, upstream: Upstream, program: str
) -> None:
    """How long a tool takes is learnt by its name, so start and end must give it the same."""
    said = {"program": program, "tool": "bash", "call_id": "call-0"}
    await report(proxy, said | {"event": "started"})
    function = {"name": "bash", "arguments": '{"command": "git status"}'}
    messages = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call-0", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call-0", "content": "clean"},
    ]
    headers = {"x-agentsched-program": "p1"}
    upstream.script = calling()
    assert (await proxy.chat(headers=headers, messages=messages)).status_code == 200
    await report(proxy, said | {"event": "finished", "took_s": 2})
    [started] = proxy.turns.events(ToolStarted)
    [finished] = proxy.turns.events(ToolFinished)
    assert (started.tool, finished.tool) == ("bash git", "bash git")
    assert (started.call_id, finished.call_id) == ("call-0", "call-0")
    # Nobody but the one who knows the call's id means a call that was answered.
    await report(proxy, {"event": "finished", "program": program, "tool": "git"})
    assert proxy.turns.events(ToolFinished)[-1].tool == "git"


async def test_the_return_is_expected_when_the_last_tool_ends(proxy: Any, program: str) -> None:
    await report(
        proxy,
        {"event": "started", "program": program, "call_id": "call-0", "expected_s": 100},
        {"event": "started", "program": program, "call_id": "call-1", "expected_s": 300},
        {"event": "progress", "program": program, "call_id": "call-1", "expected_s": 200},
    )
    outlook = proxy.scheduler.world.graph(program)
    [conversation] = proxy.scheduler.programs[program].conversations
    told = [e.now for e in proxy.turns.entries if isinstance(e.event, ToolStarted)]
    last = told[-1]
    back = outlook.expected_return(conversation, now=last)
    assert back == last + 200_000_000_000


@pytest.mark.parametrize("name", ["fix/7 100%", "n" * 200], ids=lambda n: n[:10])
async def test_a_name_that_is_shown_otherwise(proxy: Any, upstream: Upstream, name: str) -> None:
    """An agent may say the name that it sends with its calls, and the one that it was shown."""
    upstream.script = calling("bash")
    response = await proxy.chat(headers={"x-agentsched-program": name, "authorization": "Bearer k"})
    shown = str(response.headers["x-agentsched-program"])
    assert name not in shown
    for program in (name, shown):
        said = {"event": "started", "program": program, "call_id": "call-0"}
        got = await report(proxy, said, authorization="Bearer k")
        assert got == {"accepted": 1, "ignored": {}}
        assert (await report(proxy, said, authorization="Bearer other"))["accepted"] == 0
    assert {e.program for e in proxy.turns.events(ToolStarted)} == {shown}


async def test_the_end_of_a_program(proxy: Any, program: str) -> None:
    await report(proxy, {"event": "closed", "program": program})
    [closed] = proxy.turns.events(ProgramClosed)
    assert closed.program == program
    assert program not in proxy.scheduler.programs


async def test_strangers_change_nothing(proxy: Any, program: str) -> None:
    said = {"event": "finished", "program": program, "call_id": "call-0"}
    other = await report(proxy, said, **{"x-agentsched-tenant": "other"})
    assert other == {"accepted": 0, "ignored": {"unknown_program": 1}}
    assert await report(proxy, said | {"program": "none"}) == other
    lost = await report(proxy, {"event": "finished", "program": program, "call_id": "unheard-of"})
    assert lost == {"accepted": 0, "ignored": {"no_tool": 1}}
    assert not proxy.turns.events(ToolFinished)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b'{"events": 1}', b'{"event": "exploded", "program": "p"}', b"\xff\xfe"],
)
async def test_what_is_no_report(proxy: Any, body: bytes) -> None:
    response = await proxy.client.post(TOOLS, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


async def test_a_list_and_one_alone_are_reports_too(proxy: Any, program: str) -> None:
    said = {"event": "progress", "program": program, "tool": "bash", "expected_s": -1}
    for body in ([said], said):
        response = await proxy.client.post(TOOLS, json=body)
        assert response.json()["accepted"] == 1
    assert [e.expected for e in proxy.turns.events(ToolStarted)] == [None, None]
    many = await proxy.client.post(TOOLS, json=[said] * 1_001)
    assert many.status_code == 413


@pytest.mark.parametrize(
    "said",
    [
        {"event": "started", "program": "events", "tool": "bash"},
        {
            "sent_by": "a tool runner whose name is longer than all that stands before a list",
            "events": [{"event": "started", "program": "events", "tool": "bash"}],
        },
    ],
)
async def test_a_list_is_known_by_its_field_and_by_nothing_else(proxy: Any, said: Any) -> None:
    answer = await proxy.client.post(TOOLS, json=said)
    assert (answer.status_code, answer.json()) == (
        202,
        {"accepted": 0, "ignored": {"unknown_program": 1}},
    )


async def test_calls_in_prose_are_each_a_call_of_their_own(proxy: Any, upstream: Upstream) -> None:
    """No answer shows a call, no report has an id: each step's command is another one."""
    headers, messages = {"x-agentsched-program": "p1"}, [{"role": "user", "content": "hi"}]
    for number in range(3):
        response = await proxy.chat(headers=headers, messages=messages)
        program = str(response.headers["x-agentsched-program"])
        said = {"program": program, "tool": "bash"}
        await report(proxy, said | {"event": "started"})
        [thread] = proxy.scheduler.world.graph(program).graph.threads.values()
        assert thread.paused_for == "bash", number
        await report(proxy, said | {"event": "finished"})
        text = response.json()["choices"][0]["message"]["content"]
        messages += [
            {"role": "assistant", "content": text},
            {"role": "user", "content": f"out {number}"},
        ]
    shown = await proxy.client.get(f"/agentsched/v1/programs/{program}/graph?format=json")
    tools = [n for n in from_json(shown.content).nodes if n.kind == "tool"]
    assert [n.is_measured for n in tools] == [True] * 3
    told = [[e.call_id for e in proxy.turns.events(kind)] for kind in (ToolStarted, ToolFinished)]
    assert told[0] == told[1]
    assert len(set(told[0])) == 3


@pytest.mark.parametrize("calls", [True, False], ids=["calls", "prose"])
async def test_a_report_goes_to_the_conversation_that_it_names(
    proxy: Any, upstream: Upstream, *, calls: bool
) -> None:
    if calls:
        upstream.script = calling("bash")
    talks = []
    for name in ("one", "two"):
        headers = {"x-agentsched-program": "p1", "x-agentsched-conversation": name}
        response = await proxy.chat(name, headers=headers)
        talks.append(str(response.headers["x-agentsched-conversation"]))
    program = str(response.headers["x-agentsched-program"])
    assert len(proxy.scheduler.programs[program].conversations) == 2
    said = {"program": program, "tool": "bash", "event": "started"}
    for talk in reversed(talks):
        await report(proxy, said | {"conversation": talk})
    await report(proxy, said | {"conversation": "unheard-of"})
    told = proxy.turns.events(ToolStarted)
    # One that nobody knows is as good as none: the first open call of that tool.
    assert [e.conversation for e in told] == [talks[1], talks[0], talks[0]]
    open_calls = [proxy.scheduler.programs[program].conversations[t].tools for t in talks]
    assert [len(tools) for tools in open_calls] == [1, 1]


async def test_a_report_that_its_own_step_overtook_wakes_nobody_else(
    proxy: Any, upstream: Upstream
) -> None:
    """A quick tool's, without a call id: the next request was here first."""
    headers = {"x-agentsched-program": "p1"}
    done = await proxy.chat(headers=headers | {"x-agentsched-conversation": "done"})
    program, talk = (done.headers[f"x-agentsched-{n}"] for n in ("program", "conversation"))
    may_answer = asyncio.Event()

    async def hold(exchange: Any) -> None:
        await may_answer.wait()
        await answer(exchange)

    upstream.script = hold
    headers["x-agentsched-conversation"] = "main"
    async with asyncio.TaskGroup() as tasks:
        main = tasks.create_task(proxy.chat(headers=headers))
        await proxy.turns.until(lambda: len(proxy.turns.events(StepArrived)) == 2)
        await report(proxy, {"event": "started", "program": program, "tool": "bash"})
        record = proxy.scheduler.programs[program].conversations[talk]
        assert record.is_over
        assert not record.tools
        thread = proxy.scheduler.world.graph(program).graph.threads[talk]
        assert thread.paused_for == "(end)"
        may_answer.set()
    assert main.result().status_code == 200
    # Now it pauses itself, and last.
    await report(proxy, {"event": "started", "program": program, "tool": "make"})
    assert proxy.turns.events(ToolStarted)[-1].conversation != talk
    assert not record.tools


async def test_a_session_is_over_as_clients_of_vllm_router_say_it(
    proxy: Any, upstream: Upstream
) -> None:
    async def finish(query: str, **headers: str) -> tuple[int, Any]:
        response = await proxy.client.post(f"/finish_session{query}", headers=headers)
        return response.status_code, response.json()

    response = await proxy.chat(session_params={"session_id": "s1"})
    shown = response.headers["x-agentsched-program"]
    team = {"x-agentsched-tenant": "other"}
    assert await finish("?session_id=s1", **team) == (200, {"finished": False})
    assert shown in proxy.scheduler.programs
    assert await finish("?session_id=s1") == (200, {"finished": True})
    assert shown not in proxy.scheduler.programs
    # Told twice, or in signs that no id has, it is no error.
    for session in ("s1", "%ff", "x" * 2_000, "a%2Fb%00"):
        assert await finish(f"?session_id={session}") == (200, {"finished": False})
    for query in ("", "?session_id=", "?session=s1"):
        status, body = await finish(query)
        assert (status, body["error"]["param"]) == (400, "session_id")
    assert not upstream.exchanges[1:]


async def test_ends_of_sessions_are_reports_like_others(start: Any, upstream: Upstream) -> None:
    async with start(upstream.url, auth={"reports_per_s": 1}) as proxy:
        for _ in range(100):
            response = await proxy.client.post("/finish_session?session_id=s")
            if response.status_code != 200:
                break
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1


async def test_a_sub_agent_that_said_that_it_is_over_waits_for_no_tool(
    proxy: Any, upstream: Upstream
) -> None:
    upstream.script = calling("bash")
    main = await proxy.chat(headers={"x-dynamo-session-id": "main"})
    child = await proxy.chat(
        headers={
            "x-dynamo-session-id": "kid",
            "x-dynamo-parent-session-id": "main",
            "x-dynamo-session-final": "true",
        }
    )
    [program] = proxy.scheduler.programs.values()
    talks = [
        program.conversations[answer.headers["x-agentsched-conversation"]]
        for answer in (main, child)
    ]
    assert [talk.is_over for talk in talks] == [False, True]
    assert [list(talk.tools) for talk in talks] == [["call-0"], []]


async def test_reports_that_are_too_many_are_counted(start: Any, upstream: Upstream) -> None:
    said = [{"event": "closed", "program": "x"}] * 10
    async with start(upstream.url, auth={"reports_per_s": 1}) as proxy:
        answers = [await proxy.client.post(TOOLS, json=said) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 429]
        text = (await proxy.client.get("/metrics")).text
    for outcome in ("unknown_program", "over_quota"):
        line = f'agentsched_tool_reports_total{{outcome="{outcome}"}} 10.0'
        assert line in text.splitlines()
