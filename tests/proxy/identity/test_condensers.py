"""Compactions that tell the history in words of their own, without any id: OpenHands, OpenCode."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import StepClass
from agentsched.proxy.identity import Evidence, Identity
from agentsched_bench.clients.acting import Wire, result, said, system, user

CONDENSER = system("You are maintaining a context-aware state summary for an agent.")
HEARD = [
    "hens.txt: twelve hens, of which two are brown",
    "cows.txt: three cows, all of them in the field",
    "barn.txt: the door is open and the light is on",
]


def program(wire: Wire, task: str, heard: list[str], *, mark: str) -> tuple[list[Any], Identity]:
    """A program that calls a tool for each of the texts that it hears."""
    prompt: list[Any] = [system(), user(task)]
    for number, text in enumerate(heard):
        call = (f"call_{mark}{number}f7e1a", "terminal", '{"command": "cat"}')
        wire.answer(wire.chat(prompt), calls=[call])
        prompt += [said("", call), result(call[0], text)]
    last = wire.chat(prompt)
    wire.answer(last, "So that is how it is with the animals.")
    return prompt, last


def condense(wire: Wire, heard: list[str]) -> Identity:
    events = "\n".join(f"<EVENT>\n  Tool: terminal\n  Result: {text}\n</EVENT>" for text in heard)
    return wire.chat([CONDENSER, user(f"Summarise these events.\n{events}")], tools=())


def test_a_condenser_belongs_to_the_program_that_it_tells_of(wire: Wire) -> None:
    _, one = program(wire, "look at the barn", HEARD, mark="a")
    program(
        wire,
        "fix the parser",
        ["parser.c: the sign is lost here", "ok, compiled well, no warnings"],
        mark="b",
    )
    found = condense(wire, HEARD)
    assert found.step_class is StepClass.COMPACTION
    assert (found.program, found.conversation) == (one.program, one.conversation)
    assert found.evidence is Evidence.CONTAINMENT


def test_what_the_agent_said_counts_too(wire: Wire) -> None:
    prompt: list[Any] = [system(), user("look at the barn")]
    thoughts = ["First I will count all of the hens.", "Then I will count all of the cows."]
    for number, text in enumerate(thoughts):
        call = (f"call_{number}c0ffee", "terminal", "{}")
        last = wire.chat(prompt)
        wire.answer(last, text, calls=[call])
        prompt += [said(text, call), result(call[0], "ok")]
    assert condense(wire, thoughts).program == last.program


def test_two_runs_of_one_task_are_not_taken_for_each_other(wire: Wire) -> None:
    programs = {program(wire, "look at the barn", HEARD, mark=mark)[1].program for mark in "ab"}
    assert condense(wire, HEARD).program not in programs


def test_of_two_runs_it_is_the_one_that_heard_it_all(wire: Wire) -> None:
    _, far = program(wire, "look at the barn", HEARD, mark="a")
    program(wire, "look at the barn", HEARD[:2], mark="b")
    assert condense(wire, HEARD).program == far.program


def test_one_text_is_not_enough(wire: Wire) -> None:
    _, one = program(wire, "look at the barn", HEARD[:1], mark="a")
    assert condense(wire, HEARD[:1]).program != one.program


def test_another_tenant_is_not_asked(wire: Wire) -> None:
    _, one = program(wire, "look at the barn", HEARD, mark="a")
    events = "\n".join(HEARD)
    found = wire.chat([CONDENSER, user(events)], tools=(), tenant="other")
    assert found.program != one.program


@pytest.mark.parametrize("api", ["messages", "responses"])
def test_results_are_heard_in_every_dialect(wire: Wire, api: str) -> None:
    one = None
    messages: list[Any] = [user("look at the barn")]
    items: list[Any] = [{"type": "message", **user("look at the barn")}]
    for number, text in enumerate(HEARD):
        call_id = f"toolu_{number}f00d"
        if one is not None:
            wire.answer(one, calls=[(call_id, "cat", "{}")])
            use = {"type": "tool_use", "id": call_id, "name": "cat", "input": {}}
            came = {"type": "tool_result", "tool_use_id": call_id, "content": text}
            messages += [{"role": "assistant", "content": [use]}, user("")]
            messages[-1]["content"] = [came]
            items += [
                {"type": "function_call", "call_id": call_id, "name": "cat", "arguments": "{}"},
                {"type": "function_call_output", "call_id": call_id, "output": text},
            ]
        tools = [{"name": "cat", "type": "function", "input_schema": {}}]
        fields = {"messages": messages} if api == "messages" else {"input": items}
        one = wire.send({"model": "m", "max_tokens": 9, "tools": tools, **fields}, api=api)
    assert one is not None
    assert condense(wire, HEARD[1:]).program == one.program


@pytest.mark.parametrize("api", ["chat", "messages"])
def test_a_condenser_may_tell_the_history_in_its_system_prompt(wire: Wire, api: str) -> None:
    _, one = program(wire, "look at the barn", HEARD, mark="a")
    program(wire, "fix the parser", ["parser.c: the sign is lost here"], mark="b")
    told = "\n".join(f"[tool]: {text}" for text in HEARD)
    asked = f"- An llm context limit was reached when a user was in a session.\n{told}"
    task = user("Please summarize the conversation history provided in the system prompt.")
    body: dict[str, Any] = {"model": "m", "messages": [system(asked), task]}
    if api == "messages":
        body = {"model": "m", "max_tokens": 99, "system": asked, "messages": [task]}
    found = wire.send(body, api=api)
    assert found.step_class is StepClass.COMPACTION
    assert (found.program, found.conversation) == (one.program, one.conversation)


def test_a_summary_asked_for_over_the_history_is_where_it_goes_on(wire: Wire) -> None:
    prompt, last = program(wire, "look at the barn", HEARD, mark="a")
    prompt.append(said("So that is how it is with the animals."))
    asked = system("You are summarizing a conversation to preserve context for later.")
    found = wire.chat([asked, *prompt[1:], user("Summarize it all.")], tools=())
    assert (found.step_class, found.program) == (StepClass.COMPACTION, last.program)
    summary = "The hens and cows were counted, and the door of the barn is open."
    wire.answer(found, summary)
    after = wire.chat([system(), user(summary), user("and now the sheep")])
    assert (after.program, after.evidence) == (last.program, Evidence.CONTAINMENT)


@pytest.mark.parametrize("headers", [{}, {"x-session-id": "s1", "x-session-affinity": "s1"}])
def test_titles_and_summaries_under_one_id_are_not_the_conversation(
    wire: Wire, headers: dict[str, str]
) -> None:
    """As Crush does it: a title at once, which holds the task, and all under the session's id."""
    task = "look at the barn and count all of the hens in it, please"
    asked = f"Generate a concise title for the following content:\n\n{task}\n <think>\n\n</think>"
    namer = system("you will generate a short title based on the first message of a user")
    title = wire.chat([namer, user(asked)], tools=(), headers=headers)
    call = ("call_f00dfeedf00d", "bash", "{}")
    first = wire.chat([system(), user(task)], headers=headers)
    wire.answer(first, "", [call])
    wire.answer(title, "Hens in the barn")
    history = [user(task), said("", call), result(call[0], "twelve hens")]
    second = wire.chat([system(), *history], headers=headers)
    wire.answer(second, "There are twelve hens in the barn, and two of them are brown.")
    assert title.step_class is StepClass.AUXILIARY
    assert title.conversation != first.conversation
    assert {title.program, first.program, second.program} == {first.program}
    assert (first.conversation, second.step) == (second.conversation, 2)


def test_a_summary_that_langchain_asks_for_belongs_to_the_agent(wire: Wire) -> None:
    """Its only message tells the history again; deepagents do it of themselves."""
    _, one = program(wire, "look at the barn", HEARD, mark="a")
    told = "\n".join(["Human: look at the barn", *(f"Tool: {text}" for text in HEARD)])
    objective = (
        "Your sole objective in this task is to extract the highest quality/most relevant context"
        " from the conversation history below."
    )
    found = wire.chat([user(f"<role>\nx\n</role>\n\n{objective}\n\n<messages>\n{told}")], tools=())
    assert found.step_class is StepClass.COMPACTION
    assert (found.program, found.conversation) == (one.program, one.conversation)
