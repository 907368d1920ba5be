"""What the tap reads of each dialect's stream, and the one chunk at most that it hides."""

from __future__ import annotations

import json

import pytest
from sse_events import DONE, FINISH, USAGE, USAGE_CHUNK, chat, data, event, read, tapped

from agentsched.model import Usage
from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.answers import read_answer
from agentsched.proxy.request import Dialect
from agentsched.proxy.sse import SseTap
from agentsched.proxy.token_ids import pack


class TestTokenIds:
    """Of completions, whose clients send ids for prompts and ask for those of the answers."""

    @staticmethod
    def chunk(**choice: object) -> bytes:
        return data({"id": "c1", "choices": [{"index": 0, "text": "", **choice}]})

    def test_of_a_stream(self) -> None:
        answer = read(
            Dialect.COMPLETIONS,
            self.chunk(text="a", prompt_token_ids=[1, 2], token_ids=[7]),
            self.chunk(text="b", token_ids=[8, 70_000]),
            self.chunk(index=1, text="x", token_ids=[9]),
            self.chunk(token_ids=[]),
            self.chunk(token_ids=None),
            self.chunk(token_ids=[2], finish_reason="stop"),
            DONE,
        )
        assert answer.text == "ab"
        assert answer.token_ids == pack([7, 8, 70_000, 2])

    @pytest.mark.parametrize("ids", ["abc", {"a": 1}, [1, "b"], [-1], [1 << 40], [[1]], 7])
    def test_what_is_none_does_no_harm(self, ids: object) -> None:
        last = self.chunk(text="c", token_ids=[5], finish_reason="stop")
        answer = read(Dialect.COMPLETIONS, self.chunk(text="ab", token_ids=ids), last, DONE)
        assert (answer.text, answer.token_ids, answer.is_complete) == ("abc", b"", True)

    def test_too_many_are_none(self) -> None:
        many = self.chunk(token_ids=[100_000] * 200_000)
        answer = read(Dialect.COMPLETIONS, many, many, many, many, self.chunk(token_ids=[1]))
        assert answer.token_ids == b""

    def test_of_a_whole_answer(self) -> None:
        choice = {"index": 0, "text": "ab", "token_ids": [7, 8], "finish_reason": "stop"}
        body = {"id": "c1", "choices": [choice]}
        answer = read_answer(Dialect.COMPLETIONS, json.dumps(body).encode())
        assert (answer.text, answer.token_ids) == ("ab", pack([7, 8]))

    def test_those_of_chats_are_not_kept(self) -> None:
        chunk = {"id": "c1", "choices": [{"index": 0, "delta": {"content": "a"}, "token_ids": [7]}]}
        assert read(Dialect.CHAT, data(chunk), DONE).token_ids == b""
        message = {"role": "assistant", "content": "a"}
        body = {"id": "c1", "choices": [{"index": 0, "message": message, "token_ids": [7]}]}
        assert read_answer(Dialect.CHAT, json.dumps(body).encode()).token_ids == b""


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

    def test_calls_of_custom_tools(self) -> None:
        """OpenAI's: their input is a text, and no JSON."""
        begun = {"index": 0, "id": "a", "type": "custom", "custom": {"name": "sh", "input": ""}}
        streamed = read(
            Dialect.CHAT,
            chat({"tool_calls": [begun]}),
            chat({"tool_calls": [{"index": 0, "custom": {"input": "ls "}}]}),
            chat({"tool_calls": [{"index": 0, "custom": {"input": '"x"'}}]}),
            chat(finish_reason="tool_calls"),
        )
        call = {"id": "a", "type": "custom", "custom": {"name": "sh", "input": 'ls "x"'}}
        choice = {"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}
        whole = read_answer(Dialect.CHAT, json.dumps({"choices": [choice]}).encode())
        called = AnsweredCall(call_id="a", name="sh", arguments='ls "x"')
        assert (streamed.calls, whole.calls) == ((called,), (called,))

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

    def test_an_error_that_is_none(self) -> None:
        usage = data({"choices": [], "usage": USAGE, "error": None})
        answer = read(Dialect.CHAT, chat({"content": "a"}), FINISH, usage, DONE)
        assert (answer.error, answer.is_complete) == ("", True)
        assert answer.usage is not None
        relayed, _ = tapped(Dialect.CHAT, [FINISH, usage, DONE], hide_usage=True)
        assert relayed == FINISH + DONE

    def test_an_error_beside_choices(self) -> None:
        """As routers tell of a server behind them that fails in the middle of an answer."""
        choice = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}
        last = {"choices": [choice], "error": {"code": "server_error", "message": "gone"}}
        answer = read(Dialect.CHAT, chat({"content": "a"}), data(last), DONE)
        assert (answer.error, answer.finish_reason) == ("gone", "error")

    @pytest.mark.parametrize("none", [None, {}, "", False])
    def test_no_error_beside_choices(self, none: object) -> None:
        choice = {"index": 0, "delta": {"content": "a"}}
        answer = read(Dialect.CHAT, data({"choices": [choice], "error": none}), FINISH, DONE)
        assert (answer.error, answer.text, answer.is_complete) == ("", "a", True)

    @pytest.mark.parametrize("hides", [False, True])
    def test_the_end_of_what_its_engine_gives_up_is_kept_back(self, hides: bool) -> None:
        """An error is to follow: clients take any end of a stream for that of a short answer."""
        said = [chat({"role": "assistant", "content": ""}), chat({"content": "a"})]
        ended = [chat({"content": ""}, finish_reason="abort"), USAGE_CHUNK, DONE]
        for chunks in ([*said, *ended], [b"".join([*said, *ended])]):
            relayed, tap = tapped(Dialect.CHAT, chunks, hide_usage=hides)
            assert relayed == b"".join(said)
            answer = tap.answer()
            assert (answer.text, answer.is_given_up, answer.is_complete) == ("a", True, False)
            assert not tap.is_over

    def test_an_error_after_it_was_given_up_is_for_the_client(self) -> None:
        error = data({"error": {"message": "gone"}})
        aborted = chat(finish_reason="abort")
        relayed, tap = tapped(Dialect.CHAT, [chat({"content": "a"}), aborted, error, DONE])
        assert relayed == chat({"content": "a"}) + error + DONE
        assert (tap.answer().error, tap.answer().is_complete) == ("gone", False)

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

    def test_calls_of_tools_that_a_client_has_by_their_kind(self) -> None:
        output: list[dict[str, object]] = [
            {"type": "tool_search_call", "call_id": "c1", "arguments": {"query": "mail"}},
            {"type": "local_shell_call", "call_id": "c2", "action": {"cmd": ["ls"]}},
            # These ran beside the model.
            {"type": "tool_search_call", "call_id": None, "arguments": {"paths": ["crm"]}},
            {"type": "web_search_call", "id": "w1", "action": {"type": "search"}},
        ]
        response = {"id": "r", "status": "completed", "output": output}
        streamed = read(
            Dialect.RESPONSES,
            *(
                event({"type": "response.output_item.done", "output_index": n, "item": item})
                for n, item in enumerate(output)
            ),
            event({"type": "response.completed", "response": response}),
        )
        assert streamed == read_answer(Dialect.RESPONSES, json.dumps(response).encode())
        assert streamed == Answer(
            response_id="r",
            calls=(
                AnsweredCall(call_id="c1", name="tool_search_call", arguments='{"query": "mail"}'),
                AnsweredCall(call_id="c2", name="local_shell_call", arguments='{"cmd": ["ls"]}'),
            ),
            finish_reason="completed",
            is_complete=True,
        )

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

    def test_an_error_that_is_none(self) -> None:
        said = {"type": "error", "code": "x", "message": "bang", "error": None}
        assert read(Dialect.RESPONSES, event(said)).error == "bang"
        other = {"type": "response.something.new", "error": None}
        assert not read(Dialect.RESPONSES, event(other)).error

    def test_an_announcement_is_no_answer_yet(self) -> None:
        tap = SseTap(Dialect.RESPONSES, hide_usage=False)
        assert tap.is_announced_only
        for kind in ("response.created", "response.queued", "response.in_progress"):
            announced = event({"type": kind, "response": {"id": "r"}})
            assert tap.feed(announced[:40]) + tap.feed(announced[40:]) == announced
            assert tap.is_announced_only
        assert tap.response_id == "r"
        tap.feed(event({"type": "response.output_item.added"}))
        assert not tap.is_announced_only

    @pytest.mark.parametrize("other", [b": ping\n\n", b"data: {oops\n\n"])
    def test_what_is_no_announcement_is_for_the_client(self, other: bytes) -> None:
        _, tap = tapped(Dialect.RESPONSES, [event({"type": "response.created"}), other])
        assert not tap.is_announced_only
        assert not tapped(Dialect.CHAT, [other])[1].is_announced_only
        assert not SseTap(Dialect.CHAT, hide_usage=False).is_announced_only

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

    def test_a_message_without_a_word_or_a_reason_is_given_up(self) -> None:
        """As vLLM ends one that it aborts: this API has no word for that."""
        start, stop = self.start({"input_tokens": 1}), event({"type": "message_stop"})
        end = event({"type": "message_delta", "delta": {"stop_reason": None}})
        relayed, tap = tapped(Dialect.MESSAGES, [start, end, stop])
        assert relayed == start + end
        assert (tap.answer().is_given_up, tap.answer().is_complete) == (True, False)
        # Some servers give no reason, and others no word.
        text = event({"type": "content_block_delta", "delta": {"text": "a"}})
        for events in ([start, text, end, stop], [start, self.end(None), stop], [start, stop]):
            answer = read(Dialect.MESSAGES, *events)
            assert (answer.is_given_up, answer.is_complete) == (False, True)

    def test_an_error(self) -> None:
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
        answer = read(Dialect.MESSAGES, self.start({"input_tokens": 1}), event(error))
        assert answer.error == "busy"
        assert not answer.is_complete
