"""What a request is for: read from its dialect, its declared format, its size and its phrases."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import Lineage, StepClass, TenantId
from agentsched_bench.clients.acting import PATHS, Wire, said, system, user
from agentsched_bench.clients.readers import parse

HEAD = [system("You help."), user("Name this")]


def schema(*names: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}}


def chat_format(*names: str) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema(*names)}}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": chat_format("title")},
        {"output_config": {"format": {"type": "json_schema", "schema": schema("title")}}},
        {"text": {"format": {"type": "json_schema", "schema": schema("title")}}},
        {"output_format": schema("title")},
        # What stands before the schema has no properties itself.
        {"output_format": {"about": {"hints": {}}, "list": ["title"], "schema": schema("title")}},
    ],
)
def test_who_asks_for_a_title_alone_is_auxiliary(wire: Wire, fields: dict[str, Any]) -> None:
    assert wire.chat(HEAD, tools=(), **fields).step_class is StepClass.AUXILIARY


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "json_object"}},
        {"response_format": chat_format("title", "body")},
        {"response_format": chat_format("name")},
        # The word alone is no property, and a list is no schema.
        {"response_format": {"title": "title"}},
        {"response_format": [schema("title")]},
        {"response_format": "title"},
        {"response_format": {"title": "title", "properties": ["title"]}},
        # No client's title call comes with so much beside it.
        {"response_format": chat_format("title") | {"about": "x" * 2_048}},
    ],
)
def test_other_formats_are_work(wire: Wire, fields: dict[str, Any]) -> None:
    assert wire.chat(HEAD, tools=(), **fields).step_class is StepClass.STEP


def test_a_title_format_over_tools_or_a_history_is_work(wire: Wire) -> None:
    asked = {"response_format": chat_format("title")}
    assert wire.chat(HEAD, tools=("bash",), **asked).step_class is StepClass.STEP
    talk = [*HEAD, said("It is a tree."), user("And now?")]
    assert wire.chat(talk, tools=(), **asked).step_class is StepClass.STEP


def test_a_title_anywhere_but_in_a_schema_is_work(wire: Wire) -> None:
    inside: Any = {}
    for _ in range(200):
        inside = {"a": inside}
    for value in ({"title": inside}, [[["title"]]], {"a": {"b": {"title": 1}}, "c": 2}):
        found = wire.chat(HEAD, tools=(), response_format=value)
        assert found.step_class is StepClass.STEP


def test_a_format_that_cannot_be_read_is_work(wire: Wire) -> None:
    body = (
        b'{"model": "m", "messages": [{"role": "user", "content": "hi"}],'
        b' "response_format": {"title": 1e999, "properties": {"title": {}}}}'
    )
    request = parse(PATHS["chat"], body)
    found = wire.index.identify(request, {}, tenant=TenantId("t"), now=wire.now)
    assert "response_format" in request.fields
    assert found.step_class is StepClass.STEP


@pytest.mark.parametrize(
    ("fields", "content", "step_class"),
    [
        ({"max_tokens": 1}, "ping", StepClass.PROBE),
        ({"max_tokens": 2}, "ping", StepClass.STEP),
        ({}, "ping", StepClass.STEP),
        ({"max_tokens": 1}, "p" * 1_000, StepClass.STEP),
    ],
)
def test_a_probe_asks_for_one_token_of_a_few_words(
    wire: Wire, fields: dict[str, Any], content: str, step_class: StepClass
) -> None:
    assert wire.chat([user(content)], tools=(), **fields).step_class is step_class


def test_one_token_of_a_history_or_with_tools_is_no_probe(wire: Wire) -> None:
    talk = [user("hi"), said("Hello."), user("again")]
    assert wire.chat(talk, tools=(), max_tokens=1).step_class is StepClass.STEP
    assert wire.chat([user("hi")], max_tokens=1).step_class is StepClass.STEP


@pytest.mark.parametrize(
    ("api", "body", "step_class"),
    [
        ("count", {"model": "m", "messages": [user("hi")]}, StepClass.TOKEN_COUNT),
        ("other", {"model": "m"}, StepClass.PROBE),
    ],
)
def test_what_generates_nothing_goes_by_its_path(
    wire: Wire, api: str, body: dict[str, Any], step_class: StepClass
) -> None:
    assert wire.send(body, api=api).step_class is step_class


def test_phrases_tell_auxiliary_calls_compactions_and_sub_agents(wire: Wire) -> None:
    title = [system("You are a title generator."), user("fix the bug")]
    assert wire.chat(title, tools=()).step_class is StepClass.AUXILIARY
    assert wire.chat(title).step_class is StepClass.STEP  # whoever has tools works
    tale = [user("Please create a detailed summary of the conversation so far")]
    assert wire.chat(tale).step_class is StepClass.COMPACTION
    marked = [system("x; cc_is_subagent=true;"), user("look into it")]
    assert wire.chat(marked).step_class is StepClass.SUBAGENT


@pytest.mark.parametrize(
    "phrase",
    [
        "Generate a concise 3-7 word title for this conversation, omitting punctuation.",
        "Provide a concise, 5-word-or-less title for the conversation, in title case.",
        "Given the following... please reply with a title for the chat that is 3-4 words.",
        "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.",
        "### Task:\nGenerate 1-3 broad tags categorizing the main themes of the chat history.",
        "### Task:\nSuggest 3-5 relevant follow-up questions or prompts that the user might ask.",
    ],
)
def test_a_question_about_the_chat_itself_is_auxiliary(wire: Wire, phrase: str) -> None:
    """In the last message, over a history or alone; within a history it is nothing any more."""
    talk = [user("name a tree"), said("The oak is one of the trees that grow here.")]
    first = wire.chat(talk[:1], tools=())
    wire.answer(first, str(talk[1]["content"]))
    found = wire.chat([*talk, user(phrase)], tools=())
    assert (found.step_class, found.program) == (StepClass.AUXILIARY, first.program)
    quoting = wire.chat([user(f"{talk[1]['content']}\n\n{phrase}")], tools=())
    assert (quoting.step_class, quoting.program) == (StepClass.AUXILIARY, first.program)
    assert wire.chat([*talk, user(phrase)]).step_class is StepClass.STEP  # it has tools
    later = wire.chat([*talk, user(phrase), said("Oak"), user("and another")], tools=())
    assert later.step_class is StepClass.STEP


@pytest.mark.parametrize(
    "text", ["Suggest a title for my essay on oaks.", "Write a chat about tags and main themes."]
)
def test_work_on_titles_is_work(wire: Wire, text: str) -> None:
    assert wire.chat([user(text)], tools=()).step_class is StepClass.STEP


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        (
            "You help.",
            "<role>\nContext Extraction Assistant\n</role>\n\n<primary_objective>\nYour sole"
            " objective in this task is to extract the highest quality/most relevant context from"
            " the conversation history below.\n</primary_objective>",
        ),
        (
            "You are a specialized system component responsible for distilling chat history into a"
            " structured XML <state_snapshot>.",
            "First, reason in your scratchpad.",
        ),
        ("You are an anchored context summarization assistant for coding sessions.", "Here it is."),
        ("You help.", "Create a new anchored summary from the conversation history above."),
        ("You help.", "The <prior-summary> summarizes everything that happened before."),
        ("You help.", "Summarize the older portion of the preceding conversation. This is a task."),
        ("You are a helpful AI assistant tasked with summarizing conversations.", "Summarize it."),
        ("You help.", "You are now given a task to compact this conversation context by rules."),
    ],
)
def test_what_clients_say_when_they_compact(wire: Wire, told: str, asked: str) -> None:
    found = wire.chat([system(told), user(asked)], tools=())
    assert found.step_class is StepClass.COMPACTION


def test_goose_names_its_session(wire: Wire) -> None:
    prompt = [
        system("Reply with only a description in four words or less"),
        user("Here are the first few user messages:\nfix the bug"),
    ]
    assert wire.chat(prompt, tools=()).step_class is StepClass.AUXILIARY


@pytest.mark.parametrize("headers", [{}, {"x-claude-code-session-id": "s"}])
def test_a_guess_at_what_the_user_says_next_is_an_aside(
    wire: Wire, headers: dict[str, str]
) -> None:
    """As Claude Code makes it after each answer, over the whole history and with all its tools."""
    told = [system("You help."), user("fix the bug"), said("The bug is fixed: a sign was lost.")]
    first = wire.chat(told[:2], headers=headers)
    wire.answer(first, str(told[2]["content"]))
    asked = "[SUGGESTION MODE: Suggest what the user might naturally type next into Claude Code.]"
    guess = wire.chat([*told, user(f"{asked}\n\nFIRST: Look at it.")], headers=headers)
    wire.answer(guess, "run the tests")
    second = wire.chat([*told, user("now the tests")], headers=headers)
    assert (guess.step_class, guess.program) == (StepClass.AUXILIARY, first.program)
    assert guess.conversation != first.conversation
    assert (second.conversation, second.lineage) == (first.conversation, Lineage.EXTENDS)
    assert second.step == 2


def test_a_task_about_guesses_is_work(wire: Wire) -> None:
    asked = "Why does it send [SUGGESTION MODE: Suggest what the user might naturally type next?"
    assert wire.chat([user(asked)]).step_class is StepClass.STEP


@pytest.mark.parametrize(
    "told",
    [
        "Analyze if this message indicates a new conversation topic. If it does, give a title.",
        "Extract any file paths that this command reads or modifies. Use paths verbatim.",
        "Your task is to process Bash commands that an AI coding agent wants to run.",
        "Summarize this coding conversation in under 50 characters.",
    ],
)
def test_what_an_older_claude_code_asks_by_the_way_is_auxiliary(wire: Wire, told: str) -> None:
    """Before it sent headers, a small model was asked beside each step; its metadata says whose."""
    user_id = "user_aa_account__session_0a1b2c3d-0000-4000-8000-000000000000"
    known: dict[str, Any] = {"model": "m", "metadata": {"user_id": user_id}, "max_tokens": 512}
    tools = [{"name": "Bash", "input_schema": {"type": "object"}}]
    work = {"system": "You are Claude Code.", "messages": [user("fix the bug")], "tools": tools}
    first = wire.send(known | work, api="messages")
    wire.answer(first, "", [("toolu_0a1b", "Bash", "{}")])

    blocks = [{"type": "text", "text": text} for text in ("You are Claude Code.", told)]
    aside = wire.send(known | {"system": blocks, "messages": [user("Command: ls")]}, api="messages")

    assert (aside.step_class, aside.program) == (StepClass.AUXILIARY, first.program)
    assert aside.conversation != first.conversation
    wire.answer(aside, "none")
    asked = {"type": "tool_use", "id": "toolu_0a1b", "name": "Bash", "input": {}}
    seen = {"type": "tool_result", "tool_use_id": "toolu_0a1b", "content": "ok"}
    told_so_far = [
        user("fix the bug"),
        {"role": "assistant", "content": [asked]},
        {"role": "user", "content": [seen]},
    ]
    second = wire.send(known | work | {"messages": told_so_far}, api="messages")
    assert (second.conversation, second.lineage) == (first.conversation, Lineage.EXTENDS)
    assert second.step == first.step + 1


@pytest.mark.parametrize("tools", [(), ("respond_in_schema",)])
def test_who_speaks_next_is_no_step(wire: Wire, tools: tuple[str, ...]) -> None:
    """As Gemini's and Qwen's agents ask after an answer without calls, over the whole history."""
    told = [system("You help."), user("fix the bug"), said("I will look at the file now, then.")]
    first = wire.chat(told[:2])
    wire.answer(first, str(told[2]["content"]))
    asked = (
        "Analyze *only* the content and structure of your immediately preceding response (your last"
        " turn in the conversation history). Who should speak next?"
    )

    check = wire.chat([*told, user(asked)], tools=tools)

    assert (check.step_class, check.program) == (StepClass.AUXILIARY, first.program)
    wire.answer(check, '{"next_speaker": "model"}')
    second = wire.chat([*told, user("Please continue.")])
    assert (second.conversation, second.lineage) == (first.conversation, Lineage.EXTENDS)


def test_aiders_summary_of_its_history_is_a_compaction(wire: Wire) -> None:
    prompt = [
        system("*Briefly* summarize this partial conversation about programming."),
        user("# USER\nfix the bug\n# ASSISTANT\nDone."),
    ]
    assert wire.chat(prompt, tools=()).step_class is StepClass.COMPACTION
