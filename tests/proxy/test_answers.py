"""Whole bodies: the same answer as from a stream, and nothing but an answer from anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.model import Usage
from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.answers import read_answer
from agentsched.proxy.request import Dialect

CAPTURES = Path(__file__).parent / "data/vllm-0.32"


def read(dialect: Dialect, **body: object) -> Answer:
    return read_answer(dialect, json.dumps(body).encode())


def captured(name: str) -> bytes:
    return (CAPTURES / f"{name}.json").read_bytes()


class TestChat:
    def test_text_calls_and_usage(self) -> None:
        answer = read(
            Dialect.CHAT,
            id="c1",
            choices=[
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": "Hi",
                        "tool_calls": [
                            {"id": "a", "function": {"name": "bash", "arguments": '{"x" : 1}'}},
                            {"id": "b", "function": {"name": "odd", "arguments": {"y": 2}}},
                        ],
                    },
                    "finish_reason": "tool_calls",
                },
                {"index": 1, "message": {"content": "other"}, "finish_reason": "stop"},
            ],
            usage={
                "prompt_tokens": 7,
                "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 5},
            },
        )
        assert answer == Answer(
            response_id="c1",
            text="Hi",
            calls=(
                AnsweredCall(call_id="a", name="bash", arguments='{"x" : 1}'),
                AnsweredCall(call_id="b", name="odd", arguments='{"y": 2}'),
            ),
            finish_reason="tool_calls",
            usage=Usage(prompt_tokens=7, cached_tokens=5, output_tokens=3),
            is_complete=True,
        )

    def test_content_may_be_null_or_in_parts(self) -> None:
        for content, text in ((None, ""), ([{"type": "text", "text": "a"}, {"text": "b"}], "ab")):
            choice = {"message": {"content": content}, "finish_reason": "stop"}
            assert read(Dialect.CHAT, choices=[choice]).text == text

    def test_completions(self) -> None:
        answer = read(Dialect.COMPLETIONS, choices=[{"text": "abc", "finish_reason": "length"}])
        assert (answer.text, answer.finish_reason, answer.is_complete) == ("abc", "length", True)

    def test_what_its_engine_gave_up(self) -> None:
        for finish, is_given_up in (("abort", True), ("stop", False), (None, False)):
            message = {"message": {"content": "a"}, "text": "a", "finish_reason": finish}
            for dialect in (Dialect.CHAT, Dialect.COMPLETIONS):
                answer = read(dialect, choices=[message])
                assert (answer.is_given_up, answer.is_complete) == (is_given_up, not is_given_up)


class TestMessages:
    def test_text_calls_and_usage(self) -> None:
        body = (
            b'{"id":"m1","content":[{"type":"thinking","thinking":"hm"},{"type":"text","text":"Hi"},'
            b'{"type":"tool_use","id":"t","name":"Bash","input":{"command" : "ls"}},'
            b'{"type":"tool_use","id":"u","name":"Now"}],"stop_reason":"tool_use","usage":'
            b'{"input_tokens":3,"output_tokens":4,"cache_read_input_tokens":10,'
            b'"cache_creation_input_tokens":2}}'
        )
        answer = read_answer(Dialect.MESSAGES, body)
        assert answer.text == "Hi"
        assert answer.calls == (
            AnsweredCall(call_id="t", name="Bash", arguments='{"command" : "ls"}'),
            AnsweredCall(call_id="u", name="Now", arguments="{}"),
        )
        assert answer.usage == Usage(prompt_tokens=15, cached_tokens=10, output_tokens=4)
        assert (answer.finish_reason, answer.is_complete) == ("tool_use", True)

    def test_without_a_word_or_a_reason_it_is_given_up(self) -> None:
        """As vLLM ends one that it aborts: this API has no word for that."""
        empty, said = {"type": "text", "text": ""}, {"type": "text", "text": "a"}
        call = {"type": "tool_use", "id": "t", "name": "Now"}
        for content, reason, is_given_up in (
            ([empty], None, True),
            ([], None, True),
            ([empty], "end_turn", False),
            ([said], None, False),
            ([call], None, False),
        ):
            answer = read(Dialect.MESSAGES, content=content, stop_reason=reason)
            assert (answer.is_given_up, answer.is_complete) == (is_given_up, not is_given_up)

    def test_an_error(self) -> None:
        error = {"type": "overloaded_error", "message": "busy"}
        assert read(Dialect.MESSAGES, type="error", error=error).error == "busy"


class TestResponses:
    def test_a_failed_response_is_a_response(self) -> None:
        error = {"code": "server_error", "message": "boom"}
        answer = read(Dialect.RESPONSES, id="r", status="failed", error=error, output=[])
        assert (answer.response_id, answer.finish_reason, answer.error) == ("r", "failed", "boom")

    def test_one_in_the_background_is_not_complete(self) -> None:
        answer = read(Dialect.RESPONSES, id="r", status="in_progress", output=[])
        assert not answer.is_complete


class TestRealAnswers:
    def test_chat(self) -> None:
        answer = read_answer(Dialect.CHAT, captured("chat"))
        assert answer.response_id.startswith("chatcmpl-")
        assert answer.text
        assert answer.finish_reason == "length"
        assert answer.usage == Usage(prompt_tokens=401, cached_tokens=384, output_tokens=12)

    def test_completions(self) -> None:
        answer = read_answer(Dialect.COMPLETIONS, captured("completions"))
        assert answer.text
        assert answer.usage == Usage(prompt_tokens=5, cached_tokens=0, output_tokens=8)

    def test_responses(self) -> None:
        answer = read_answer(Dialect.RESPONSES, captured("responses"))
        assert answer.text
        assert (answer.finish_reason, answer.is_complete) == ("max_output_tokens", True)
        assert answer.usage == Usage(prompt_tokens=211, cached_tokens=192, output_tokens=12)
        called = read_answer(Dialect.RESPONSES, captured("responses_tool"))
        assert [call.name for call in called.calls] == ["bash"]
        assert called.calls[0].arguments

    def test_messages(self) -> None:
        answer = read_answer(Dialect.MESSAGES, captured("messages"))
        assert answer.text
        assert answer.usage == Usage(prompt_tokens=401, cached_tokens=384, output_tokens=12)

    def test_errors(self) -> None:
        answer = read_answer(Dialect.MESSAGES, captured("err_model"))
        assert "does not exist" in answer.error
        assert not answer.is_complete
        assert "validation" in read_answer(Dialect.CHAT, captured("err_xargs")).error


class TestAnythingElse:
    @pytest.mark.parametrize("dialect", list(Dialect))
    @pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"5", b"{", b"[" * 100_000])
    def test_is_an_empty_answer(self, dialect: Dialect, body: bytes) -> None:
        assert read_answer(dialect, body) == Answer()

    @pytest.mark.parametrize("dialect", [Dialect.CHAT, Dialect.MESSAGES, Dialect.RESPONSES])
    def test_an_unrelated_object_is_not_complete(self, dialect: Dialect) -> None:
        assert not read(dialect, detail="Not Found").is_complete

    def test_usage_of_what_generates_nothing(self) -> None:
        answer = read(Dialect.EMBEDDINGS, data=[], usage={"prompt_tokens": 5, "total_tokens": 5})
        assert answer == Answer(usage=Usage(prompt_tokens=5), is_complete=True)
        assert read(Dialect.COUNT_TOKENS, input_tokens=5).is_complete

    def test_it_is_bounded(self) -> None:
        body = json.dumps({"choices": [{"message": {"content": "x" * 100}}]}).encode()
        answer = read_answer(Dialect.CHAT, body, answer_chars_max=10)
        assert (answer.text, answer.is_truncated) == ("x" * 10, True)

    @pytest.mark.slow
    @given(
        st.sampled_from(list(Dialect)), st.sampled_from(sorted(CAPTURES.glob("*.json"))), st.data()
    )
    @settings(max_examples=200, deadline=None)
    def test_never_raises(self, dialect: Dialect, path: Path, draws: st.DataObject) -> None:
        body = bytearray(path.read_bytes())
        for _ in range(draws.draw(st.integers(0, 4))):
            body[draws.draw(st.integers(0, len(body) - 1))] = draws.draw(st.integers(0, 255))
        end = draws.draw(st.integers(0, len(body)))
        assert isinstance(read_answer(dialect, bytes(body[:end])), Answer)
