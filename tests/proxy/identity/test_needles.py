"""Texts that are looked for: what is kept of them, where they are found, and for how long."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.model import ConversationId, Instant, Nanos, ProgramId, TenantId
from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.identity.needles import (
    Hay,
    KeptNeedle,
    Needle,
    NeedleKind,
    Needles,
    answer_of,
    hay_of,
    heard_of,
    is_handoff,
    kept,
    quote_of,
    spawns_of,
    summary_of,
    title_of,
)
from agentsched.proxy.identity.records import Book, Conversation, Program, Turn
from agentsched.proxy.identity.traces import Tracer
from agentsched.proxy.request import Dialect, ParsedRequest
from agentsched.proxy.wire import parse_request
from agentsched_bench.clients.acting import result, said, user

TRACER = Tracer(secret=7)
TASK = "Find every caller of the function and list them"


def turn(program: str = "p") -> Turn:
    book = Book(name=TenantId("t"), needles_max=9)
    owner = Program(program=ProgramId(program), book=book, is_declared=False)
    talk = Conversation(
        program=owner, conversation=ConversationId(program), thread="", head=b"head"
    )
    return Turn(conversation=talk, prompt=b"prompt", head=b"head", at=Instant(0))


def needle(
    kind: NeedleKind, text: str, *, at: int = 0, of: Turn | None = None, is_traced: bool = False
) -> Needle:
    """The text itself, or only its trace, as after a restart."""
    whole = Needle(kind=kind, text=text, turn=of or turn(), at=Instant(at))
    return kept(whole, TRACER).needle(whole.turn, -1) if is_traced else whole


def chat(*messages: Any) -> ParsedRequest:
    body = json.dumps({"model": "m", "messages": messages})
    return parse_request(Dialect.CHAT, body.encode())


def hay(*messages: Any) -> Hay:
    return hay_of(chat(*messages), first=b"\1\2", tracer=TRACER)


class TestNeedles:
    def test_of_too_many_the_oldest_goes_with_what_was_kept_of_it(self) -> None:
        needles, turns = Needles(size=2), [turn(name) for name in "abc"]
        for owner in turns:
            owner.traces = (KeptNeedle(NeedleKind.ANSWER),)
            needles.add(needle(NeedleKind.ANSWER, TASK, of=owner))
        assert len(needles) == 2
        assert [bool(owner.traces) for owner in turns] == [False, True, True]

    def test_they_expire_by_age(self) -> None:
        needles, old, young = Needles(size=9), turn("a"), turn("b")
        for owner, at in ((old, 10), (young, 20)):
            owner.traces = (KeptNeedle(NeedleKind.ANSWER),)
            needles.add(needle(NeedleKind.ANSWER, TASK, at=at, of=owner))
        needles.expire(now=Instant(15), span=Nanos(5))
        assert len(needles) == 2
        assert [n.at for n in needles.find(hay(user(TASK)), now=Instant(25), span=Nanos(5))] == [20]
        needles.expire(now=Instant(16), span=Nanos(5))
        assert (len(needles), old.traces, len(young.traces)) == (1, (), 1)
        needles.expire(now=Instant(99), span=Nanos(5))
        assert len(needles) == 0

    def test_a_programs_are_forgotten_with_it(self) -> None:
        needles, mine, other = Needles(size=9), turn("a"), turn("b")
        for owner in (mine, other, mine):
            needles.add(needle(NeedleKind.ANSWER, TASK, of=owner))
        needles.forget_program(mine.conversation.program)
        [left] = needles.find(hay(user(TASK)), now=Instant(0), span=Nanos(1))
        assert left.turn is other

    def test_that_it_was_found_is_kept_too(self) -> None:
        owner = turn()
        found = needle(NeedleKind.ANSWER, TASK, of=owner)
        owner.traces = (kept(found, TRACER), kept(found, TRACER))
        found.place = 1
        found.use()
        assert [trace.is_used for trace in owner.traces] == [False, True]
        found.place = 5  # its turn keeps nothing of it any more
        found.use()
        assert len(owner.traces) == 2


class TestWords:
    @pytest.mark.parametrize(
        ("text", "word"),
        [
            ("Find every caller of it", "caller"),
            ("go on", ""),
            ("one", ""),
            ("", ""),
            ("a b\tc", "b"),
        ],
    )
    def test_a_needle_is_told_by_a_word_inside_it(self, text: str, word: str) -> None:
        assert needle(NeedleKind.ANSWER, text).word == word

    @given(
        text=st.text("ab \n\u00a0\u2028", min_size=1, max_size=8),
        around=st.tuples(*[st.text("ab \n\u00a0\u2028", max_size=12)] * 2),
        is_inside=st.booleans(),
    )
    def test_what_holds_the_text_holds_its_word(
        self, text: str, around: tuple[str, str], is_inside: bool
    ) -> None:
        """The shortcut finds what a plain search finds, wherever its text begins and ends."""
        heard = "-" + around[0] + (text if is_inside else "") + around[1]
        assert hay(user(heard)).holds(needle(NeedleKind.ANSWER, text)) == (text in heard)


@pytest.mark.parametrize("is_traced", [False, True])
class TestHay:
    def test_a_task_is_found_inside_what_a_user_says(self, *, is_traced: bool) -> None:
        spawn = needle(NeedleKind.SPAWN, TASK, is_traced=is_traced)
        assert hay(user(f"You are a helper. {TASK}. Be brief.")).holds(spawn)
        assert not hay(said(TASK), user("and now?")).holds(spawn)
        assert not hay(user(TASK[:30])).holds(spawn)

    def test_a_short_task_must_be_all_that_is_said(self, *, is_traced: bool) -> None:
        spawn = needle(NeedleKind.SPAWN, "go on please", is_traced=is_traced)
        assert hay(user("go on please")).holds(spawn)
        assert not hay(user("Please go on please.")).holds(spawn)

    def test_answers_are_found_anywhere(self, *, is_traced: bool) -> None:
        answer = needle(NeedleKind.ANSWER, TASK, is_traced=is_traced)
        first = hay(user("x"), said(f"> {TASK}"), user("y"))
        assert first.holds(answer)
        assert first.is_said(answer)
        assert not first.is_heard(answer)
        later = hay(user("x"), said("z"), user(TASK))
        assert later.is_heard(answer)
        assert not later.is_said(answer)
        assert not hay(user(TASK)).is_heard(answer)  # the first message is nobody's report

    def test_a_handoff_is_the_hash_of_a_first_message(self, *, is_traced: bool) -> None:
        found = needle(NeedleKind.HANDOFF, b"\1\2".hex(), is_traced=is_traced)
        assert hay(user("x")).holds(found)
        assert not hay_of(chat(user("x")), first=b"\3").holds(found)

    def test_a_title_is_asked_for_with_the_users_words(self, *, is_traced: bool) -> None:
        title = needle(NeedleKind.TITLE, "fix the bug in the parser", is_traced=is_traced)
        assert hay(user("fix the bug in the parser")).holds(title)
        assert hay(user("'fix the bug in the parser'")).holds(title)
        assert not hay(user("fix another bug")).holds(title)
        assert not hay(said("fix the bug in the parser")).holds(title)
        # Part of them tells enough while the words themselves are there.
        assert hay(user("bug in the parser")).holds(title) is not is_traced
        assert not hay(user("the bug")).holds(title)


def test_without_a_tracer_traces_are_found_nowhere() -> None:
    blind = hay_of(chat(user(TASK)), first=b"")
    assert not blind.holds(needle(NeedleKind.ANSWER, TASK, is_traced=True))
    assert not blind.holds(needle(NeedleKind.SPAWN, "go on please", is_traced=True))
    assert blind.holds(needle(NeedleKind.ANSWER, TASK))


def test_what_is_no_text_of_a_user_or_an_assistant_is_no_hay() -> None:
    blocks = [{"type": "text", "text": "one"}, "two", 5, {"type": "image"}, {"text": 7}]
    read = hay({"role": "user", "content": blocks}, {"role": "tool", "content": "three"}, 5, None)
    held = [needle(NeedleKind.QUOTE, text) for text in ("one\ntwo", "three")]
    assert [read.holds(n) for n in held] == [True, False]
    assert hay("alone").last_user == "alone"
    broken = ParsedRequest(
        dialect=Dialect.CHAT,
        body=b"",
        messages=tuple(chat(user("a")).messages) + tuple(parse_broken()),
    )
    assert hay_of(broken, first=b"").last_user == "a"


def parse_broken() -> tuple[Any, ...]:
    body = b'{"model":"m","messages":[{"role":"user","content":1e999}]}'
    return parse_request(Dialect.CHAT, body).messages


def test_a_long_prompt_is_read_as_far_as_it_pays() -> None:
    long = [user("x" * 40_000), user("y" * 40_000), user("behind it all")]
    assert hay(*long).last_user == "y" * 40_000


@pytest.mark.parametrize(
    ("name", "arguments", "found"),
    [
        ("Task", {"prompt": " look at it "}, [("look at it", True)]),
        ("Task", {"prompt": "short"}, []),
        ("run", {"prompt": "look at it"}, []),
        ("run", {"prompt": TASK}, [(TASK, False)]),
        ("Task", {"prompt": 5, "description": TASK}, [(TASK, True)]),
        ("Task", {"path": TASK}, []),
        ("Task", [TASK], []),
        ("Task", {"prompt": "x" * 1_000}, [("x" * 240, True)]),
    ],
)
def test_what_a_sub_agent_may_be_told(name: str, arguments: Any, found: Any) -> None:
    call = AnsweredCall(call_id="c", name=name, arguments=json.dumps(arguments))
    assert spawns_of(call) == found


def test_arguments_that_are_no_json_spawn_nobody() -> None:
    assert spawns_of(AnsweredCall(call_id="c", name="Task", arguments="{cut")) == []


def test_short_forms_of_what_was_said() -> None:
    assert summary_of("so <summary>\nThe bug is in the parser.\n- x\n</summary> end") == (
        "The bug is in the parser."
    )
    assert summary_of("too short") == ""
    assert answer_of(" Done it. ") == "Done it."
    assert answer_of("no") == ""
    assert answer_of("a line\n" + "b" * 300) == "b" * 240
    assert quote_of("x" * 23) == ""
    assert quote_of(" " + "x" * 24) == "x" * 24
    assert title_of(hay(user('<session>"fix it"</session>'))) == "fix it"
    assert title_of(hay(user("“fix it”"))) == "fix it"
    asked = "Generate a concise title for the following content:"
    assert title_of(hay(user(f"{asked}\n\nfix it\nsoon\n <think>\n\n</think>"))) == "fix it\nsoon"
    assert title_of(hay(user("fix the title:\n\n"))) == "fix the title:"
    assert title_of(hay()) == ""
    calls = tuple(AnsweredCall(call_id="c", name=n, arguments="") for n in ("ls", "hand_off"))
    assert is_handoff(Answer(calls=calls))
    assert not is_handoff(Answer(calls=calls[:1]))


@pytest.mark.parametrize(
    "text",
    [
        "<" + "a" * 32_000 + ">" + "b" * 33_000,
        "<" + "a" * 65_000,
        "Give it a title:\na" + " " * 65_000 + "b",
        "Give it a title:\n" + "<think> " * 8_000 + "b",
    ],
    ids=["tag", "name", "blanks", "thoughts"],
)
def test_no_text_keeps_a_title_busy(text: str) -> None:
    asked = hay(user(text))
    began = time.process_time()
    assert title_of(asked)
    assert time.process_time() - began < 1.0  # some milliseconds; what is tried twice took 4 to 20


def test_a_title_is_wrapped_by_a_whole_name() -> None:
    assert title_of(hay(user('<chat id="5">fix it</chat>'))) == "fix it"
    assert title_of(hay(user("<x:chat>fix it</x>"))) == "fix it"
    assert title_of(hay(user("<chats>fix it</chat>"))) == "<chats>fix it</chat>"


LONG = "the tool said something long enough"


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([user("x"), result("c1", LONG)], [LONG]),
        ([result("c1", "short"), result("c2", LONG)], [LONG]),
        # What stands before the last answer was heard before.
        ([result("c1", LONG + " 1"), said("so"), result("c2", LONG + " 2")], [LONG + " 2"]),
        ([result("c1", LONG), user("and?")], []),
        ([{"type": "function_call_output", "call_id": "c", "output": LONG}], [LONG]),
        (
            [
                {
                    "role": "user",
                    "content": [
                        "and",
                        {"type": "tool_result", "content": [{"type": "text", "text": LONG}, 5]},
                        {"type": "tool_result", "content": {"a": 1}},
                        {"type": "text", "text": "go on"},
                    ],
                }
            ],
            [LONG],
        ),
        # One that is too large to be read is passed over, those beside it are not.
        ([result("c1", LONG), result("c2", "x" * 70_000)], [LONG]),
        (
            [result(f"c{n}", f"{n} {LONG}") for n in range(9)],
            [f"{n} {LONG}" for n in range(8, 0, -1)],
        ),
        ([5], []),
    ],
)
def test_what_tools_said_last(messages: list[Any], found: list[str]) -> None:
    assert heard_of(chat(*messages)) == found


def test_what_cannot_be_read_ends_the_hearing() -> None:
    request = ParsedRequest(
        dialect=Dialect.CHAT,
        body=b"",
        messages=chat(result("c1", LONG)).messages + parse_broken(),
    )
    assert heard_of(request) == []
