"""What the official clients make of our bytes, and what the tap makes of what they read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from agentsched.proxy.errors import error_body, keep_alive, stream_error
from agentsched.proxy.request import Dialect
from agentsched.proxy.sse import SseTap

CAPTURES = Path(__file__).parent / "data/vllm-0.32"


class Canned:
    """A server that gives every POST the same answer."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b""
        self.content_type = "text/event-stream"
        canned = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(canned.status)
                self.send_header("content-type", canned.content_type)
                self.send_header("content-length", str(len(canned.body)))
                self.end_headers()
                self.wfile.write(canned.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def stream(self, body: bytes) -> None:
        self.body = body

    def refuse(self, status: int, body: bytes) -> None:
        self.status, self.body, self.content_type = status, body, "application/json"


@pytest.fixture
def server() -> Iterator[Canned]:
    canned = Canned()
    thread = threading.Thread(target=canned.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield canned
    canned.server.shutdown()
    canned.server.server_close()
    thread.join()


@pytest.fixture
def gpt(server: Canned) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(server: Canned) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="k", max_retries=0) as client:
        yield client


def captured(name: str) -> bytes:
    return (CAPTURES / f"{name}.sse").read_bytes()


def tap(dialect: Dialect, stream: bytes, *, hide_usage: bool = False) -> tuple[bytes, SseTap]:
    tap = SseTap(dialect, hide_usage=hide_usage)
    return tap.feed(stream) + tap.close(), tap


MESSAGES: Any = [{"role": "user", "content": "hi"}]
CHAT_TEXT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"par"}}]}\n\n'
RESPONSE_CREATED = (
    b'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":'
    b'{"id":"r","object":"response","created_at":1,"model":"m","output":[],"status":"in_progress",'
    b'"parallel_tool_calls":true,"tool_choice":"auto","tools":[]}}\n\n'
)


class TestTheTapReadsWhatClientsRead:
    @pytest.mark.parametrize("name", ["chat", "chat_continuous", "chat_n2", "chat_required"])
    def test_chat(self, server: Canned, gpt: openai.OpenAI, name: str) -> None:
        server.stream(captured(name))
        answer = tap(Dialect.CHAT, captured(name))[1].answer()
        text, reason, usage = "", None, None
        calls: dict[int, list[str]] = {}
        stream = gpt.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                if choice.index != 0:
                    continue
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
                for call in choice.delta.tool_calls or ():
                    assert call.function is not None
                    known = calls.setdefault(call.index, ["", "", ""])
                    known[0] += call.id or ""
                    known[1] += call.function.name or ""
                    known[2] += call.function.arguments or ""
            assert chunk.id == answer.response_id
        assert (answer.text, answer.finish_reason) == (text, reason)
        assert [[c.call_id, c.name, c.arguments] for c in answer.calls] == list(calls.values())
        assert usage is not None
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == usage.prompt_tokens
        assert answer.usage.output_tokens == usage.completion_tokens
        assert usage.prompt_tokens_details is not None
        assert answer.usage.cached_tokens == usage.prompt_tokens_details.cached_tokens

    def test_a_hidden_usage_chunk_is_not_missed(self, server: Canned, gpt: openai.OpenAI) -> None:
        relayed, _ = tap(Dialect.CHAT, captured("chat"), hide_usage=True)
        server.stream(relayed)
        stream = gpt.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        chunks = list(stream)
        assert all(chunk.choices and chunk.usage is None for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "length"

    def test_completions(self, server: Canned, gpt: openai.OpenAI) -> None:
        server.stream(captured("completions"))
        answer = tap(Dialect.COMPLETIONS, captured("completions"))[1].answer()
        stream = gpt.completions.create(model="m", prompt="hi", stream=True)
        text = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
        assert answer.text == text

    @pytest.mark.parametrize("name", ["responses", "responses_tool"])
    def test_responses(self, server: Canned, gpt: openai.OpenAI, name: str) -> None:
        server.stream(captured(name))
        answer = tap(Dialect.RESPONSES, captured(name))[1].answer()
        with gpt.responses.stream(model="m", input="hi") as stream:
            last = list(stream)[-1]
        assert last.type in ("response.completed", "response.incomplete")
        response = last.response
        assert answer.response_id == response.id
        assert answer.text == response.output_text
        calls = [item for item in response.output if item.type == "function_call"]
        assert [(c.call_id, c.name, c.arguments) for c in answer.calls] == [
            (c.call_id, c.name, c.arguments) for c in calls
        ]
        assert response.usage is not None
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == response.usage.input_tokens
        assert answer.usage.cached_tokens == response.usage.input_tokens_details.cached_tokens

    @pytest.mark.parametrize("name", ["messages", "messages_tool"])
    def test_messages(self, server: Canned, claude: anthropic.Anthropic, name: str) -> None:
        server.stream(captured(name))
        answer = tap(Dialect.MESSAGES, captured(name))[1].answer()
        with claude.messages.stream(model="m", max_tokens=5, messages=MESSAGES) as stream:
            message = stream.get_final_message()
        assert answer.response_id == message.id
        assert answer.text == "".join(b.text for b in message.content if b.type == "text")
        tools = [block for block in message.content if block.type == "tool_use"]
        assert [(c.call_id, c.name, json.loads(c.arguments)) for c in answer.calls] == [
            (tool.id, tool.name, tool.input) for tool in tools
        ]
        assert answer.finish_reason == message.stop_reason
        assert answer.usage is not None
        assert answer.usage.output_tokens == message.usage.output_tokens
        assert answer.usage.cached_tokens == message.usage.cache_read_input_tokens


class TestErrorBodies:
    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, openai.BadRequestError),
            (401, openai.AuthenticationError),
            (404, openai.NotFoundError),
            (429, openai.RateLimitError),
            (503, openai.InternalServerError),
        ],
    )
    def test_openai(
        self, server: Canned, gpt: openai.OpenAI, status: int, error: type[openai.APIStatusError]
    ) -> None:
        body = error_body(Dialect.CHAT, status=status, message="no", code="why", param="model")
        server.refuse(status, body)
        with pytest.raises(error) as caught:
            gpt.chat.completions.create(model="m", messages=MESSAGES)
        assert (caught.value.code, caught.value.param) == ("why", "model")
        assert caught.value.type
        assert "no" in caught.value.message

    def test_anthropic(self, server: Canned, claude: anthropic.Anthropic) -> None:
        body = error_body(Dialect.MESSAGES, status=429, message="no", code="x", request_id="req_1")
        server.refuse(429, body)
        with pytest.raises(anthropic.RateLimitError) as caught:
            claude.messages.create(model="m", max_tokens=5, messages=MESSAGES)
        assert caught.value.type == "rate_limit_error"


class TestStreamErrors:
    @pytest.mark.parametrize("before", [b"", CHAT_TEXT])
    def test_chat(self, server: Canned, gpt: openai.OpenAI, before: bytes) -> None:
        server.stream(
            before + stream_error(Dialect.CHAT, status=503, message="gone", code="engine_lost")
        )
        stream = gpt.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="gone"):
            list(stream)

    def test_responses(self, server: Canned, gpt: openai.OpenAI) -> None:
        failed = stream_error(
            Dialect.RESPONSES, status=503, message="gone", code="engine_lost", response_id="r"
        )
        server.stream(RESPONSE_CREATED + failed)
        with gpt.responses.stream(model="m", input="hi") as stream:
            last = list(stream)[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert last.response.error.code == "rate_limit_exceeded"
        assert "try again in 1.0s" in last.response.error.message

    def test_messages(self, server: Canned, claude: anthropic.Anthropic) -> None:
        server.stream(
            captured("messages")[:400].rpartition(b"event:")[0]
            + stream_error(Dialect.MESSAGES, status=503, message="gone", code="engine_lost")
        )
        stream = claude.messages.create(model="m", max_tokens=5, messages=MESSAGES, stream=True)
        with pytest.raises(anthropic.APIStatusError, match="gone") as caught:
            list(stream)
        assert caught.value.type == "overloaded_error"

    @pytest.mark.parametrize(
        "dialect", [Dialect.CHAT, Dialect.COMPLETIONS, Dialect.RESPONSES, Dialect.MESSAGES]
    )
    def test_our_tap_reads_them_too(self, dialect: Dialect) -> None:
        event = stream_error(dialect, status=500, message="gone", code="x")
        assert "gone" in tap(dialect, event)[1].answer().error


class TestKeepAlive:
    def test_chat(self, server: Canned, gpt: openai.OpenAI) -> None:
        beat = keep_alive(Dialect.CHAT, model="m")
        server.stream(beat + beat + captured("chat"))
        stream = gpt.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
        assert text == tap(Dialect.CHAT, captured("chat"))[1].answer().text

    def test_completions(self, server: Canned, gpt: openai.OpenAI) -> None:
        server.stream(keep_alive(Dialect.COMPLETIONS) + captured("completions"))
        stream = gpt.completions.create(model="m", prompt="hi", stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices)

    def test_messages(self, server: Canned, claude: anthropic.Anthropic) -> None:
        beat = keep_alive(Dialect.MESSAGES)
        server.stream(beat + captured("messages").replace(b"\n\n", b"\n\n" + beat))
        with claude.messages.stream(model="m", max_tokens=5, messages=MESSAGES) as stream:
            assert stream.get_final_text()

    def test_responses(self, server: Canned, gpt: openai.OpenAI) -> None:
        first, _, rest = captured("responses").partition(b"\n\n")
        name = tap(Dialect.RESPONSES, captured("responses"))[1].answer().response_id
        beat = keep_alive(Dialect.RESPONSES, response_id=name)
        server.stream(first + b"\n\n" + beat + rest)
        with gpt.responses.stream(model="m", input="hi") as stream:
            last = list(stream)[-1]
        assert last.type in ("response.completed", "response.incomplete")
        server.stream(keep_alive(Dialect.RESPONSES) + captured("responses"))
        plain = gpt.responses.create(model="m", input="hi", stream=True)
        assert [event.type for event in plain][:2] == ["response.in_progress", "response.created"]

    @pytest.mark.parametrize("dialect", list(Dialect))
    def test_says_nothing_to_the_tap(self, dialect: Dialect) -> None:
        relayed, beaten = tap(dialect, keep_alive(dialect), hide_usage=True)
        assert relayed == keep_alive(dialect)
        assert not beaten.first_token_seen
        assert not beaten.answer().is_complete
        assert beaten.malformed_events == 0
