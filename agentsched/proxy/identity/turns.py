"""A request becomes a turn: what later requests will be compared with."""

from __future__ import annotations

from agentsched.model import Lineage, StepClass
from agentsched.proxy.identity.match import Asked, Match, Relation
from agentsched.proxy.identity.place import Place
from agentsched.proxy.identity.records import Conversation, TextEnd, Turn, TurnState, is_weak


def add_turn(
    asked: Asked,
    at: Place,
    conversation: Conversation,
    step_class: StepClass,
    match: Match | None,
    *,
    candidates_max: int,
) -> Turn:
    """Remember a request as a turn of its conversation, and on the turn that it goes on from."""
    prompt = asked.prompt
    head = conversation.head if conversation.head == prompt.head else prompt.head
    turn = Turn(conversation=conversation, prompt=prompt.end, head=head, at=asked.now)
    turn.is_first = prompt.is_first and not (
        match is not None and match.relation in (Relation.EXTENDS, Relation.FORKS)
    )
    turn.is_solid = any(
        not is_weak(ref) and asked.book.calls.get(ref) is not None for ref in prompt.refs
    )
    turn.step_class = step_class
    turn.has_tools = bool(prompt.tools)
    turn.size = prompt.size
    program = conversation.program
    if match is not None:
        _link(turn, at, match, step_class)
    if step_class.is_work and not at.is_retry:
        program.steps += 1
    turn.step = match.turn.step if at.is_retry and match is not None else program.steps
    if step_class.is_work and not at.is_handed:
        conversation.head = turn.head
    if prompt.text is not None:
        boundary, length = prompt.boundaries[-1]
        turn.text = TextEnd(
            boundary=boundary, length=length, tail=prompt.text[length:], is_ids=prompt.is_ids
        )
    equal = asked.book.at(prompt.end)
    open_one = next((other for other in equal if other.state is TurnState.OPEN), None)
    turn.beside = open_one.group if open_one is not None else 0
    asked.book.add_point(prompt.end, turn, candidates_max=candidates_max)
    return turn


def _link(turn: Turn, at: Place, match: Match, step_class: StepClass) -> None:
    """Note on the matched turn that it went on."""
    known = match.turn
    # What else is asked beside a title leaves it to the program's first step to join it.
    if match.needle is not None and (step_class.is_work or match.relation is not Relation.JOINS):
        match.needle.use()
    if at.is_retry:
        known.retaken = True
        turn.is_first = known.is_first
        turn.origin, known.origin = known.origin, None
        if turn.origin is not None:
            turn.origin.is_continued = True
    elif at.lineage is Lineage.SPAWNED:
        pass  # a sub-agent may begin with all that was said: its parent goes on from there still
    elif step_class.is_work and turn.conversation.program is known.conversation.program:
        if match.relation in (Relation.EXTENDS, Relation.REWRITES):
            if turn.conversation.thread != known.conversation.thread:
                known.is_handed = True  # its own thread will go on from it still
            elif known.head == turn.head or at.lineage is Lineage.COMPACTS:
                if not known.is_continued:
                    turn.origin = known
                known.is_continued = True
                if known.state is TurnState.ANSWERED and known.answer:
                    # It will not be asked for again, and forks start at its answer.
                    turn.conversation.program.book.drop_point(known.prompt, known)
                    known.prompt = known.begun = b""
            else:
                known.is_handed = True
        elif match.relation is Relation.HANDS:
            known.is_handed = True
