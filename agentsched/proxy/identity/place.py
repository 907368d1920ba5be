"""Where a request belongs: the program and conversation that its claim and its match give."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agentsched.model import CallId, ConversationId, Lineage, StepClass
from agentsched.proxy.identity.match import Asked, Match, Relation
from agentsched.proxy.identity.native import Claim
from agentsched.proxy.identity.prompt import Prompt
from agentsched.proxy.identity.records import Conversation, Program
from agentsched.proxy.identity.signs import Sign

#: A program whose system prompt or tools changed this often without a handoff changes them always.
_HEADS_MAX = 4
AUXILIARY = "auxiliary"
#: What is asked beside the work: no conversation of its program goes on with it, or waits less.
_BESIDE = frozenset({StepClass.AUXILIARY, StepClass.PROBE})
#: Whose client asks small models by the way, under the ids of the agent that waits meanwhile.
_ASKING_ASIDE = "x-claude-code-session-id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place for a request. `conversation` is None where a new one begins, `program` likewise.

    `thread` names the new conversation, `kin` is the conversation that it sprang from. `is_aside`
    means that the request is no step after all: its agent asks something by the way.
    """

    program: Program | None
    conversation: Conversation | None
    lineage: Lineage
    thread: str = ""
    kin: ConversationId | None = None
    is_retry: bool = False
    is_subagent: bool = False
    is_handed: bool = False
    is_aside: bool = False


def place(
    *,
    prompt: Prompt,
    step_class: StepClass,
    claim: Claim | None,
    match: Match | None,
    program: Program | None,
) -> Place:
    """Place a request; `program` is the one that the client named, where it is known already."""
    is_declared = claim is not None and claim.is_naming
    thread = claim.thread if claim is not None else ""
    is_exact = claim is not None and claim.is_exact
    is_subagent = claim is not None and claim.is_subagent
    if match is None:
        return _unmatched(prompt, step_class, claim, program)
    turn, found = match.turn, match.turn.conversation
    if is_declared and found.program is not program:
        if program is not None and program.conversations:
            return _unmatched(prompt, step_class, claim, program)
        return Place(
            program=program,
            conversation=None,
            lineage=Lineage.FORKS,
            thread=thread,
            kin=found.id,
            is_subagent=is_subagent,
        )
    if match.relation is Relation.RETRIES:
        lineage = Lineage.NEW if turn.is_first else Lineage.EXTENDS
        return Place(program=found.program, conversation=found, lineage=lineage, is_retry=True)
    if step_class in _BESIDE:
        return _auxiliary(found.program, found)
    if is_exact and found.thread != thread:
        return _other_thread(found, thread, is_subagent=is_subagent)
    return _follow(prompt, step_class, match, is_exact=is_exact)


def _follow(prompt: Prompt, step_class: StepClass, match: Match, *, is_exact: bool) -> Place:
    turn, found = match.turn, match.turn.conversation
    program = found.program
    same_head = turn.head == prompt.head
    if step_class is StepClass.COMPACTION:
        lineage = Lineage.EXTENDS if same_head else Lineage.FORKS
        return Place(program=program, conversation=found, lineage=lineage)
    if prompt.last_signs & Sign.FORKED and not is_exact:
        return _spawned(found)
    match match.relation:
        case Relation.EXTENDS if same_head:
            return Place(program=program, conversation=found, lineage=Lineage.EXTENDS)
        case Relation.EXTENDS if is_exact:
            return Place(program=program, conversation=found, lineage=Lineage.COMPACTS)
        case Relation.REWRITES if same_head or is_exact or _is_over(match):
            return Place(program=program, conversation=found, lineage=Lineage.COMPACTS)
        case Relation.SPAWNS:
            return _spawned(found)
        case Relation.JOINS:
            return Place(program=program, conversation=None, lineage=Lineage.NEW)
        case Relation.FORKS:
            return Place(
                program=program,
                conversation=None,
                lineage=Lineage.FORKS,
                thread=found.thread,
                kin=found.id,
                is_subagent=found.is_subagent,
            )
        case _:
            return _handed(prompt, found)


def _spawned(parent: Conversation) -> Place:
    return Place(
        program=parent.program,
        conversation=None,
        lineage=Lineage.SPAWNED,
        kin=parent.id,
        is_subagent=True,
    )


def _is_over(match: Match) -> bool:
    """Whether a rewritten prompt follows a compaction, which ends what was before."""
    return match.turn.step_class is StepClass.COMPACTION


def _handed(prompt: Prompt, found: Conversation) -> Place:
    """The same history under another system prompt or other tools: another agent's lineage."""
    program = found.program
    for conversation in reversed(program.conversations.values()):
        if (
            conversation.head == prompt.head
            and conversation.thread == found.thread
            and conversation.is_subagent is found.is_subagent
        ):
            return Place(
                program=program,
                conversation=conversation,
                lineage=Lineage.COMPACTS,
                kin=found.id,
                is_handed=True,
            )
    if program.heads >= _HEADS_MAX:
        return Place(program=program, conversation=found, lineage=Lineage.COMPACTS)
    return Place(
        program=program,
        conversation=None,
        lineage=Lineage.FORKS,
        thread=found.thread,
        kin=found.id,
        is_subagent=found.is_subagent,
        is_handed=True,
    )


def _other_thread(found: Conversation, thread: str, *, is_subagent: bool) -> Place:
    """A thread that begins with, or took over, what another thread of its program said."""
    known = found.program.threads(thread)
    new = Lineage.SPAWNED if is_subagent else Lineage.FORKS
    return Place(
        program=found.program,
        conversation=known[-1] if known else None,
        lineage=Lineage.COMPACTS if known else new,
        thread=thread,
        kin=found.id,
        is_subagent=is_subagent,
    )


def _auxiliary(program: Program, kin: Conversation | None) -> Place:
    known = program.threads(AUXILIARY)
    return Place(
        program=program,
        conversation=known[-1] if known else None,
        lineage=Lineage.NEW,
        thread=AUXILIARY,
        kin=kin.id if kin is not None else None,
    )


def _unmatched(
    prompt: Prompt, step_class: StepClass, claim: Claim | None, program: Program | None
) -> Place:
    is_subagent = claim is not None and claim.is_subagent
    thread = claim.thread if claim is not None else ""
    if step_class in _BESIDE:
        if program is None:
            return Place(program=None, conversation=None, lineage=Lineage.NEW, thread=AUXILIARY)
        return _auxiliary(program, _main(program))
    kin = None
    if program is not None and claim is not None:
        known = _known(prompt, step_class, claim, program)
        if known is not None and _is_aside(prompt, step_class, claim, known):
            return replace(_auxiliary(program, known), is_aside=True)
        if known is not None:
            return Place(program=program, conversation=known, lineage=Lineage.COMPACTS)
        if claim.parent_thread:
            parents = program.threads(claim.parent_thread)
            kin = parents[-1].id if parents else None
    return Place(
        program=program,
        conversation=None,
        lineage=Lineage.SPAWNED if is_subagent else Lineage.NEW,
        thread=thread,
        kin=kin,
        is_subagent=is_subagent,
    )


def _known(
    prompt: Prompt, step_class: StepClass, claim: Claim, program: Program
) -> Conversation | None:
    """The conversation that a prompt with a new beginning still belongs to."""
    if claim.is_exact:
        known = program.threads(claim.thread)
        return known[-1] if known else None
    main = _main(program)
    if main is None:
        return None
    if step_class is StepClass.COMPACTION:
        return main
    if prompt.is_first:
        return None
    same = [c for c in program.conversations.values() if c.head == prompt.head]
    return same[-1] if same else None


def _is_aside(prompt: Prompt, step_class: StepClass, claim: Claim, known: Conversation) -> bool:
    """Whether an agent that works with tools asks something by the way: anew, and without any."""
    if claim.source != _ASKING_ASIDE or claim.step_class is not None or not step_class.is_work:
        return False
    turns = reversed(known.program.turns)
    last = next((turn for turn in turns if turn.conversation is known), None)
    return last is not None and last.has_tools and prompt.is_first and not prompt.tools


def _main(program: Program) -> Conversation | None:
    """The oldest conversation that is work."""
    return next((c for c in program.conversations.values() if c.thread != AUXILIARY), None)


def answers_of(asked: Asked, at: Place, match: Match | None) -> tuple[CallId, ...]:
    """The tool calls whose results a request brings.

    A sub-agent that begins with all that its parent said holds stand-ins for the results of its
    parent's calls. These are still awaited, by its parent.
    """
    results = asked.prompt.results
    if match is not None and at.lineage is Lineage.SPAWNED:
        return ()
    own = at.conversation
    if at.is_retry and own is not None and own.is_subagent:
        turns = {ref: asked.book.calls.get(ref) for ref in results}
        results = tuple(r for r, turn in turns.items() if turn is None or turn.conversation is own)
    return tuple(CallId(ref) for ref in results)


def goes_on(prompt: Prompt, at: Place, claim: Claim | None) -> bool:
    """Whether a request shows by itself that its program was begun before it: by what was answered
    in it, as a sub-agent's, or by the number that its client gives it."""
    number = claim.declared.step if claim is not None else None
    return prompt.goes_on or at.is_subagent or (number is not None and number > 1)
