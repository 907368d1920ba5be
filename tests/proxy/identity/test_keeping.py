"""Programs that outlive the process: known again after a restart, with ids and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentsched.model import Instant, Lineage, Nanos, StepId
from agentsched.model.time import MINUTE
from agentsched.proxy.identity import Evidence, IdentityLimits
from agentsched.proxy.identity.keeping import KeptIndex
from agentsched_bench.clients.acting import Wire, result, said, system, user
from agentsched_bench.clients.evaluate import evaluate
from agentsched_bench.clients.restarting import Disk

CLIENTS = Path(__file__).parents[3].parent / "shared" / "clients"
LONG = "I looked at the parser and the bug is in the second branch, where the sign is lost."


@pytest.fixture
def disk() -> Disk:
    return Disk(secret=42)


@pytest.fixture
def wire(disk: Disk) -> Wire:
    wire = Wire()
    wire.index = disk.start()
    return wire


def restart(wire: Wire, disk: Disk) -> dict[int, StepId]:
    wire.seconds += 5
    wire.index, unanswered = disk.restart(now=wire.now)
    return unanswered


def test_a_chat_without_ids_goes_on(wire: Wire, disk: Disk) -> None:
    prompt = [system(), user("fix the parser")]
    first = wire.chat(prompt)
    wire.answer(first, calls=[("call_a8f3e2", "bash", '{"cmd": "ls"}')])
    restart(wire, disk)
    prompt += [said("", ("call_a8f3e2", "bash", '{"cmd":"ls"}')), result("call_a8f3e2")]
    second = wire.chat(prompt)
    assert (second.program, second.conversation) == (first.program, first.conversation)
    assert (second.step, second.lineage) == (2, Lineage.EXTENDS)
    assert second.evidence is Evidence.CALL_ID
    wire.answer(second, LONG)
    restart(wire, disk)
    third = wire.chat([*prompt, said(LONG), user("and now the tests")])
    assert (third.program, third.step) == (first.program, 3)


def test_prefixes_have_the_names_that_engines_hold(wire: Wire, disk: Disk) -> None:
    prompt = [system(), user("fix the parser")]
    first = wire.chat(prompt)
    wire.answer(first, LONG)
    restart(wire, disk)
    second = wire.chat([*prompt, said(LONG), user("more")])
    assert {p.prefix for p in first.prefixes} <= {p.prefix for p in second.prefixes}


@pytest.mark.parametrize(
    ("headers", "evidence"),
    [
        ({"x-agentsched-program": "run-7"}, Evidence.OURS),
        ({"x-claude-code-session-id": "7c9e6679-7425-40de"}, Evidence.NATIVE),
        ({"x-session-id": "s-1"}, Evidence.SESSION_ID),
    ],
)
def test_named_programs_go_on(
    wire: Wire, disk: Disk, headers: dict[str, str], evidence: Evidence
) -> None:
    first = wire.chat([user("a")], headers=headers)
    wire.answer(first, LONG)
    restart(wire, disk)
    second = wire.chat([user("a"), said(LONG), user("b")], headers=headers)
    assert first.evidence is second.evidence is evidence
    assert (second.program, second.conversation, second.step) == (
        first.program,
        first.conversation,
        2,
    )


def test_a_response_id_is_known_again(wire: Wire, disk: Disk) -> None:
    first = wire.send({"model": "m", "input": "hello"}, api="responses")
    wire.answer(first, LONG, response_id="resp_1")
    restart(wire, disk)
    body = {"model": "m", "input": "more", "previous_response_id": "resp_1"}
    second = wire.send(body, api="responses")
    assert (second.program, second.step) == (first.program, 2)
    assert second.evidence is Evidence.RESPONSE_ID


def test_messages_and_completions_go_on(wire: Wire, disk: Disk) -> None:
    asked: list[Any] = [user("hello there")]
    first = wire.send({"model": "m", "max_tokens": 9, "messages": asked}, api="messages")
    wire.answer(first, LONG)
    text = "Once upon a time there was a parser. " * 40
    other = wire.send({"model": "m", "prompt": text}, api="completions")
    wire.answer(other, " It had a bug.")
    restart(wire, disk)
    asked += [said(LONG), user("go on")]
    second = wire.send({"model": "m", "max_tokens": 9, "messages": asked}, api="messages")
    assert second.program == first.program
    again = wire.send({"model": "m", "prompt": text + " It had a bug. Then"}, api="completions")
    assert again.program == other.program != first.program


def test_equal_first_prompts_are_not_merged_by_a_restart(wire: Wire, disk: Disk) -> None:
    prompt = [system(), user("fix it")]
    first = wire.chat(prompt)
    wire.answer(first, LONG)
    restart(wire, disk)
    second = wire.chat(prompt)
    assert second.program != first.program
    wire.answer(second, "Another answer, of more than the forty-eight signs it takes.")
    restart(wire, disk)
    assert wire.chat([*prompt, said(LONG), user("x")]).program == first.program


def test_names_are_never_given_twice(wire: Wire, disk: Disk) -> None:
    seen = set()
    for number in range(4):
        identity = wire.chat([user(f"task {number}")])
        wire.answer(identity, LONG)
        seen.add(identity.program)
        restart(wire, disk)
    assert len(seen) == 4


def test_nor_by_a_replica_that_started_with_a_clock_behind(disk: Disk) -> None:
    ahead, behind = Wire(), Wire()
    ahead.index = KeptIndex(secret=42, keep=disk.keep, first_handle=5_000)
    ahead.answer(ahead.chat([user("a task")]), LONG)
    behind.index = KeptIndex(secret=42, keep=disk.keep, first_handle=1_000)
    behind.index.bring_back([d for _, d in sorted(disk.kept.items())], now=behind.now)
    ahead.chat([user("named")], headers={"x-agentsched-program": "p"})  # takes one handle, not two
    names = [wire.chat([user("a task of its own")]) for wire in (ahead, behind) for _ in range(3)]
    assert len({name.program for name in names}) == 6
    assert len({name.turn for name in names}) == 6
    assert max(name.turn for name in names) < 2**62


def test_a_request_without_an_answer_is_retried(wire: Wire, disk: Disk) -> None:
    prompt = [system(), user("fix the parser")]
    first = wire.chat(prompt)
    disk.steps[first.turn] = "step-1"
    wire.index._keep(wire.index._programs[first.program].turns[-1])  # type: ignore[attr-defined]
    unanswered = restart(wire, disk)
    assert unanswered == {first.turn: StepId("step-1")}
    again = wire.chat(prompt)
    assert again.is_retry
    assert (again.program, again.step, again.retries) == (first.program, 1, first.turn)
    # A second restart does not bring back what was asked again.
    restart(wire, disk)
    third = wire.chat(prompt)
    assert third.retries == again.turn


def test_an_answered_request_is_not_retried(wire: Wire, disk: Disk) -> None:
    identity = wire.chat([user("a")])
    wire.answer(identity, LONG)
    assert restart(wire, disk) == {}


def test_an_abandoned_turn_frees_the_one_before(wire: Wire, disk: Disk) -> None:
    prompt = [system(), user("fix")]
    first = wire.chat(prompt)
    wire.answer(first, LONG)
    second = wire.chat([*prompt, said(LONG), user("no, wrong")])
    wire.abandon(second)
    restart(wire, disk)
    third = wire.chat([*prompt, said(LONG), user("something else")])
    assert (third.program, third.conversation) == (first.program, first.conversation)
    assert third.lineage is Lineage.EXTENDS


@pytest.mark.parametrize("end", ["gone", "cut", "unknown"])
@pytest.mark.parametrize("restarts", [1, 2])
def test_what_is_asked_instead_goes_on_after_a_restart(
    wire: Wire, disk: Disk, end: str, restarts: int
) -> None:
    told = [system(), user("fix"), said(LONG)]
    first = wire.chat(told[:2])
    wire.answer(first, LONG)
    second = wire.chat([*told, user("no, wrong")])
    if end == "gone":
        wire.abandon(second)
    elif end == "cut":
        wire.answer(second, "I sh", is_complete=False)
    for _ in range(restarts):
        restart(wire, disk)
    third = wire.chat([*told, user("something else")])
    assert (third.conversation, third.lineage) == (first.conversation, Lineage.EXTENDS)
    wire.answer(third, "Another answer, of more than the forty-eight signs it takes.")
    restart(wire, disk)
    branch = wire.chat([*told, user("a third thing")])
    assert branch.lineage is Lineage.FORKS  # by now it went on otherwise


def test_a_retry_after_a_restart_goes_on_from_where_the_first_try_did(
    wire: Wire, disk: Disk
) -> None:
    told = [system(), user("fix"), said(LONG)]
    wire.answer(wire.chat(told[:2]), LONG)
    wire.abandon(wire.chat([*told, user("no, wrong")]))
    restart(wire, disk)
    again = wire.chat([*told, user("no, wrong")])
    assert again.is_retry
    assert wire.chat([*told, user("something else")]).lineage is Lineage.FORKS
    wire.abandon(again)
    assert wire.chat([*told, user("another thing")]).lineage is Lineage.EXTENDS


def test_the_cookie_is_known_again(wire: Wire, disk: Disk) -> None:
    first = wire.chat([user("a")])
    wire.answer(first, LONG)
    cookie = wire.index.cookie(first)
    restart(wire, disk)
    second = wire.chat([user("quite another text")], headers={"x-codex-turn-state": cookie})
    assert second.program == first.program


def test_tenants_stay_apart(wire: Wire, disk: Disk) -> None:
    first = wire.chat([user("a")], tenant="one")
    wire.answer(first, calls=[("call_77aa99bb", "bash", "{}")])
    restart(wire, disk)
    history = [user("a"), said("", ("call_77aa99bb", "bash", "{}")), result("call_77aa99bb")]
    assert wire.chat(history, tenant="two").program != first.program
    assert wire.chat(history, tenant="one").program == first.program


def test_equal_programs_at_once_go_on_in_the_same_order(wire: Wire, disk: Disk) -> None:
    prompt = [system(), user("fix the bug")]
    begun = [wire.chat(prompt) for _ in range(3)]
    for run in (begun[1], begun[0], begun[2]):
        wire.answer(run, "What bug?")
    restart(wire, disk)
    told = [*prompt, said("What bug?"), user("that one")]
    found = [wire.chat(told).program for _ in range(3)]
    assert found == [begun[1].program, begun[0].program, begun[2].program]


@pytest.mark.parametrize("kept", ["apart", "the answer alone"])
def test_an_answer_that_its_prompt_began_goes_on(wire: Wire, disk: Disk, kept: str) -> None:
    prompt = [system(), user("fix the bug")]
    first = wire.chat([*prompt, said("Thought: ")])
    wire.answer(first, "which one?")
    restart(wire, disk)
    begun = [said("Thought: ")] if kept == "apart" else []
    second = wire.chat([*prompt, *begun, said("which one?"), user("that one")])
    assert (second.conversation, second.lineage) == (first.conversation, Lineage.EXTENDS)
    book = wire.index._books[first.tenant]
    assert wire.index.forget(first.program)
    assert not book.points


def test_an_answer_that_its_client_shortened_goes_on(wire: Wire, disk: Disk) -> None:
    prompt = [system(), user("fix the bug that is told of below. " * 40)]
    first = wire.chat(prompt)
    wire.answer(first, LONG * 3)
    restart(wire, disk)
    second = wire.chat([*prompt, said((LONG * 3)[:100]), user("go on")])
    assert (second.conversation, second.lineage) == (first.conversation, Lineage.EXTENDS)


def test_no_text_is_kept(wire: Wire, disk: Disk) -> None:
    secret, answer = "the launch code is 0000", "so it is zero zero zero zero, I see"
    identity = wire.chat([system(secret), user(secret * 3)])
    wire.answer(identity, answer, calls=[("call_9", "bash", '{"cmd": "launch it now"}')])
    text = wire.send({"model": "m", "prompt": secret * 90}, api="completions")
    wire.answer(text, answer)
    everything = b"".join(disk.kept.values())
    for words in (b"launch", b"code is", b"zero zero", b"0000"):
        assert words not in everything


def test_limits_hold_while_programs_come_back(disk: Disk) -> None:
    wire = Wire()
    wire.index = disk.start()
    for number in range(8):
        wire.answer(wire.chat([user(f"task {number}")]), LONG)
    index = disk.start(IdentityLimits(programs_max=3))
    index.bring_back([d for _, d in sorted(disk.kept.items())], now=wire.now)
    assert len(index) == 3
    index.expire(now=Instant(wire.now + Nanos(120 * MINUTE)))
    assert len(index) == index.statistics().turns == 0


def test_what_was_refused_before_a_restart_goes_first_after_it(disk: Disk) -> None:
    wire = Wire()
    wire.index = disk.start()
    served = wire.chat([user("a task")])
    wire.answer(served, LONG)
    refused = wire.chat([user("another")])
    wire.abandon(refused)
    index = wire.index = disk.start(IdentityLimits(programs_max=2))
    index.bring_back([d for _, d in sorted(disk.kept.items())], now=wire.now)
    wire.chat([user("a third")])
    assert (served.program in index, refused.program in index) == (True, False)


#: How answers may come back changed, and equal prompts asked for at once; an origin; traces.
@pytest.mark.parametrize("fields_more", [3, 4, 5])
def test_turns_that_an_earlier_version_kept_come_back(
    wire: Wire, disk: Disk, fields_more: int
) -> None:
    first = wire.chat([user("a")])
    wire.answer(first, LONG)
    for handle, data in disk.kept.items():
        fields = msgspec.msgpack.decode(data)
        disk.kept[handle] = msgspec.msgpack.encode(fields[:-fields_more])
    restart(wire, disk)
    assert wire.chat([user("a"), said(LONG), user("b")]).program == first.program


def test_bytes_of_another_version_are_left_out(disk: Disk) -> None:
    index = disk.start()
    assert index.bring_back([b"", b"\x01", b"not msgpack"], now=Instant(0)) == {}
    assert len(index) == 0


def spawn(task: str) -> tuple[str, str, str]:
    return ("toolu_01XyZabc", "Task", json.dumps({"description": "count", "prompt": task}))


def test_a_sub_agent_that_was_called_for_before_starts_after(wire: Wire, disk: Disk) -> None:
    task = "Count the hens in the yard, and report their number."
    parent = wire.chat([system(), user("look at the barn")])
    wire.answer(parent, calls=[spawn(task)])
    restart(wire, disk)
    helper = system("You are a helper.")
    stranger = wire.chat([helper, user("Count the cows in the field.")])
    child = wire.chat([helper, user(f"<task>{task}</task> Be brief.")], tools=("read",))
    assert stranger.program != parent.program == child.program
    assert (child.evidence, child.lineage) == (Evidence.CONTAINMENT, Lineage.SPAWNED)
    assert child.parent_conversation == parent.conversation


def test_two_programs_that_call_for_the_same_stay_apart(wire: Wire, disk: Disk) -> None:
    task = "Count the hens in the yard, and report their number."
    for barn in ("one", "two"):
        parent = wire.chat([system(), user(f"look at barn {barn}")])
        wire.answer(parent, calls=[(f"toolu_01Xy{barn}9f", "Task", json.dumps({"prompt": task}))])
    restart(wire, disk)
    child = wire.chat([system("You are a helper."), user(task)], tools=("read",))
    assert child.evidence is Evidence.NONE


def test_a_helper_that_came_before_is_not_waited_for(wire: Wire, disk: Disk) -> None:
    """It was found: of two that called for the same, the other one is meant now."""
    task, helper = "Count the hens in the yard, and report their number.", system("A helper.")
    parents = []
    for barn in ("one", "two"):
        parent = wire.chat([system(), user(f"look at barn {barn}")])
        wire.answer(parent, calls=[(f"toolu_01Xy{barn}9f", "Task", json.dumps({"prompt": task}))])
        parents.append(parent.program)
        if barn == "one":
            child = wire.chat([helper, user(task)], tools=("read",))
            assert child.program == parent.program
            wire.answer(child, LONG)
    restart(wire, disk)
    assert wire.chat([helper, user(task)], tools=("read",)).program == parents[1]


def test_a_summary_is_found_after_a_restart(wire: Wire, disk: Disk) -> None:
    prompt = [system(), user("fix the parser")]
    first = wire.chat(prompt)
    wire.answer(first, LONG)
    ask = "Your task is to create a detailed summary of the conversation so far."
    compaction = wire.chat([*prompt, said(LONG), user(ask)])
    wire.answer(compaction, "<summary>The sign was lost in the second branch.</summary>")
    restart(wire, disk)
    goes_on = "Continued. Summary: The sign was lost in the second branch.\nGo on."
    second = wire.chat([system(), user(goes_on)])
    assert (second.program, second.lineage) == (first.program, Lineage.COMPACTS)
    restart(wire, disk)
    # What was found once does not take another program's beginning for its own.
    assert wire.chat([system(), user(goes_on + " Please.")]).program != first.program


def test_a_title_comes_before_its_program(wire: Wire, disk: Disk) -> None:
    task = "look at the red barn, " * 20
    asked = f"<session>\n{task}\n</session>\n\nA title, please."
    title = wire.chat([system("You are a title generator."), user(asked)], tools=())
    restart(wire, disk)
    other = wire.chat([system(), user("look at the green barn")])
    assert other.program != title.program
    assert wire.chat([system(), user(task)]).program == title.program


def test_what_was_called_for_long_ago_is_not_looked_for(wire: Wire, disk: Disk) -> None:
    task = "Count the hens in the yard, and report their number."
    parent = wire.chat([system(), user("look at the barn")])
    wire.answer(parent, calls=[spawn(task)])
    wire.seconds += 31 * 60
    restart(wire, disk)
    child = wire.chat([system("You are a helper."), user(task)], tools=("read",))
    assert child.program != parent.program


@pytest.mark.slow
@pytest.mark.traces
@pytest.mark.skipif(not CLIENTS.is_dir(), reason="the recorded clients are not beside us")
@pytest.mark.parametrize("with_ids", [True, False])
def test_recorded_clients_are_known_though_the_proxy_restarts_before_each_request(
    with_ids: bool,
) -> None:
    kept = evaluate(CLIENTS, with_ids=with_ids, restarts=True)
    assert sum(score.requests for score in kept) > 500
    # Nothing is lost by it: not a step, not a sub-agent, not a class.
    assert kept == evaluate(CLIENTS, with_ids=with_ids)
