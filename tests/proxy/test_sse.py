"""The tap: relays bytes as they are, hides one chunk at most, and reads the same however cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.model import Usage
from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.answers import read_answer
from agentsched.proxy.request import Dialect
from agentsched.proxy.sse import SseTap

CAPTURES = Path(__file__).parent / "data/vllm-0.32"
DIALECTS = {
    "chat": Dialect.CHAT,
    "completions": Dialect.COMPLETIONS,
    "responses": Dialect.RESPONSES,
    "messages": Dialect.MESSAGES,
}


def dialect_of(path: Path) -> Dialect:
    return DIALECTS[path.stem.split("_")[0]]


def tapped(
    dialect: Dialect, chunks: list[bytes], *, hide_usage: bool = False, **limits: int
) -> tuple[bytes, SseTap]:
    tap = SseTap(dialect, hide_usage=hide_usage, **limits)
    relayed = b"".join([tap.feed(chunk) for chunk in chunks])
    return relayed + tap.close(), tap


def read(dialect: Dialect, *events: bytes) -> Answer:
    return tapped(dialect, list(events))[1].answer()


def data(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def event(value: Mapping[str, object]) -> bytes:
    return f"event: {value['type']}\n".encode() + data(value)


def chat(delta: dict[str, object] | None = None, **choice: object) -> bytes:
    return data({"id": "c1", "choices": [{"index": 0, "delta": delta or {}, **choice}]})


USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
USAGE_CHUNK = data({"id": "c1", "choices": [], "usage": USAGE})
FINISH = chat(finish_reason="stop")
DONE = b"data: [DONE]\n\n"


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(stream) + 1) for place in places}), len(stream)]
    return [stream[first:last] for first, last in pairwise(edges)]


class TestChat:
    def test_a_stream_of_text(self) -> None:
        first = chat({"role": "assistant", "content": ""})
        tap = SseTap(Dialect.CHAT, hide_usage=False)
        assert tap.feed(first) is first
        had_begun = tap.first_token_seen
        tap.feed(chat({"content": "Hé"}))
        assert (had_begun, tap.first_token_seen) == (False, True)
        assert not tap.answer().is_complete
        for chunk in (chat({"content": "llo"}), FINISH, USAGE_CHUNK, DONE):
            assert tap.feed(chunk) is chunk
        assert tap.answer() == Answer(
            response_id="c1",
            text="Héllo",
            finish_reason="stop",
            usage=Usage(prompt_tokens=9, cached_tokens=4, output_tokens=2),
            is_complete=True,
        )

    def test_tool_calls_are_put_together_by_index(self) -> None:
        def call(index: int, **rest: object) -> bytes:
            return chat({"tool_calls": [{"index": index, **rest}]})

        answer = read(
            Dialect.CHAT,
            call(0, id="a", type="function", function={"name": "bash", "arguments": ""}),
            call(0, function={"arguments": '{"cmd" : '}),
            call(1, id="b", function={"name": "edit", "arguments": "{"}),
            call(0, function={"arguments": '"ls" }'}),
            call(1, function={"arguments": "}"}),
            chat(finish_reason="tool_calls"),
        )
        assert answer.calls == (
            AnsweredCall(call_id="a", name="bash", arguments='{"cmd" : "ls" }'),
            AnsweredCall(call_id="b", name="edit", arguments="{}"),
        )
        assert answer.finish_reason == "tool_calls"

    def test_tool_calls_without_numbers(self) -> None:
        answer = read(
            Dialect.CHAT,
            chat({"tool_calls": [{"id": "a", "function": {"name": "x", "arguments": "1"}}]}),
            chat({"tool_calls": [{"function": {"arguments": "2"}}]}),
            chat({"tool_calls": [{"id": "b", "function": {"name": "y", "arguments": "3"}}]}),
        )
        assert [(c.call_id, c.arguments) for c in answer.calls] == [("a", "12"), ("b", "3")]

    @pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "refusal"])
    def test_reasoning_starts_an_answer_but_is_no_text(self, name: str) -> None:
        _, tap = tapped(Dialect.CHAT, [chat({name: "hmm"})])
        assert tap.first_token_seen
        assert tap.answer().text == ""

    def test_the_first_choice_is_the_answer(self) -> None:
        def choice(index: int, text: str) -> bytes:
            return data({"choices": [{"index": index, "delta": {"content": text}}]})

        assert read(Dialect.CHAT, choice(1, "no"), choice(0, "yes"), choice(1, "no")).text == "yes"

    def test_an_error_in_the_stream(self) -> None:
        answer = read(Dialect.CHAT, chat({"content": "a"}), data({"error": {"message": "boom"}}))
        assert answer.error == "boom"
        assert not answer.is_complete
        assert read(Dialect.CHAT, data({"error": "bang"})).error == "bang"
        assert read(Dialect.CHAT, data({"error": {"code": 5}})).error
        assert read(Dialect.CHAT, data({"error": [1]})).error == "[1]"

    def test_a_cut_stream_is_not_complete(self) -> None:
        answer = read(Dialect.CHAT, chat({"content": "a"}), FINISH[:-20])
        assert not answer.is_complete
        assert answer.text == "a"

    def test_completions(self) -> None:
        chunk = data({"id": "p1", "choices": [{"index": 0, "text": "a", "finish_reason": None}]})
        last = data({"choices": [{"index": 0, "text": "b", "finish_reason": "length"}]})
        answer = read(Dialect.COMPLETIONS, chunk, last, USAGE_CHUNK, DONE)
        assert (answer.response_id, answer.text, answer.finish_reason) == ("p1", "ab", "length")
        assert answer.usage is not None

    def test_unnumbered_and_null_fields(self) -> None:
        answer = read(
            Dialect.CHAT,
            data({"id": None, "choices": [{"delta": {"content": None, "tool_calls": None}}]}),
            data({"choices": None, "usage": None}),
            data({"choices": [{"delta": None, "finish_reason": "stop"}], "usage": {}}),
        )
        assert answer == Answer(finish_reason="stop", is_complete=True, usage=Usage())


class TestHiding:
    @pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\r\n\n", b"\n\r"])
    def test_the_usage_chunk_is_left_out_at_any_cut(self, end: bytes) -> None:
        before = b"".join([chat({"content": "a"}), FINISH]).replace(b"\n\n", end)
        hidden = USAGE_CHUNK.replace(b"\n\n", end)
        after = DONE.replace(b"\n\n", end)
        stream = before + hidden + after
        for place in range(len(stream)):
            relayed, tap = tapped(Dialect.CHAT, [stream[:place], stream[place:]], hide_usage=True)
            assert relayed == before + after
            assert tap.answer().usage == Usage(prompt_tokens=9, cached_tokens=4, output_tokens=2)
        singles = [stream[place : place + 1] for place in range(len(stream))]
        assert tapped(Dialect.CHAT, singles, hide_usage=True)[0] == before + after

    def test_usage_beside_content_stays(self) -> None:
        beside = data({"choices": [{"index": 0, "delta": {"content": "x"}}], "usage": USAGE})
        no_usage = data({"choices": [], "usage": None})
        stream = [no_usage, beside, FINISH, beside, DONE]
        assert tapped(Dialect.CHAT, stream, hide_usage=True)[0] == b"".join(stream)

    def test_only_when_asked(self) -> None:
        stream = [chat({"content": "a"}), FINISH, USAGE_CHUNK, DONE]
        assert tapped(Dialect.CHAT, stream)[0] == b"".join(stream)

    def test_a_usage_chunk_at_the_very_end_without_its_blank_line(self) -> None:
        relayed, tap = tapped(Dialect.CHAT, [FINISH, USAGE_CHUNK[:-1]], hide_usage=True)
        assert relayed == FINISH
        assert tap.answer().usage is not None


class TestResponses:
    def test_text_and_calls(self) -> None:
        item = {"type": "function_call", "id": "fc", "call_id": "call1", "name": "bash"}
        answer = read(
            Dialect.RESPONSES,
            event({"type": "response.created", "response": {"id": "r1", "status": "in_progress"}}),
            event({"type": "response.output_text.delta", "output_index": 0, "delta": "Hi"}),
            event({"type": "response.output_item.added", "output_index": 1, "item": item}),
            event(
                {
                    "type": "response.function_call_arguments.delta",
                    "output_index": 1,
                    "delta": '{"a"',
                }
            ),
            event(
                {
                    "type": "response.function_call_arguments.done",
                    "output_index": 1,
                    "arguments": '{"a":1}',
                }
            ),
            event(
                {
                    "type": "response.output_item.done",
                    "output_index": 1,
                    "item": {**item, "arguments": '{"a":1}'},
                }
            ),
            event(
                {
                    "type": "response.completed",
                    "response": {
                        "id": "r1",
                        "status": "completed",
                        "error": None,
                        "usage": {
                            "input_tokens": 5,
                            "input_tokens_details": {"cached_tokens": 3},
                            "output_tokens": 2,
                        },
                    },
                }
            ),
        )
        assert answer == Answer(
            response_id="r1",
            text="Hi",
            calls=(AnsweredCall(call_id="call1", name="bash", arguments='{"a":1}'),),
            finish_reason="completed",
            usage=Usage(prompt_tokens=5, cached_tokens=3, output_tokens=2),
            is_complete=True,
        )

    def test_the_last_event_fills_what_was_not_streamed(self) -> None:
        output = [
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]},
            {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "*** Begin"},
        ]
        response = {"id": "r", "status": "completed", "output": output}
        answer = read(
            Dialect.RESPONSES, event({"type": "response.completed", "response": response})
        )
        assert answer.text == "Hi"
        assert answer.calls == (AnsweredCall(call_id="c", name="patch", arguments="*** Begin"),)

    def test_several_messages_are_told_apart(self) -> None:
        def delta(place: int, text: str) -> bytes:
            return event(
                {"type": "response.output_text.delta", "output_index": place, "delta": text}
            )

        parts = [[("One", " is"), ("it.",)], [("So",)], [("Last.",)]]
        output: list[dict[str, object]] = [{"type": "reasoning"}]
        for texts in parts:
            said = [{"type": "output_text", "text": "".join(text)} for text in texts]
            output.append({"type": "message", "content": said})
        response = {"id": "r", "status": "completed", "output": output}
        streamed = read(
            Dialect.RESPONSES,
            *(delta(n, t) for n, texts in enumerate(parts, 1) for text in texts for t in text),
            event({"type": "response.completed", "response": response}),
        )
        whole = read_answer(Dialect.RESPONSES, json.dumps(response).encode())
        assert streamed == whole
        assert whole.messages == ("One isit.", "So", "Last.")
        assert whole.text == "One isit.SoLast."

    def test_events_that_lack_their_parts_say_nothing(self) -> None:
        item = {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": ""}
        events = [
            event({"type": "response.created"}),
            event({"type": "response.output_item.added"}),
            event({"type": "response.output_item.done", "item": {"type": "reasoning"}}),
            event({"type": "response.function_call_arguments.done"}),
            event({"type": "response.output_item.done", "output_index": 1, "item": item}),
            event({"type": "response.output_text.delta", "delta": "so"}),
            event({"type": "response.something.new"}),
            event({"type": "response.completed"}),
        ]
        relayed, tap = tapped(Dialect.RESPONSES, events)
        assert relayed == b"".join(events)
        assert tap.malformed_events == 0
        call = AnsweredCall(call_id="c", name="patch", arguments="")
        assert tap.answer() == Answer(
            text="so", calls=(call,), finish_reason="completed", is_complete=True
        )

    def test_how_it_may_end(self) -> None:
        incomplete = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        answer = read(
            Dialect.RESPONSES, event({"type": "response.incomplete", "response": incomplete})
        )
        assert (answer.finish_reason, answer.is_complete) == ("max_output_tokens", True)
        failed = {"status": "failed", "error": {"code": "server_error", "message": "boom"}}
        answer = read(Dialect.RESPONSES, event({"type": "response.failed", "response": failed}))
        assert (answer.finish_reason, answer.error) == ("failed", "boom")
        answer = read(Dialect.RESPONSES, event({"type": "error", "code": "x", "message": "bang"}))
        assert answer.error == "bang"
        assert not answer.is_complete

    @pytest.mark.parametrize(
        "kind", ["response.reasoning_text.delta", "response.custom_tool_call_input.delta"]
    )
    def test_what_starts_an_answer(self, kind: str) -> None:
        _, tap = tapped(Dialect.RESPONSES, [event({"type": kind, "delta": "x"})])
        assert tap.first_token_seen
        created = event({"type": "response.created", "response": {"id": "r"}})
        assert not tapped(Dialect.RESPONSES, [created])[1].first_token_seen


class TestMessages:
    def start(self, usage: dict[str, int]) -> bytes:
        return event({"type": "message_start", "message": {"id": "msg1", "usage": usage}})

    def end(self, usage: dict[str, int] | None, reason: str = "end_turn") -> bytes:
        return event({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage})

    def test_text_and_calls(self) -> None:
        def block(index: int, **fields: object) -> bytes:
            return event({"type": "content_block_start", "index": index, "content_block": fields})

        def delta(index: int, **fields: object) -> bytes:
            return event({"type": "content_block_delta", "index": index, "delta": fields})

        def stop(index: int) -> bytes:
            return event({"type": "content_block_stop", "index": index})

        answer = read(
            Dialect.MESSAGES,
            self.start({"input_tokens": 5, "output_tokens": 1}),
            event({"type": "ping"}),
            block(0, type="thinking", thinking=""),
            delta(0, type="thinking_delta", thinking="hm"),
            delta(0, type="signature_delta", signature="s"),
            stop(0),
            block(1, type="text", text=""),
            delta(1, type="text_delta", text="Hi"),
            stop(1),
            block(2, type="tool_use", id="t1", name="Bash", input={}),
            delta(2, type="input_json_delta", partial_json=""),
            delta(2, type="input_json_delta", partial_json='{"command":'),
            delta(2, type="input_json_delta", partial_json=' "ls"}'),
            stop(2),
            block(3, type="tool_use", id="t2", name="Now", input={}),
            stop(3),
            block(4, type="tool_use", id="t3", name="Whole", input={"a": 1}),
            stop(4),
            self.end({"output_tokens": 7}, "tool_use"),
            event({"type": "message_stop"}),
        )
        assert answer.text == "Hi"
        assert answer.calls == (
            AnsweredCall(call_id="t1", name="Bash", arguments='{"command": "ls"}'),
            AnsweredCall(call_id="t2", name="Now", arguments="{}"),
            AnsweredCall(call_id="t3", name="Whole", arguments='{"a": 1}'),
        )
        assert answer.usage == Usage(prompt_tokens=5, cached_tokens=None, output_tokens=7)
        assert (answer.finish_reason, answer.is_complete) == ("tool_use", True)

    @pytest.mark.parametrize(
        ("first", "last", "prompt", "cached"),
        [
            # Anthropic: all at the start, the output at the end.
            (
                {
                    "input_tokens": 3,
                    "cache_read_input_tokens": 10,
                    "cache_creation_input_tokens": 5,
                    "output_tokens": 1,
                },
                {"output_tokens": 9},
                18,
                10,
            ),
            # vLLM: the whole prompt at the start, the cached part told apart at the end.
            (
                {"input_tokens": 401, "output_tokens": 0},
                {
                    "input_tokens": 17,
                    "output_tokens": 9,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 384,
                },
                401,
                384,
            ),
            # Others fill the last one with zeros, or the first.
            ({"input_tokens": 8}, {"input_tokens": 0, "output_tokens": 9}, 8, None),
            ({"input_tokens": 0}, {"input_tokens": 8, "output_tokens": 9}, 8, None),
        ],
    )
    def test_usage(
        self, first: dict[str, int], last: dict[str, int], prompt: int, cached: int | None
    ) -> None:
        answer = read(Dialect.MESSAGES, self.start(first), self.end(last))
        assert answer.usage == Usage(prompt_tokens=prompt, cached_tokens=cached, output_tokens=9)

    def test_events_that_lack_their_parts_say_nothing(self) -> None:
        events = [
            event({"type": "message_start"}),
            event({"type": "content_block_start"}),
            event({"type": "content_block_start", "content_block": {"type": "thinking"}}),
            event({"type": "content_block_delta"}),
            event({"type": "content_block_delta", "delta": {}}),
            event({"type": "content_block_stop"}),
            event({"type": "message_delta"}),
            event({"type": "ping"}),
            event({"type": "content_block_delta", "index": 1, "delta": {"text": "so"}}),
            event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}),
        ]
        relayed, tap = tapped(Dialect.MESSAGES, events)
        assert relayed == b"".join(events)
        assert tap.malformed_events == 0
        assert tap.answer() == Answer(text="so", finish_reason="end_turn", is_complete=True)

    def test_an_error(self) -> None:
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
        answer = read(Dialect.MESSAGES, self.start({"input_tokens": 1}), event(error))
        assert answer.error == "busy"
        assert not answer.is_complete


class TestFraming:
    def test_whole_events_pass_at_once_and_parts_of_them_wait(self) -> None:
        tap = SseTap(Dialect.CHAT, hide_usage=False)
        first, second = chat({"content": "a"}), chat({"content": "b"})
        assert tap.feed(first + second[:10]) == first
        assert tap.feed(second[10:-1]) == b""
        assert tap.answer().text == "a"
        assert tap.feed(second[-1:] + first + first[:1]) == second + first
        assert tap.feed(first[1:]) == first
        assert tap.close() == b""

    def test_the_rest_of_a_stream_that_dies_within_an_event(self) -> None:
        tap = SseTap(Dialect.CHAT, hide_usage=False)
        assert tap.feed(FINISH + b"data: {") == FINISH
        assert tap.close() == b"data: {"
        assert tap.close() == b""

    def test_comments_names_and_several_data_lines(self) -> None:
        whole = json.dumps({"choices": [{"delta": {"content": "a"}}]}, indent=1).encode()
        lines = b"".join(b"data:" + line + b"\n" for line in whole.split(b"\n"))
        stream = b"\xef\xbb\xbf: hello\n\nretry: 5\nid: 7\n: c\n" + lines + b"event: x\n\n\n\n"
        relayed, tap = tapped(Dialect.CHAT, [stream])
        assert relayed == stream
        assert tap.answer().text == "a"
        assert tap.malformed_events == 0

    def test_malformed_events_are_relayed_and_counted(self) -> None:
        bad = [
            b"data: {\n\n",
            b"data: 5\n\n",
            b'data: {"choices": 5}\n\n',
            b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',
            b"data: " + b"[" * 100_000 + b"\n\n",
        ]
        relayed, tap = tapped(Dialect.CHAT, [*bad, chat({"content": "still"})])
        assert relayed == b"".join(bad) + chat({"content": "still"})
        assert tap.answer().text == "still"
        assert tap.malformed_events == len(bad)

    def test_text_is_bounded(self) -> None:
        chunks = [chat({"content": "éa" * 10}), chat({"content": "b" * 10}), FINISH]
        relayed, tap = tapped(Dialect.CHAT, chunks, answer_chars_max=25)
        assert relayed == b"".join(chunks)
        answer = tap.answer()
        assert answer.text == "éa" * 10 + "b" * 5
        assert answer.is_truncated
        assert answer.is_complete

    def test_the_number_of_calls_is_bounded(self) -> None:
        calls = [
            chat({"tool_calls": [{"index": n, "id": f"i{n}", "function": {"arguments": "1"}}]})
            for n in range(1500)
        ]
        answer = read(Dialect.CHAT, *calls)
        assert len(answer.calls) == 1024
        assert answer.is_truncated

    @pytest.mark.parametrize("size", [100, 513, 100_000])
    def test_a_calls_id_is_whole_however_long(self, size: int) -> None:
        call = {"index": 0, "id": "i" * size, "function": {"name": "f", "arguments": "{}"}}
        streamed = read(Dialect.CHAT, chat({"tool_calls": [call]}), FINISH)
        choice = {"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}
        whole = read_answer(Dialect.CHAT, json.dumps({"choices": [choice]}).encode())
        assert [a.calls[0].call_id for a in (streamed, whole)] == ["i" * size] * 2
        assert not streamed.is_truncated

    def test_ids_are_bounded_as_text_is(self) -> None:
        calls = [
            chat({"tool_calls": [{"index": n, "id": f"{n}" * 600, "function": {"name": "f"}}]})
            for n in range(9)
        ]
        _, tap = tapped(Dialect.CHAT, [*calls, FINISH], answer_chars_max=1_000)
        answer = tap.answer()
        assert sum(len(call.call_id) for call in answer.calls) == 1_000
        assert answer.is_truncated

    @pytest.mark.parametrize("size", [1, 7, 1000, 10_000])
    def test_after_a_huge_event_it_relays_blindly(self, size: int) -> None:
        stream = b"".join(
            [chat({"content": "a"}), FINISH, chat({"content": "x" * 5000}), USAGE_CHUNK, DONE]
        )
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        relayed, tap = tapped(Dialect.CHAT, pieces, hide_usage=True, event_bytes_max=1000)
        assert relayed == stream
        assert tap.answer().text == "a"
        assert tap.answer().usage is None

    @pytest.mark.parametrize("dialect", [Dialect.EMBEDDINGS, Dialect.OTHER, Dialect.COUNT_TOKENS])
    def test_what_generates_nothing_is_relayed(self, dialect: Dialect) -> None:
        relayed, tap = tapped(dialect, [USAGE_CHUNK, b"x"], hide_usage=True)
        assert relayed == USAGE_CHUNK + b"x"
        assert tap.answer() == Answer()


ENDS = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])
EVENTS = st.sampled_from(
    [
        chat({"content": "wörd"}).strip(),
        chat({"role": "assistant", "content": ""}).strip(),
        chat({"tool_calls": [{"index": 0, "id": "a", "function": {"arguments": "{}"}}]}).strip(),
        FINISH.strip(),
        USAGE_CHUNK.strip(),
        DONE.strip(),
        b": comment",
        b"event: ping",
        b"data: {broken",
        b'data: {"error":{"message":"e"}}',
        b"data: {\ndata: }",
        b"",
        b"\xef\xbb\xbfdata: [DONE]",
        b"\xf0\x9f data",
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    pieces = []
    for block in draw(st.lists(EVENTS, max_size=8)):
        pieces += [block.replace(b"\n", draw(ENDS)), draw(ENDS), draw(ENDS)]
    return b"".join(pieces) + draw(st.sampled_from([b"", b"data: {", b"data: [DONE]", b"\r"]))


CUTS = st.lists(st.integers(0, 5000), max_size=12)


@pytest.mark.slow
class TestAnyCut:
    @given(st.sampled_from(sorted(CAPTURES.glob("*.sse"))), CUTS)
    @settings(max_examples=100, deadline=None)
    def test_every_whole_event_has_passed_and_nothing_else(
        self, path: Path, places: list[int]
    ) -> None:
        stream = path.read_bytes()
        tap = SseTap(dialect_of(path), hide_usage=False)
        fed = relayed = b""
        for chunk in cut(stream, places):
            fed += chunk
            relayed += tap.feed(chunk)
            whole, end, _ = fed.rpartition(b"\n\n")
            assert relayed == whole + end
        assert relayed == stream

    @given(streams(), CUTS, st.booleans(), st.sampled_from([40, 200, 10_000]))
    @settings(max_examples=250, deadline=None)
    def test_gives_the_same_bytes_and_answer(
        self, stream: bytes, places: list[int], hide_usage: bool, event_bytes_max: int
    ) -> None:
        whole, tap = tapped(
            Dialect.CHAT, [stream], hide_usage=hide_usage, event_bytes_max=event_bytes_max
        )
        pieces, other = tapped(
            Dialect.CHAT,
            cut(stream, places),
            hide_usage=hide_usage,
            event_bytes_max=event_bytes_max,
        )
        assert pieces == whole
        assert other.answer() == tap.answer()
        assert other.malformed_events == tap.malformed_events
        if not hide_usage:
            assert whole == stream
        singles = [stream[at : at + 1] for at in range(len(stream))]
        assert (
            tapped(Dialect.CHAT, singles, hide_usage=hide_usage, event_bytes_max=event_bytes_max)[0]
            == whole
        )

    @given(st.sampled_from(list(Dialect)), st.lists(st.binary(max_size=40), max_size=8))
    @settings(max_examples=150, deadline=None)
    def test_any_bytes_go_through(self, dialect: Dialect, chunks: list[bytes]) -> None:
        relayed, tap = tapped(dialect, chunks)
        assert relayed == b"".join(chunks)
        assert isinstance(tap.answer(), Answer)

    @given(
        st.sampled_from(sorted(CAPTURES.glob("*.sse"))),
        st.data(),
    )
    @settings(max_examples=150, deadline=None)
    def test_damaged_real_streams_go_through(self, path: Path, draws: st.DataObject) -> None:
        stream = bytearray(path.read_bytes())
        for _ in range(draws.draw(st.integers(0, 5))):
            stream[draws.draw(st.integers(0, len(stream) - 1))] = draws.draw(st.integers(0, 255))
        pieces = cut(bytes(stream), draws.draw(CUTS))
        relayed, tap = tapped(dialect_of(path), pieces)
        assert relayed == bytes(stream)
        assert tap.answer() == tapped(dialect_of(path), [bytes(stream)])[1].answer()

    @given(st.sampled_from(sorted(CAPTURES.glob("*.sse"))), CUTS)
    @settings(max_examples=100, deadline=None)
    def test_real_streams_are_read_the_same(self, path: Path, places: list[int]) -> None:
        stream = path.read_bytes()
        relayed, tap = tapped(dialect_of(path), cut(stream, places), hide_usage=True)
        whole, other = tapped(dialect_of(path), [stream], hide_usage=True)
        assert relayed == whole
        assert tap.answer() == other.answer()
        assert tap.malformed_events == 0
        assert tap.answer().is_complete
        assert tap.answer().usage is not None
