"""Prompts as chains: heads, runs, answers and the texts of completions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.identity.atoms import Normaliser
from agentsched.proxy.identity.prompt import Digester, Prompt, run_data
from agentsched.proxy.identity.signs import Sign
from agentsched.proxy.request import Dialect, ParsedRequest
from agentsched.proxy.wire import parse_request
from agentsched_bench.clients.acting import result, said, user


def digester() -> Digester:
    return Digester(seed=7, messages_max=100)


def digest(dialect: Dialect, on: Digester | None = None, **body: Any) -> Prompt:
    request = parse_request(dialect, json.dumps({"model": "m", **body}).encode())
    return (on if on is not None else digester()).digest(request)


def messages(system: Any, on: Digester | None = None) -> Prompt:
    return digest(Dialect.MESSAGES, on, max_tokens=9, messages=[user("fix it")], system=system)


def test_a_system_prompt_is_its_text_however_it_is_cut() -> None:
    whole = messages("You are an agent.")
    blocks = [{"type": "text", "text": "You are "}, {"type": "text", "text": "an agent. "}]
    assert messages(blocks).head == whole.head
    assert messages("You are another.").head != whole.head
    assert messages(["You are an agent.", 5]).head == whole.head
    assert messages([{"type": "image"}]).head == messages("").head


def test_a_billing_header_that_varies_is_left_out() -> None:
    def asked(first: str) -> Prompt:
        return messages([{"type": "text", "text": first}, {"type": "text", "text": "Work."}])

    one, other = (asked(f"x-anthropic-billing-header: cch={n};") for n in "ab")
    assert one.head == other.head == messages("Work.").head
    assert asked("You are an agent.").head != one.head
    signed = asked("x-anthropic-billing-header: cc_is_subagent=true;")
    assert signed.system_signs == Sign.SUBAGENT  # it is read before it is dropped
    assert signed.head == one.head


def test_a_system_prompt_is_read_once() -> None:
    on = digester()
    phrase = "You are a title generator"
    first, second = messages(phrase, on), messages(phrase, on)
    assert first.head == second.head
    assert first.system_signs == second.system_signs == Sign.AUXILIARY
    assert len(on._systems) == 1


def test_tools_and_model_are_part_of_the_head_and_empty_tools_are_none() -> None:
    def chat(model: str = "m", **fields: Any) -> Prompt:
        return digest(Dialect.CHAT, model=model, messages=[user("a")], **fields)

    tools = [{"type": "function", "function": {"name": "bash"}}]
    plain, armed, other = chat(), chat(tools=tools), chat("other")
    assert plain.head == chat(tools=[]).head
    assert len({plain.head, armed.head, other.head}) == 3
    assert (plain.tools, armed.tools) == (0, 1)
    assert plain.end == armed.end  # the chain is that of what was said


def test_a_message_of_very_many_blocks_is_not_remembered() -> None:
    on = digester()
    few = {"role": "user", "content": [{"type": "text", "text": "x"}] * 256}
    many = {"role": "user", "content": [{"type": "text", "text": "x"}] * 257}
    first = digest(Dialect.CHAT, on, messages=[many])
    assert len(on) == 0
    assert digest(Dialect.CHAT, on, messages=[many]).end == first.end
    digest(Dialect.CHAT, on, messages=[few])
    assert len(on) == 1


def test_a_prompt_goes_on_from_its_answer_whatever_was_dropped_of_it() -> None:
    on = digester()
    before = digest(Dialect.CHAT, on, messages=[user("a")])
    calls = tuple(AnsweredCall(call_id=i, name="f", arguments="{}") for i in ("c1", "c2"))
    answer = Answer(text="Let me see.", calls=calls)
    again = said("", ("c2", "f", "{}"), ("c1", "f", ""))
    after = digest(Dialect.CHAT, on, messages=[user("a"), again])
    assert on.answer_chain(before.end, answer) == after.end
    text = digest(Dialect.CHAT, on, messages=[user("a"), said(" Done. ")])
    assert on.answer_chain(before.end, Answer(text="<think>so</think>Done.")) == text.end


@pytest.mark.parametrize("text", ["", " \n", "<think>only</think>"])
def test_an_answer_that_holds_nothing_ends_nowhere(text: str) -> None:
    assert digester().answer_chain(b"chain", Answer(text=text)) is None


def test_two_answers_in_a_row_are_both_part_of_the_chain() -> None:
    normaliser = Normaliser(seed=7)
    (one,) = normaliser.message(json.dumps(said("One.")).encode()).atoms
    (two,) = normaliser.message(json.dumps(said("Two.")).encode()).atoms
    assert run_data([one, two]) == one.digest + two.digest != run_data([two, one])
    rows = [[user("a"), said("One."), said("Two.")], [user("a"), said("Two."), said("One.")]]
    ends = {digest(Dialect.CHAT, messages=row).end for row in rows}
    assert len(ends) == 2


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("def f():", b"def f():"),
        (["def f():"], b"def f():"),
        ([1, 2, 258], b"\1\0\0\0\2\0\0\0\2\1\0\0"),
        ([], b"[]"),
        (["two", "prompts"], b'["two", "prompts"]'),
        ("", b""),
    ],
)
def test_a_completions_prompt_is_its_text(prompt: Any, text: bytes) -> None:
    body = {"model": "m", "prompt": prompt}
    found = digester().digest(parse_request(Dialect.COMPLETIONS, json.dumps(body).encode()))
    assert found.text == text
    assert found.is_first
    assert found.size == len(found.text)


def test_a_completion_that_cannot_be_read_stands_for_itself() -> None:
    request = parse_request(Dialect.COMPLETIONS, b'{"model": "m", "prompt": [1e999]}')
    assert digester().digest(request).text == b"[1e999]"
    unread = ParsedRequest(dialect=Dialect.COMPLETIONS, body=b"", messages=())
    assert digester().digest(unread).text == b""


def test_a_system_prompt_that_cannot_be_read_is_hashed_as_it_is() -> None:
    def head(number: bytes) -> bytes:
        body = b'{"model":"m","max_tokens":1,"messages":[],"system":[%s]}' % number
        request = parse_request(Dialect.MESSAGES, body)
        return digester().digest(request).head

    assert head(b"1e999") == head(b"1e999") != head(b"1e998")


PICTURE = "data:image/png;base64," + "A" * 400_000
TEXT = {"type": "text", "text": "what is this?"}


def sent(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def tool(*blocks: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "t", "content": list(blocks)}


@pytest.mark.parametrize(
    ("dialect", "message"),
    [
        (Dialect.CHAT, sent(TEXT, {"type": "image_url", "image_url": {"url": PICTURE}})),
        (Dialect.CHAT, sent(TEXT, {"type": "image_url", "image_url": {"url": "https://x/y"}})),
        (Dialect.CHAT, sent({"type": "input_audio", "input_audio": {"data": PICTURE}})),
        (
            Dialect.CHAT,
            {
                "role": "tool",
                "tool_call_id": "c",
                "content": [TEXT, {"type": "image_url", "image_url": PICTURE}],
            },
        ),
        (Dialect.MESSAGES, sent(TEXT, {"type": "image", "source": {"data": PICTURE}})),
        (Dialect.MESSAGES, sent(tool(TEXT, {"type": "image", "source": {"data": PICTURE}}))),
        (Dialect.RESPONSES, sent({"type": "input_image", "image_url": PICTURE})),
        (
            Dialect.RESPONSES,
            {
                "type": "computer_call_output",
                "call_id": "c",
                "output": {"type": "computer_screenshot", "image_url": PICTURE},
            },
        ),
    ],
)
def test_a_picture_counts_as_one_however_large(dialect: Dialect, message: Any) -> None:
    name = "input" if dialect is Dialect.RESPONSES else "messages"
    found = digest(dialect, **{name: [user("a" * 1_000), message]})
    assert 5_000 < found.size < 5_500
    assert not found.is_told
    assert found.points[-1].size == found.size


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text", "text": "x" * 10_000},
        {"type": "document", "source": {"type": "text", "data": "x" * 10_000}},
        {"type": ["image"], "url": "x" * 10_000},
        tool({"type": "text", "text": "x" * 10_000}),
    ],
)
def test_text_counts_as_it_is(block: dict[str, Any]) -> None:
    found = digest(Dialect.MESSAGES, messages=[sent(block)])
    assert found.size >= 10_000
    assert found.is_told


def test_what_an_engine_holds_already_counts_too() -> None:
    request = parse_request(
        Dialect.RESPONSES, b'{"model":"m","instructions":"be kind","input":"x"}'
    )
    alone, later = digester().digest(request), digester().digest(request, base=b"b", base_size=900)
    assert (alone.is_told, later.is_told) == (True, False)
    assert later.size == 900 + alone.size - alone.head_size


def block(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def test_blocks_end_where_their_text_would() -> None:
    image = {"type": "image", "source": {"data": "x"}}
    in_blocks = [sent(block("Fix "), block("the "), block("bug"), image, block("now"), block("!"))]
    in_one = [sent(block("Fix the bug"), image, block("now!"))]
    parts, whole = (digest(Dialect.CHAT, messages=m) for m in (in_blocks, in_one))
    assert parts.end == whole.end
    chains = [point.chain for point in parts.points]
    assert len(set(chains)) == 6
    assert [point.chain for point in whole.points] == [chains[2], chains[3], chains[5]]
    # Where a block ended before is still a place to go on from.
    for count in (1, 2):
        asked = digest(Dialect.CHAT, messages=[sent(*in_blocks[0]["content"][:count])])
        assert asked.end == chains[count - 1]
    # Two messages are two, though, and so are texts that a picture parts.
    for other in ([user("Fix the "), user("bug")], [sent(block("Fix the bugnow!"), image)]):
        assert digest(Dialect.CHAT, messages=other).end not in chains


def test_a_system_message_in_blocks_is_the_same_head() -> None:
    parts = {"role": "system", "content": [block("You are "), block("an agent.")]}
    whole = {"role": "system", "content": "You are an agent."}
    heads = {digest(Dialect.CHAT, messages=[m, user("a")]).head for m in (parts, whole)}
    assert len(heads) == 1


def test_very_many_blocks_are_joined_in_parts() -> None:
    """The text of all blocks before would be hashed for each block."""
    found = digest(Dialect.CHAT, messages=[sent(*(block(f"{n} ") for n in range(100)))])
    assert len({point.chain for point in found.points}) == 100


@pytest.mark.parametrize(
    ("told", "is_first"),
    [
        ([{"role": "system", "content": "x"}, said("Hi!"), user("fix it")], True),
        ([said("Hi!"), said("How can I help?"), user("fix it")], True),
        ([said("Hi!"), user("fix it"), said("So."), user("more")], False),
        ([user("fix it"), said("So."), user("more")], False),
        ([said("", ("c1", "ls", "{}")), result("c1"), user("more")], False),
        ([said("Hi!"), said("", ("c1", "ls", "{}")), result("c1")], False),
    ],
)
def test_a_greeting_before_the_first_words_answers_nothing(told: list[Any], is_first: bool) -> None:
    assert digest(Dialect.CHAT, messages=told).is_first is is_first
