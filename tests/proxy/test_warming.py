"""What a warm-up sends in each dialect, and how much is kept for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from shorthand import at, prefetch

from agentsched.kernel import JournalEntry
from agentsched.model import (
    MINUTE,
    CallId,
    ConversationId,
    EngineId,
    Event,
    Instant,
    ProgramClosed,
    ProgramId,
    Reconfigured,
    TimerFired,
    ToolName,
    ToolStarted,
)
from agentsched.ports import EngineRequest
from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.request import Dialect
from agentsched.proxy.token_ids import pack
from agentsched.proxy.warming import WarmBodies, warm_body
from agentsched.proxy.wire import WireLimits, parse_request
from agentsched_adapters.fake import FakeEngine

LIMITS = WireLimits(body_bytes_max=1 << 20, messages_max=100)
ANSWER = Answer(
    text="look",
    calls=(AnsweredCall(call_id="c1", name="bash", arguments='{"command": "ls"}'),),
    is_complete=True,
)
ASKED = [{"role": "user", "content": "hi"}]


def warmed(dialect: Dialect, fields: dict[str, Any], answer: Answer | None = ANSWER) -> Any:
    request = parse_request(dialect, json.dumps(fields).encode(), LIMITS)
    return json.loads(warm_body(request, answer, {"priority": 9}))


def test_chat() -> None:
    body = warmed(
        Dialect.CHAT,
        {
            "model": "m",
            "messages": ASKED,
            "tools": [{"type": "function"}],
            "tool_choice": "required",
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 500,
            "temperature": 0.5,
            "n": 3,
        },
    )
    call = {"name": "bash", "arguments": '{"command": "ls"}'}
    assert body == {
        "model": "m",
        "messages": [
            *ASKED,
            {
                "role": "assistant",
                "content": "look",
                "tool_calls": [{"id": "c1", "type": "function", "function": call}],
            },
        ],
        "tools": [{"type": "function"}],
        "stream": False,
        "temperature": 0.5,
        "n": 1,
        "max_tokens": 1,
        "priority": 9,
    }


def test_a_choice_of_no_tool_stays_for_it_can_change_the_prompt() -> None:
    fields = {"model": "m", "messages": ASKED, "tool_choice": "none"}
    assert warmed(Dialect.CHAT, fields)["tool_choice"] == "none"


def test_messages() -> None:
    body = warmed(Dialect.MESSAGES, {"model": "m", "max_tokens": 9, "messages": ASKED})
    assert body["messages"][-1]["content"] == [
        {"type": "text", "text": "look"},
        {"type": "tool_use", "id": "c1", "name": "bash", "input": {"command": "ls"}},
    ]
    assert body["max_tokens"] == 1


@pytest.mark.parametrize("asked", ["hi", ASKED])
def test_responses(asked: Any) -> None:
    body = warmed(Dialect.RESPONSES, {"model": "m", "input": asked, "store": True})
    assert body["input"][0] == ASKED[0]
    assert [item.get("type") for item in body["input"]] == [None, "message", "function_call"]
    assert (body["max_output_tokens"], body["store"]) == (1, False)


def test_completions() -> None:
    assert warmed(Dialect.COMPLETIONS, {"model": "m", "prompt": "a "})["prompt"] == "a look"
    assert warmed(Dialect.COMPLETIONS, {"model": "m", "prompt": [1, 2]})["prompt"] == [1, 2]


def test_completions_of_token_ids() -> None:
    answer = Answer(text="", token_ids=pack([7, 70_000]) or b"", is_complete=True)
    fields = {"model": "m", "prompt": [1, 2], "return_token_ids": True}
    body = warmed(Dialect.COMPLETIONS, fields, answer)
    assert body["prompt"] == [1, 2, 7, 70_000]
    assert "return_token_ids" not in body
    for prompt in (["a"], [[1, 2]], [1, "b"]):
        assert warmed(Dialect.COMPLETIONS, fields | {"prompt": prompt}, answer)["prompt"] == prompt


def test_without_the_answer_the_prompt_is_as_it_was() -> None:
    fields = {"model": "m", "messages": ASKED}
    for answer in (None, Answer(), Answer(text="cut", is_truncated=True)):
        assert warmed(Dialect.CHAT, fields, answer)["messages"] == ASKED


# What is kept.


def keep(bodies: WarmBodies, name: str, *, size: int = 100, is_last_word: bool = False) -> None:
    text = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * size}]})
    request = EngineRequest(method="POST", target="/t", headers=(), body=text.encode())
    bodies.keep(
        ConversationId(name),
        request,
        ANSWER,
        dialect=Dialect.CHAT,
        program="p",
        tenant="t",
        is_last_word=is_last_word,
    )


def ask(bodies: WarmBodies, name: str) -> list[EngineRequest]:
    hint = prefetch(conversation=name)
    return list(bodies.warm_requests(hint, FakeEngine(EngineId("e"))))


def test_the_oldest_is_dropped_for_room_and_counted() -> None:
    bodies = WarmBodies(limits=LIMITS, is_on=lambda: True, bytes_max=2_600)
    for name in "abc":
        keep(bodies, name, size=500)
    assert [bool(ask(bodies, name)) for name in "abc"] == [False, True, True]
    assert bodies.dropped == 1
    assert bodies.bytes <= 2_600
    keep(bodies, "d", size=5_000)
    assert (len(bodies), bodies.dropped) == (2, 2)
    for name in "abcd":
        bodies.forget(ConversationId(name))
    assert (len(bodies), bodies.bytes) == (0, 0)


def test_nothing_is_kept_while_warming_is_off() -> None:
    is_on = True
    bodies = WarmBodies(limits=LIMITS, is_on=lambda: is_on)
    keep(bodies, "a")
    is_on = False
    keep(bodies, "a")  # what was kept of its earlier step goes as well
    assert (len(bodies), bodies.bytes) == (0, 0)


def test_first_with_the_answer_then_without() -> None:
    bodies = WarmBodies(limits=LIMITS, is_on=lambda: True)
    keep(bodies, "a")
    first, second = ask(bodies, "a")
    assert len(json.loads(first.body)["messages"]) == 2
    assert len(json.loads(second.body)["messages"]) == 1
    assert json.loads(first.body)["priority"] > 1_000


def turn(event: Event, *, second: float = 0) -> JournalEntry:
    return JournalEntry(seq=0, now=at(second), event=event, commands=())


def test_whoever_said_its_last_word_goes_before_those_that_pause() -> None:
    bodies = WarmBodies(limits=LIMITS, is_on=lambda: True, bytes_max=2_600)
    keep(bodies, "a", size=500)
    keep(bodies, "b", size=500, is_last_word=True)
    keep(bodies, "c", size=500, is_last_word=True)
    assert [bool(ask(bodies, name)) for name in "abc"] == [True, False, True]
    # A tool that only its runner spoke of: it pauses after all.
    told = ToolStarted(
        program=ProgramId("p"),
        call_id=CallId("t"),
        tool=ToolName("make"),
        conversation=ConversationId("c"),
    )
    bodies.write(turn(told))
    keep(bodies, "d", size=500)
    assert [bool(ask(bodies, name)) for name in "acd"] == [False, True, True]


def test_what_was_kept_goes_at_once_when_warming_is_turned_off() -> None:
    is_on = True
    bodies = WarmBodies(limits=LIMITS, is_on=lambda: is_on)
    keep(bodies, "a")
    keep(bodies, "b", is_last_word=True)
    other = turn(Reconfigured(profile="fcfs", choices={}))
    bodies.write(other)
    assert len(bodies) == 2
    is_on = False
    bodies.write(other)
    assert (len(bodies), bodies.bytes) == (0, 0)


def test_what_is_kept_of_a_program_that_is_gone_goes_within_a_minute() -> None:
    alive = {"a", "b"}
    bodies = WarmBodies(limits=LIMITS, is_on=lambda: True, lives=alive.__contains__)
    bodies.write(turn(TimerFired(), second=100))
    keep(bodies, "a")
    keep(bodies, "b")
    alive.remove("a")
    bodies.write(turn(TimerFired(), second=159))
    assert len(bodies) == 2
    bodies.write(turn(TimerFired(), second=160))
    assert [bool(ask(bodies, name)) for name in "ab"] == [False, True]


async def test_a_proxy_keeps_no_keys_of_programs_that_are_over(start: Any, upstream: Any) -> None:
    async with start(upstream.url, policies={"prefetch": {"name": "value"}}) as proxy:
        bodies = proxy.gateway.warm_bodies
        headers = {"authorization": "Bearer secret"}
        for name in ("one", "two"):
            response = await proxy.chat(headers=headers | {"x-agentsched-program": name})
            assert response.status_code == 200
        assert len(bodies) == 2
        program = response.headers["x-agentsched-program"]
        proxy.gateway.host.feed(ProgramClosed(program=program, reason="done"))
        later = Instant(proxy.gateway.host.now() + MINUTE)
        proxy.gateway.host.feed(TimerFired(), now=later)
        assert len(bodies) == 1
        never = {"prefetch": {"name": "never"}}
        said = await proxy.client.post("/agentsched/v1/policies", json={"policies": never})
        assert said.status_code == 200, said.text
        assert (len(bodies), bodies.bytes) == (0, 0)


def asked_with(*headers: tuple[str, str]) -> EngineRequest:
    body = json.dumps({"model": "m", "messages": ASKED}).encode()
    return EngineRequest(method="POST", target="/t", headers=headers, body=body)


def test_clients_keys_that_engines_may_not_have_any_more_are_dropped_at_once() -> None:
    bodies = WarmBodies(limits=LIMITS, is_on=lambda: True)
    keys = {("Authorization", "Bearer sk"), ("x-api-key", "sk")}
    request = asked_with(("x-request-id", "r"), *keys)

    def kept_of(name: str) -> None:
        bodies.keep(
            ConversationId(name), request, ANSWER, dialect=Dialect.CHAT, program="p", tenant="t"
        )

    def sent(name: str) -> set[tuple[str, str]]:
        headers = set(ask(bodies, name)[0].headers)
        assert ("x-request-id", "r") in headers
        return headers & keys

    kept_of("a")
    kept_of("b")
    assert [sent(name) for name in "ab"] == [keys] * 2
    bodies.follow(LIMITS, has_credentials=False)
    kept_of("c")  # it was sent before that, and its answer came after
    assert [sent(name) for name in "abc"] == [set()] * 3
    assert "sk" not in repr(bodies._kept)
    bodies.follow(LIMITS, has_credentials=True)
    kept_of("d")
    assert [sent(name) for name in "abcd"] == [set(), set(), set(), keys]


async def test_a_reload_takes_clients_keys_from_what_is_kept(start: Any, upstream: Any) -> None:
    async with start(upstream.url, policies={"prefetch": {"name": "value"}}) as proxy:
        await proxy.chat(headers={"authorization": "Bearer sk-theirs"})
        gateway = proxy.gateway
        assert "sk-theirs" in repr(gateway.warm_bodies._kept)
        upstream_config = gateway.config.upstream
        quiet = upstream_config.model_copy(update={"forward_authorization": False})
        gateway.follow(gateway.config.model_copy(update={"upstream": quiet}))
        assert len(gateway.warm_bodies) == 1
        assert "sk-theirs" not in repr(gateway.warm_bodies._kept)
