"""Where a request belongs: each rule of placing by one small program."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from agentsched.model import ConversationId, Instant, Lineage, ProgramId, StepClass, TenantId
from agentsched.proxy.identity import Evidence
from agentsched.proxy.identity.match import Match, Relation
from agentsched.proxy.identity.native import Claim
from agentsched.proxy.identity.place import AUXILIARY, Place, place
from agentsched.proxy.identity.records import Book, Conversation, Program, Turn
from agentsched_bench.clients.acting import Wire, result, said, system, user

OLD, NEW = b"old head", b"new head"


def program(*threads: str, name: str = "p", head: bytes = OLD) -> Program:
    book = Book(name=TenantId("t"), needles_max=4)
    made = Program(program=ProgramId(name), book=book, is_declared=False)
    for number, thread in enumerate(threads):
        key = ConversationId(f"{name}#{number}")
        made.conversations[key] = Conversation(
            program=made, conversation=key, thread=thread, head=head
        )
    return made


def talk(owner: Program, number: int = 0) -> Conversation:
    return owner.conversations[ConversationId(f"{owner.id}#{number}")]


def match(found: Conversation, relation: Relation, **fields: Any) -> Match:
    turn = Turn(conversation=found, prompt=b"x", head=found.head, at=Instant(0))
    for name, value in fields.items():
        setattr(turn, name, value)
    return Match(turn, relation, Evidence.PREFIX)


def put(
    *,
    head: bytes = OLD,
    is_first: bool = False,
    step_class: StepClass = StepClass.STEP,
    claim: Claim | None = None,
    found: Match | None = None,
    owner: Program | None = None,
) -> Place:
    prompt: Any = SimpleNamespace(head=head, is_first=is_first, last_signs=0)
    return place(prompt=prompt, step_class=step_class, claim=claim, match=found, program=owner)


def claimed(root: str = "", thread: str = "", **more: Any) -> Claim:
    return Claim(evidence=Evidence.NATIVE, root=root, thread=thread, **more)


class TestDeclared:
    def test_history_of_another_program_is_a_fork_for_the_one_that_is_new(self) -> None:
        other = program("", name="q")
        at = put(claim=claimed("p"), found=match(talk(other), Relation.EXTENDS))
        assert (at.program, at.conversation, at.lineage) == (None, None, Lineage.FORKS)
        assert at.kin == "q#0"

    def test_and_nothing_to_a_program_that_has_a_history_of_its_own(self) -> None:
        mine, other = program("", head=NEW), program("", name="q")
        found = match(talk(other), Relation.EXTENDS)
        at = put(claim=claimed("p"), found=found, owner=mine)
        assert (at.program, at.conversation, at.lineage) == (mine, None, Lineage.NEW)
        # With its own system prompt it goes on in its own conversation, rewritten.
        again = put(head=NEW, claim=claimed("p"), found=found, owner=mine)
        assert (again.conversation, again.lineage) == (talk(mine), Lineage.COMPACTS)

    def test_a_new_beginning_of_a_named_thread_is_that_thread_rewritten(self) -> None:
        mine = program("main", "side")
        at = put(claim=claimed("p", "side", is_exact=True), owner=mine, is_first=True)
        assert (at.conversation, at.lineage) == (talk(mine, 1), Lineage.COMPACTS)
        new = put(claim=claimed("p", "third", is_exact=True), owner=mine)
        assert (new.conversation, new.thread, new.lineage) == (None, "third", Lineage.NEW)

    def test_a_compaction_of_a_named_program_is_of_its_main_conversation(self) -> None:
        mine = program(AUXILIARY, "", "side")
        at = put(head=NEW, step_class=StepClass.COMPACTION, claim=claimed("p"), owner=mine)
        assert (at.conversation, at.lineage) == (talk(mine, 1), Lineage.COMPACTS)

    def test_a_program_of_titles_alone_has_no_main_conversation(self) -> None:
        mine = program(AUXILIARY)
        at = put(claim=claimed("p"), owner=mine)
        assert (at.program, at.conversation, at.lineage) == (mine, None, Lineage.NEW)

    def test_an_unknown_history_goes_to_the_latest_of_its_system_prompt(self) -> None:
        mine = program("", "", "")
        talk(mine, 2).head = NEW
        assert put(claim=claimed("p"), owner=mine).conversation is talk(mine, 1)
        assert put(claim=claimed("p"), owner=mine, is_first=True).conversation is None
        assert put(claim=claimed("p"), owner=mine, head=b"third").conversation is None

    def test_a_sub_agent_names_its_parents_thread(self) -> None:
        mine = program("boss")
        kid = claimed("p", "kid", parent_thread="boss", is_exact=True, is_subagent=True)
        at = put(claim=kid, owner=mine, is_first=True)
        assert (at.lineage, at.kin, at.thread) == (Lineage.SPAWNED, "p#0", "kid")
        lost = claimed("p", "kid", parent_thread="gone", is_exact=True, is_subagent=True)
        assert put(claim=lost, owner=mine, is_first=True).kin is None

    @pytest.mark.parametrize(
        ("thread", "number", "lineage"),
        [("side", 1, Lineage.COMPACTS), ("third", None, Lineage.FORKS)],
    )
    def test_a_thread_that_took_over_what_another_said(
        self, thread: str, number: int | None, lineage: Lineage
    ) -> None:
        mine = program("main", "side")
        found = match(talk(mine), Relation.EXTENDS)
        at = put(claim=claimed("p", thread, is_exact=True), found=found, owner=mine)
        assert at.conversation is (None if number is None else talk(mine, number))
        assert (at.lineage, at.thread, at.kin) == (lineage, thread, "p#0")

    def test_a_named_thread_whose_system_prompt_changed_goes_on_rewritten(self) -> None:
        mine = program("main")
        found = match(talk(mine), Relation.EXTENDS)
        at = put(head=NEW, claim=claimed("p", "main", is_exact=True), found=found, owner=mine)
        assert (at.conversation, at.lineage) == (talk(mine), Lineage.COMPACTS)


class TestFound:
    @pytest.mark.parametrize(
        ("relation", "head", "lineage", "is_same"),
        [
            (Relation.EXTENDS, OLD, Lineage.EXTENDS, True),
            (Relation.EXTENDS, NEW, Lineage.FORKS, False),
            (Relation.REWRITES, OLD, Lineage.COMPACTS, True),
            (Relation.REWRITES, NEW, Lineage.FORKS, False),
            (Relation.SPAWNS, NEW, Lineage.SPAWNED, False),
            (Relation.JOINS, OLD, Lineage.NEW, False),
            (Relation.FORKS, OLD, Lineage.FORKS, False),
            (Relation.HANDS, NEW, Lineage.FORKS, False),
        ],
    )
    def test_each_relation(
        self, relation: Relation, head: bytes, lineage: Lineage, *, is_same: bool
    ) -> None:
        mine = program("")
        at = put(head=head, found=match(talk(mine), relation))
        assert at.program is mine
        assert (at.conversation is talk(mine), at.lineage) == (is_same, lineage)
        assert at.is_subagent is (relation is Relation.SPAWNS)

    def test_what_follows_a_compaction_is_its_conversation_under_any_head(self) -> None:
        mine = program("")
        after = match(talk(mine), Relation.REWRITES, step_class=StepClass.COMPACTION)
        assert put(head=NEW, found=after).conversation is talk(mine)

    @pytest.mark.parametrize(("head", "lineage"), [(OLD, Lineage.EXTENDS), (NEW, Lineage.FORKS)])
    def test_a_compaction_stays_in_its_conversation(self, head: bytes, lineage: Lineage) -> None:
        mine = program("")
        found = match(talk(mine), Relation.EXTENDS)
        at = put(head=head, step_class=StepClass.COMPACTION, found=found)
        assert (at.conversation, at.lineage) == (talk(mine), lineage)

    def test_a_handoff_back_finds_the_agents_own_conversation(self) -> None:
        mine = program("", "")
        talk(mine, 1).head = NEW
        at = put(head=NEW, found=match(talk(mine), Relation.EXTENDS))
        assert (at.conversation, at.lineage, at.is_handed) == (
            talk(mine, 1),
            Lineage.COMPACTS,
            True,
        )
        assert at.kin == "p#0"
        # One of a sub-agent with the same system prompt is another agent's.
        talk(mine, 1).is_subagent = True
        assert put(head=NEW, found=match(talk(mine), Relation.EXTENDS)).conversation is None

    def test_a_system_prompt_that_always_changes_hands_nothing_over(self) -> None:
        mine = program("")
        mine.heads = 4
        at = put(head=NEW, found=match(talk(mine), Relation.EXTENDS))
        assert (at.conversation, at.lineage) == (talk(mine), Lineage.COMPACTS)

    @pytest.mark.parametrize(("first", "lineage"), [(True, Lineage.NEW), (False, Lineage.EXTENDS)])
    def test_a_retry_is_where_its_first_try_was(self, first: bool, lineage: Lineage) -> None:
        mine = program("")
        at = put(head=NEW, found=match(talk(mine), Relation.RETRIES, is_first=first))
        assert (at.conversation, at.lineage, at.is_retry) == (talk(mine), lineage, True)


class TestAuxiliary:
    def test_alone_it_opens_a_program_for_the_first_step_to_join(self) -> None:
        at = put(step_class=StepClass.AUXILIARY)
        assert (at.program, at.thread, at.lineage) == (None, AUXILIARY, Lineage.NEW)

    def test_of_a_named_program_it_is_a_thread_beside_the_main_one(self) -> None:
        mine = program("")
        at = put(step_class=StepClass.AUXILIARY, claim=claimed("p"), owner=mine)
        assert (at.conversation, at.thread, at.kin) == (None, AUXILIARY, "p#0")
        mine = program("", AUXILIARY)
        again = put(step_class=StepClass.AUXILIARY, claim=claimed("p"), owner=mine)
        assert again.conversation is talk(mine, 1)
        only = program(AUXILIARY)
        assert put(step_class=StepClass.AUXILIARY, claim=claimed("p"), owner=only).kin is None

    def test_of_a_found_program_likewise(self) -> None:
        mine = program("")
        at = put(step_class=StepClass.AUXILIARY, found=match(talk(mine), Relation.HANDS))
        assert (at.program, at.thread, at.kin) == (mine, AUXILIARY, "p#0")


class TestAside:
    SESSION: ClassVar = {"x-claude-code-session-id": "s"}
    CALL = ("toolu_0a1b2c3d4e5f", "WebFetch", "{}")
    PAGE = user("Web page content:\n---\nTwelve hens.\n---\n\nWhat is it about?")

    @pytest.mark.parametrize("agent", [{}, {"x-claude-code-agent-id": "a1"}])
    def test_what_a_named_agent_asks_without_its_tools_is_no_step(
        self, wire: Wire, agent: dict[str, str]
    ) -> None:
        """As Claude Code reads a page: under the session's id, while its agent waits for it."""
        headers = self.SESSION | agent
        prompt = [system(), user("read it")]
        first = wire.chat(prompt, headers=headers)
        wire.answer(first, "", [self.CALL])
        for _ in range(2):
            aside = wire.chat([self.PAGE], tools=(), headers=headers)
            wire.answer(aside, "It is about hens.")
            assert aside.step_class is StepClass.AUXILIARY
            assert (aside.program, aside.parent_conversation) == ("s", first.conversation)
            assert aside.conversation != first.conversation
        told = [*prompt, said("", self.CALL), result(self.CALL[0], "hens")]
        second = wire.chat(told, headers=headers)
        assert (second.conversation, second.lineage) == (first.conversation, Lineage.EXTENDS)
        assert second.step == 2

    def test_of_an_agent_without_tools_it_is_the_next_step(self, wire: Wire) -> None:
        first = wire.chat([system(), user("read it")], tools=(), headers=self.SESSION)
        wire.answer(first, "I have.")
        other = wire.chat([self.PAGE], tools=(), headers=self.SESSION)
        assert (other.conversation, other.lineage) == (first.conversation, Lineage.COMPACTS)
        assert other.step_class is StepClass.STEP

    @pytest.mark.parametrize("said_so", ["main", "compaction"])
    def test_a_client_that_says_what_it_asks_for_is_believed(
        self, wire: Wire, said_so: str
    ) -> None:
        first = wire.chat([system(), user("read it")], headers=self.SESSION)
        wire.answer(first, "", [self.CALL])
        headers = self.SESSION | {"x-claude-code-request-class": said_so}
        told = wire.chat([self.PAGE], tools=(), headers=headers)
        assert (told.conversation, told.lineage) == (first.conversation, Lineage.COMPACTS)

    def test_under_our_own_names_it_is_a_step(self, wire: Wire) -> None:
        """As a planning call of smolagents."""
        ours = {"x-agentsched-program": "p", "x-agentsched-conversation": "c"}
        wire.answer(wire.chat([system(), user("read it")], headers=ours), "", [self.CALL])
        plan = wire.chat([self.PAGE], tools=(), headers=ours)
        assert (plan.step_class, plan.step) == (StepClass.STEP, 2)
