"""Tool-call ids that an engine repeats, made unique and back again."""

from __future__ import annotations

import json
import re
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxy_upstream import (
    CHAT,
    DONE,
    MESSAGE,
    RESPONSE,
    Exchange,
    Upstream,
    chunk,
    data,
    event,
)

from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.call_ids import CallIdMarker, cut
from agentsched.proxy.request import Dialect

TURN = "0123456789abcdef"
MARK = "-s0123456789ab"
#: What ids had before; conversations live that began with it.
OLD_MARK = "~s0123456789ab"
ON = {"unique_call_ids": True}

#: As engines number them; and what looks like a suffix but is not ours to cut.
IDS = st.one_of(
    st.sampled_from(["call_1", "functions.x:0", "call_1" + MARK, "-", "-s", 'q"uote', "ü\\"]),
    st.text(min_size=1, max_size=20),
)
#: What stands elsewhere must stay, whatever it looks like.
OTHER = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.just("x" + MARK)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["id", "call_id", "tool_calls", "messages", "input", "x"]), inner
        ),
    ),
    max_leaves=8,
)
DIALECTS = st.sampled_from([Dialect.CHAT, Dialect.MESSAGES, Dialect.RESPONSES])


def answer_of(dialect: Dialect, ids: list[str], other: Any) -> dict[str, Any]:
    match dialect:
        case Dialect.CHAT:
            calls = [{"other": other, "id": i, "function": {"arguments": "{}"}} for i in ids]
            return {"id": "c", "x": other, "choices": [{"message": {"tool_calls": calls}}]}
        case Dialect.MESSAGES:
            blocks = [{"type": "tool_use", "id": i, "input": other} for i in ids]
            return {"id": "m", "x": other, "content": [{"type": "text", "text": "t"}, *blocks]}
        case _:
            items = [{"id": "fc", "call_id": i, "arguments": "{}", "x": other} for i in ids]
            return {"id": "r", "x": other, "output": items}


def request_of(dialect: Dialect, ids: list[str], other: Any) -> dict[str, Any]:
    match dialect:
        case Dialect.CHAT:
            calls = [{"id": i, "function": {"arguments": "{}"}, "x": other} for i in ids]
            results = [{"role": "tool", "tool_call_id": i, "content": other} for i in ids]
            return {"x": other, "messages": [{"tool_calls": calls, "content": other}, *results]}
        case Dialect.MESSAGES:
            calls = [{"type": "tool_use", "id": i, "input": other} for i in ids]
            results = [{"type": "tool_result", "tool_use_id": i, "content": other} for i in ids]
            return {"x": other, "messages": [{"content": calls}, {"content": results}]}
        case _:
            items = [{"call_id": i, "arguments": "{}", "x": other, "id": "x" + MARK} for i in ids]
            return {"x": other, "input": items}


def ids_in(dialect: Dialect, answer: dict[str, Any]) -> list[str]:
    match dialect:
        case Dialect.CHAT:
            return [c["id"] for c in answer["choices"][0]["message"]["tool_calls"]]
        case Dialect.MESSAGES:
            return [b["id"] for b in answer["content"][1:]]
        case _:
            return [item["call_id"] for item in answer["output"]]


@given(
    dialect=DIALECTS,
    ids=st.lists(IDS, min_size=1, max_size=4),
    other=OTHER,
    indent=st.sampled_from([None, 2]),
    is_ascii=st.booleans(),
)
def test_there_and_back(
    dialect: Dialect, ids: list[str], other: Any, indent: int | None, is_ascii: bool
) -> None:
    def encoded(value: Any) -> bytes:
        return json.dumps(value, indent=indent, ensure_ascii=is_ascii).encode(
            errors="surrogatepass"
        )

    answer = encoded(answer_of(dialect, ids, other))
    marked = CallIdMarker(dialect, TURN).whole(answer)
    told = [i + MARK for i in ids]
    assert marked == encoded(answer_of(dialect, told, other))
    assert ids_in(dialect, json.loads(marked)) == told
    assert cut(dialect, encoded(request_of(dialect, told, other))) == encoded(
        request_of(dialect, ids, other)
    )


@given(body=st.one_of(st.binary(max_size=60), st.text('{}[]:,"\\ id-~s0a', max_size=60)))
def test_whatever_the_bytes(body: bytes | str) -> None:
    raw = body.encode() if isinstance(body, str) else body
    for dialect in Dialect:
        marked = CallIdMarker(dialect, TURN).whole(raw)
        assert marked.replace(MARK.encode(), b"") == raw.replace(MARK.encode(), b"")
        assert len(cut(dialect, raw)) <= len(raw)


def test_a_body_without_suffixes_is_the_very_same() -> None:
    body = b'{"messages": [{"tool_call_id": "call_1"}]}'
    assert cut(Dialect.CHAT, body) is body


@pytest.mark.parametrize("dialect", [Dialect.CHAT, Dialect.MESSAGES, Dialect.RESPONSES])
def test_ids_that_were_marked_by_an_older_version_are_cut_too(dialect: Dialect) -> None:
    old = json.dumps(request_of(dialect, ["call_1" + OLD_MARK], None)).encode()
    assert cut(dialect, old) == json.dumps(request_of(dialect, ["call_1"], None)).encode()


def test_clients_that_keep_letters_digits_and_lines_only_leave_a_mark_whole() -> None:
    """As Roo Code, Kilo Code and OpenCode do, and as Anthropic's pattern for ids demands."""
    answer = json.dumps(answer_of(Dialect.MESSAGES, ["call_1"], None)).encode()
    [told] = ids_in(
        Dialect.MESSAGES, json.loads(CallIdMarker(Dialect.MESSAGES, TURN).whole(answer))
    )
    assert told == re.sub(r"[^a-zA-Z0-9_-]", "_", told) != "call_1"


def test_ids_that_are_not_there() -> None:
    marker = CallIdMarker(Dialect.CHAT, TURN)
    stream = data({"choices": [{"delta": {"tool_calls": [{"id": ""}, {"id": None}]}}]}) + DONE
    assert marker.events(stream) == stream
    calls = (AnsweredCall(call_id="", name="n", arguments=""),)
    assert marker.answer(Answer(calls=calls)).calls == calls
    assert CallIdMarker(Dialect.COMPLETIONS, TURN).whole(b'{"id": "x"}') == b'{"id": "x"}'


def call_chunk(arguments: str, **extra: Any) -> bytes:
    call = {"index": 0, "function": {"arguments": arguments}} | extra
    choices = [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]
    return data({"id": "c1", "object": "chat.completion.chunk", "choices": choices})


CHAT_PARTS = (
    call_chunk('{"id": ', id="call_1", type="function"),
    call_chunk('"call_1"}'),
    chunk(finish="tool_calls"),
    DONE,
)
CHAT_CALL = CHAT | {
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
                ],
            },
        }
    ]
}


async def chat(exchange: Exchange) -> None:
    if exchange.fields.get("stream"):
        await exchange.stream(*CHAT_PARTS)
    else:
        await exchange.json(CHAT_CALL)


def results(call_id: str) -> list[dict[str, Any]]:
    calls = [{"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    return [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": call_id, "content": f"result of {call_id}"},
    ]


class TestThroughTheProxy:
    async def test_off_leaves_bytes_alone(self, proxy: Any, upstream: Upstream) -> None:
        upstream.script = chat
        assert (await proxy.chat(stream=True)).content == b"".join(CHAT_PARTS)
        body = json.dumps({"model": "m", "messages": results("call_1" + MARK)}).encode()
        await proxy.client.post("/v1/chat/completions", content=body)
        assert (await upstream.exchange(1)).body == body

    @pytest.mark.parametrize("is_stream", [True, False])
    async def test_chat(self, start: Any, upstream: Upstream, is_stream: bool) -> None:
        upstream.script = chat
        async with start(upstream.url, identity=ON) as proxy:
            answers = [(await proxy.chat(stream=is_stream)).content for _ in "ab"]
            ids = [call_id_of(answer) for answer in answers]
            assert len(set(ids)) == 2
            for answer, call_id in zip(answers, ids, strict=True):
                assert call_id.startswith("call_1-s")
                plain = answer.replace(call_id.encode(), b"call_1")
                assert plain == (
                    b"".join(CHAT_PARTS) if is_stream else json.dumps(CHAT_CALL).encode()
                )
            await self.goes_back(proxy, upstream, ids)

    async def goes_back(self, proxy: Any, upstream: Upstream, ids: list[str]) -> None:
        """The second steps are told apart by ids that the engine does not tell apart."""
        seen = []
        for number, call_id in enumerate(ids):
            body = json.dumps({"model": "m", "messages": results(call_id)}).encode()
            response = await proxy.client.post("/v1/chat/completions", content=body)
            seen.append(response.headers)
            sent = (await upstream.exchange(2 + number)).fields["messages"]
            assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] == "call_1"
            assert sent[2]["content"] == f"result of {call_id}"
        assert [h["x-agentsched-step"] for h in seen] == ["2", "2"]
        assert len({h["x-agentsched-program"] for h in seen}) == 2
        assert all(h["x-agentsched-decision"].endswith("as=call_id") for h in seen)

    async def test_anthropics_client(self, start: Any, upstream: Upstream) -> None:
        block = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
        parts = (
            event("message_start", {"message": MESSAGE | {"content": [], "stop_reason": None}}),
            event("content_block_start", {"index": 0, "content_block": block}),
            event("content_block_stop", {"index": 0}),
            event(
                "message_delta",
                {"delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 1}},
            ),
            event("message_stop", {}),
        )

        async def script(exchange: Exchange) -> None:
            await exchange.stream(*parts)

        upstream.script = script
        async with (
            start(upstream.url, identity=ON) as proxy,
            anthropic.AsyncAnthropic(base_url=proxy.url, api_key="k", max_retries=0) as client,
        ):
            asked: Any = [{"role": "user", "content": "hi"}]
            async with client.messages.stream(model="m", max_tokens=5, messages=asked) as stream:
                found: Any = (await stream.get_final_message()).content[0]
            assert found.id.startswith("toolu_1-s")
            result = {"type": "tool_result", "tool_use_id": found.id, "content": "r"}
            asked += [
                {"role": "assistant", "content": [block | {"id": found.id}]},
                {"role": "user", "content": [result]},
            ]
            async with client.messages.stream(model="m", max_tokens=5, messages=asked) as stream:
                await stream.get_final_message()
            sent = (await upstream.exchange(1)).fields["messages"]
            assert sent[1]["content"][0]["id"] == "toolu_1"
            assert sent[2]["content"][0]["tool_use_id"] == "toolu_1"

    async def test_openais_responses(self, start: Any, upstream: Upstream) -> None:
        call = {"id": "fc", "type": "function_call", "call_id": "call_1", "name": "f"}
        call |= {"arguments": "{}", "status": "completed"}
        head = {"response": RESPONSE | {"output": [], "status": "in_progress"}}
        parts = (
            event("response.created", {"sequence_number": 0} | head),
            event(
                "response.output_item.added",
                {"sequence_number": 1, "output_index": 0, "item": call},
            ),
            event("response.output_item.done", {"sequence_number": 2, "output_index": 0}).replace(
                b"}\n", b', "item": ' + json.dumps(call).encode() + b"}\n"
            ),
            event(
                "response.completed",
                {"sequence_number": 3, "response": RESPONSE | {"output": [call]}},
            ),
        )

        async def script(exchange: Exchange) -> None:
            await exchange.stream(*parts)

        upstream.script = script
        async with (
            start(upstream.url, identity=ON) as proxy,
            openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0) as client,
        ):
            async with client.responses.stream(model="m", input="hi") as stream:
                found: Any = (await stream.get_final_response()).output[0]
            assert found.call_id.startswith("call_1-s")
            result: Any = {"type": "function_call_output", "output": "r", "call_id": found.call_id}
            again = await client.responses.create(
                model="m", input=[call | {"call_id": found.call_id}, result], stream=True
            )
            seen = [e.item.call_id for e in [e async for e in again] if hasattr(e, "item")]
            assert len(set(seen)) == 1
            assert seen[0] != found.call_id
            sent = (await upstream.exchange(1)).fields["input"]
            assert [item["call_id"] for item in sent] == ["call_1", "call_1"]


def call_id_of(answer: bytes) -> str:
    """The first call's id in a chat answer, whole or streamed."""
    if answer.startswith(b"data: "):
        first = json.loads(answer.partition(b"\n\n")[0].removeprefix(b"data: "))
        return str(first["choices"][0]["delta"]["tool_calls"][0]["id"])
    return str(json.loads(answer)["choices"][0]["message"]["tool_calls"][0]["id"])
