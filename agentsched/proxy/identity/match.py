"""Which earlier turn a prompt goes on from: by response id, chain, call ids, text, containment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from agentsched.model import MILLISECOND, MINUTE, Instant, Nanos, ProgramId
from agentsched.proxy.identity.atoms import Kind
from agentsched.proxy.identity.model import Evidence, IdentityLimits
from agentsched.proxy.identity.needles import Hay, Needle, NeedleKind
from agentsched.proxy.identity.prompt import (
    HASH_BYTES,
    Digester,
    Point,
    Prompt,
    Said,
    run_data,
)
from agentsched.proxy.identity.records import Book, Program, Turn, TurnState, is_weak
from agentsched.proxy.identity.signs import Sign

#: Fewer texts of one program may stand in a summary of another's.
_TOLD_MIN: Final = 2
#: A first prompt of as many bytes is one task's, not what many say.
_LONG_PROMPT: Final = 1_024
_TITLE_SPAN: Final = Nanos(2 * MINUTE)
#: Equal prompts that come closer than this are samples; no client tries again so soon.
_AT_ONCE: Final = Nanos(100 * MILLISECOND)


class Relation(Enum):
    """How a prompt relates to the turn that it was matched with."""

    EXTENDS = auto()  # holds its prompt and its answer
    FORKS = auto()  # likewise, but the turn went on otherwise already
    RETRIES = auto()  # is its prompt again, for it was not answered
    REWRITES = auto()  # holds something of it behind a new beginning
    SPAWNS = auto()  # a sub-agent that it called for
    HANDS = auto()  # the conversation goes to another agent
    JOINS = auto()  # the first step of a program that its title call opened


@dataclass(frozen=True, slots=True)
class Match:
    """The turn that a prompt goes on from."""

    turn: Turn
    relation: Relation
    evidence: Evidence
    needle: Needle | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is looked for: a prompt in a tenant's book.

    `program` and `thread` restrict the search where the client named them. `is_single` means that
    such a thread asks for one thing at a time, `is_resent` that the client says that it sends this
    request again, `is_auxiliary` that it is no step.
    """

    prompt: Prompt
    book: Book
    program: Program | None
    thread: str
    is_single: bool
    is_resent: bool
    is_auxiliary: bool
    now: Instant


class Matcher:
    """Finds the turn that a prompt goes on from. Changes nothing."""

    def __init__(self, *, digester: Digester, limits: IdentityLimits) -> None:
        self._digester = digester
        self._limits = limits

    def find(self, asked: Asked, previous: Turn | None) -> Match | None:
        """The match by exact means; containment is `find_inside`, for it costs more."""
        if previous is not None and (
            asked.program is None or previous.conversation.program is asked.program
        ):
            relation = Relation.FORKS if previous.is_continued else Relation.EXTENDS
            retried = self._retry(asked)
            if retried is not None:
                return Match(retried, Relation.RETRIES, Evidence.RESPONSE_ID)
            return Match(previous, relation, Evidence.RESPONSE_ID)
        match = self._by_chain(asked)
        if match is not None and match.relation is Relation.FORKS:
            return self._rewritten(asked, match.turn) or match
        return match or self._by_calls(asked) or self._by_text(asked)

    # -- chain ------------------------------------------------------------------------------------

    def _by_chain(self, asked: Asked) -> Match | None:
        retried = self._retry(asked)
        if retried is not None:
            return Match(retried, Relation.RETRIES, _kind(retried))
        sibling: Turn | None = None
        for chain, at, is_whole in self._chains(asked):
            turns = self._within(asked, asked.book.at(chain))
            if not turns:
                continue
            answered = [t for t in turns if t.prompt != chain]
            if answered:
                return self._continued(asked, answered)
            if is_whole:
                sibling = next((t for t in reversed(turns) if not t.is_first), None)
                continue
            match = self._grown(asked, turns, at)
            if match is not None:
                return match
        if sibling is not None and (sibling.is_solid or asked.program is not None):
            return Match(sibling, Relation.FORKS, Evidence.PREFIX)
        return None

    def _chains(self, asked: Asked) -> Iterator[tuple[bytes, int, bool]]:
        """Chains at which something known may end, longest first, with the atom behind each."""
        prompt = asked.prompt
        last = len(prompt.points) - 1
        if prompt.text is None:
            for index in range(last, -1, -1):
                point = prompt.points[index]
                yield point.chain, point.atom, index == last
            return
        yield prompt.end, 0, True
        for boundary, start in reversed(prompt.boundaries):
            lengths = asked.book.lengths.get(boundary)
            for length in sorted(lengths or (), reverse=True):
                if start <= length <= len(prompt.text):
                    chain = self._digester.link(boundary, prompt.text[start:length])
                    yield chain, -1, False

    def _within(self, asked: Asked, turns: Sequence[Turn]) -> Sequence[Turn]:
        """Of these turns those of the named program, of the named thread where there are any."""
        if asked.program is None or not turns:
            return turns
        program = asked.program
        turns = [t for t in turns if t.conversation.program is program]
        if asked.thread:
            own = [t for t in turns if t.conversation.thread == asked.thread]
            return own or turns
        return turns

    def _retry(self, asked: Asked) -> Turn | None:
        """The turn with this very prompt whose answer did not reach the client.

        One that is known to have failed is meant before any that may have: what is under way may be
        another run's, whose client waits.
        """
        prompt, now, limits = asked.prompt, asked.now, self._limits
        likely: list[Turn] = []
        for turn in reversed(self._within(asked, asked.book.at(prompt.end))):
            if turn.prompt != prompt.end or turn.head != prompt.head or turn.retaken:
                continue
            if asked.thread and turn.conversation.thread != asked.thread:
                continue  # sub-agents of one prompt are not each other's retries
            span = limits.head_retry_ns_max if turn.is_first else limits.retry_ns_max
            if now - turn.at > span:
                continue
            if turn.state is TurnState.ABANDONED:
                return turn
            if self._is_sent_again(asked, turn):
                likely.append(turn)
        is_any = asked.is_resent and not asked.is_single
        if is_any and sum(turn.state is TurnState.OPEN for turn in likely) > 1:
            return None  # nothing says which of them
        return likely[0] if likely else None

    def _is_sent_again(self, asked: Asked, turn: Turn) -> bool:
        """Whether the same prompt means the same turn though we know of no failed answer.

        The connection may break behind our last byte, and a client that asks again may overtake
        its own hang-up. Without a name or an id of ours it could as well be another program.
        """
        if turn.state is TurnState.OPEN and asked.is_resent:
            return True
        if asked.is_auxiliary or turn.is_continued:
            return False
        age = asked.now - turn.at
        if age > self._limits.head_retry_ns_max:
            return False
        if asked.thread and turn.conversation.program is asked.program:
            is_certain = asked.is_single or turn.state is TurnState.ANSWERED
        elif _is_ours(asked, turn):
            is_certain = turn.state is TurnState.ANSWERED
        else:
            return False
        # Several answers to one prompt are asked for at once; a retry comes after a while.
        return is_certain or age >= _AT_ONCE

    def _continued(self, asked: Asked, answered: Sequence[Turn]) -> Match:
        """Choose among turns whose prompt and answer the prompt begins with.

        Equal programs are told apart by what has not gone on yet, then by the same system prompt
        and tools, then by the latest answer: of two runs, one after the other, it is the second.
        Of runs that were asked for at once it is the one that was answered first.
        """
        head = asked.prompt.head
        same = [t for t in answered if t.head == head]
        free = [t for t in same if not t.is_continued]
        if free:
            latest = max(free, key=lambda t: (not t.is_handed, t.at))
            beside = [t for t in free if t.group == latest.group]
            turn = min(beside, key=lambda t: (t.is_handed, t.at))
            return Match(turn, Relation.EXTENDS, _kind(turn))
        if same:
            return Match(same[-1], Relation.FORKS, _kind(same[-1]))
        turn = max(answered, key=lambda t: (not (t.is_continued or t.is_handed), t.at))
        return Match(turn, Relation.EXTENDS, _kind(turn))

    def _grown(self, asked: Asked, turns: Sequence[Turn], at: int) -> Match | None:
        """Turns whose prompt this one begins with, but not with the answer that we saw."""
        if at < 0:
            return None
        atoms = asked.prompt.atoms
        refs: set[str] = set()
        is_spoken = at < len(atoms) and atoms[at].kind in (Kind.ASSISTANT, Kind.CALL)
        while at < len(atoms) and atoms[at].kind in (Kind.ASSISTANT, Kind.CALL):
            refs.update(atoms[at].ref.split())
            at += 1
        ordered = sorted(turns, key=lambda t: (not t.is_continued, t.at), reverse=True)
        for turn in ordered:
            evidence = self._fits(asked, turn, is_spoken=is_spoken, refs=refs)
            if evidence is None:
                continue
            # Of an answer cut short: it is to be ended, or something else is said behind it.
            is_last = at == len(atoms) or bool(asked.prompt.last_signs & Sign.RESUMED)
            if turn.state is TurnState.ABANDONED and is_spoken and not refs and is_last:
                return Match(turn, Relation.RETRIES, evidence)
            is_fork = turn.is_continued and turn.head == asked.prompt.head
            return Match(turn, Relation.FORKS if is_fork else Relation.EXTENDS, evidence)
        return None

    def _fits(
        self, asked: Asked, turn: Turn, *, is_spoken: bool, refs: set[str]
    ) -> Evidence | None:
        """Whether a prompt that begins with a turn's prompt is of its program, and by what."""
        is_known = turn.is_solid or asked.program is not None
        if refs and any(ref in turn.calls for ref in refs):
            strong = any(ref in turn.calls and not is_weak(ref) for ref in refs)
            if strong:
                return Evidence.CALL_ID
            return Evidence.PREFIX if is_known else None
        if turn.state is TurnState.ABANDONED and is_spoken and not turn.retaken:
            span = self._limits.head_retry_ns_max
            is_fresh = asked.now - turn.at <= span and turn.head == asked.prompt.head
            return Evidence.PREFIX if is_known or is_fresh else None
        if turn.is_first and (asked.program is None or not is_spoken):
            return None  # a shared beginning joins nobody
        return Evidence.PREFIX if is_known else None

    def _rewritten(self, asked: Asked, forked: Turn) -> Match | None:
        """The latest turn of a conversation whose older messages a client shortened on the way.

        Such a prompt leaves the known one where the first of them stands, as a branch would, but
        it answers what was asked last.
        """
        found = self._answered_last(asked) or self._said_last(asked, forked)
        if found is None or found.turn.is_continued or found.turn.at <= forked.at:
            return None
        is_same = found.turn.conversation is forked.conversation
        return found if is_same and self._within(asked, (found.turn,)) else None

    def _answered_last(self, asked: Asked) -> Match | None:
        """The turn whose calls have their results at the prompt's end, or whose text is last."""
        for ref in asked.prompt.results:
            turn = asked.book.calls.get(ref)
            if turn is not None and not is_weak(ref):
                return Match(turn, Relation.REWRITES, Evidence.CALL_ID)
        for atom in reversed(asked.prompt.atoms):
            if atom.kind >= Kind.ASSISTANT:
                turn = asked.book.said.get(atom.digest)
                return None if turn is None else Match(turn, Relation.REWRITES, Evidence.TEXT)
        return None

    def _said_last(self, asked: Asked, forked: Turn) -> Match | None:
        """The latest turn of a conversation, if its answer, however short, is the prompt's last.

        It must stand behind what is known of the prompt, else it is an earlier one in equal words.
        """
        prompt = asked.prompt
        ends = {forked.prompt, forked.answer} - {b""}
        known = next((p.atom for p in reversed(prompt.points) if p.chain in ends), None)
        end = len(prompt.atoms)
        while end and prompt.atoms[end - 1].kind < Kind.ASSISTANT:
            end -= 1
        start = end
        while start and prompt.atoms[start - 1].kind == Kind.ASSISTANT:
            start -= 1
        if known is None or not known <= start < end:
            return None
        turns = reversed(forked.conversation.program.turns)
        turn = next((t for t in turns if t.conversation is forked.conversation), forked)
        if not turn.prompt or turn.state is not TurnState.ANSWERED:
            return None
        said = self._digester.link(turn.prompt, run_data(prompt.atoms[start:end]))
        return Match(turn, Relation.REWRITES, Evidence.TEXT) if said == turn.answer else None

    # -- ids and texts ----------------------------------------------------------------------------

    def _by_calls(self, asked: Asked) -> Match | None:
        """A tool call that we handed out, in a history with another beginning."""
        calls = asked.book.calls
        for ref in reversed(asked.prompt.refs[-4_096:]):
            turn = calls.get(ref)
            if turn is None:
                continue
            if asked.program is not None and turn.conversation.program is not asked.program:
                continue
            if is_weak(ref) and asked.program is None:
                continue
            return Match(turn, Relation.REWRITES, Evidence.CALL_ID)
        return None

    def _by_text(self, asked: Asked) -> Match | None:
        """A long answer of ours as an assistant's message in a history with another beginning."""
        said = asked.book.said
        if not said:
            return None
        for atom in reversed(asked.prompt.atoms):
            if atom.kind == Kind.ASSISTANT:
                turn = said.get(atom.digest)
                if turn is not None and self._within(asked, (turn,)):
                    return Match(turn, Relation.REWRITES, Evidence.TEXT)
        return None

    def find_changed(self, asked: Asked, answers: Iterable[Said]) -> Match | None:
        """The match by an answer of ours that its client changed.

        It stands beside calls that the client read out of it, or it was shortened.
        """
        for said in answers:
            text = self._digester.spoken_in(said)
            if said.is_calling and text:
                chain = self._digester.spoken_chain(said.before.chain, text)
                turns = self._within(asked, asked.book.at(chain))
                answered = [turn for turn in turns if turn.answer == chain]
                if answered:
                    return self._continued(asked, answered)
            turn = self._begun(asked, said.before, text)
            if turn is not None:
                return Match(turn, Relation.EXTENDS, _kind(turn))
        return None

    def _begun(self, asked: Asked, before: Point, text: str) -> Turn | None:
        """The one turn with this prompt whose answer begins as the text does.

        Where many may have the prompt, because nobody has answered in it yet, it must be a long one
        and much of the answer must be left; and none may wait there whose answer we do not know.
        """
        turns = [t for t in asked.book.at(before.chain) if t.prompt == before.chain]
        turns = [t for t in self._within(asked, turns) if t.head == asked.prompt.head]
        if any(turn.state is not TurnState.ANSWERED for turn in turns):
            return None
        # System prompt and tools, which may be long, are the same in all programs of an agent.
        is_one_task = before.size - asked.prompt.head_size >= _LONG_PROMPT
        told = self._digester.beginnings(f"{text} ")
        fitting: list[Turn] = []
        for turn in turns:
            size = min(len(told), len(turn.begun))
            least = 2 if turn.is_first else 1
            if turn.is_first and not is_one_task:
                continue
            if (
                size >= least * HASH_BYTES
                and told[size - HASH_BYTES : size] == (turn.begun[size - HASH_BYTES : size])
            ):
                fitting.append(turn)
        programs = {id(turn.conversation.program) for turn in fitting}
        return fitting[-1] if len(programs) == 1 else None

    # -- containment ------------------------------------------------------------------------------

    def find_inside(self, asked: Asked, hay: Hay) -> Match | None:
        """The match by a text of ours that the prompt holds; only if one program can be meant."""
        found = asked.book.needles.find(hay, now=asked.now, span=self._limits.needle_ns_max)
        if asked.program is not None:
            found = [n for n in found if n.turn.conversation.program is asked.program]
        if not found:
            return None
        for kind, relation, test in self._order(asked, hay):
            match = _only(relation, [n for n in found if n.kind is kind and test(n)])
            if match is not None:
                return match
        return None

    def find_told(self, asked: Asked, hay: Hay) -> Match | None:
        """The match of a condenser's prompt, which tells in its own words what one program said.

        By several texts at least, and more of them than any other program's: two runs of one task
        hear the same from their tools.
        """
        told: dict[ProgramId, set[bytes]] = {}
        latest: dict[ProgramId, Turn] = {}
        found = asked.book.quotes.find(hay, now=asked.now, span=self._limits.needle_ns_max)
        for needle in found:
            program = needle.turn.conversation.program
            if needle.trace is not None and asked.program in (None, program):
                told.setdefault(program.id, set()).add(needle.trace.whole)
                latest[program.id] = needle.turn
        counts = sorted(((len(texts), name) for name, texts in told.items()), reverse=True)
        if not counts or counts[0][0] < _TOLD_MIN:
            return None
        if len(counts) > 1 and counts[1][0] == counts[0][0]:
            return None
        return Match(latest[counts[0][1]], Relation.HANDS, Evidence.CONTAINMENT)

    def _order(
        self, asked: Asked, hay: Hay
    ) -> tuple[tuple[NeedleKind, Relation, Callable[[Needle], bool]], ...]:
        prompt, now = asked.prompt, asked.now

        def may_spawn(needle: Needle) -> bool:
            turn = needle.turn
            if prompt.head == turn.head and prompt.points[0].chain == turn.conversation.first:
                return False  # another run of the parent's own prompt
            if needle.is_named and (needle.is_telling or prompt.head != turn.head):
                return True
            return prompt.head != turn.head and not turn.is_continued

        def may_hand(needle: Needle) -> bool:
            turn = needle.turn
            if not (prompt.is_first and hay.is_retold):
                return False  # many begin with the same words
            return prompt.head != turn.head and not (turn.is_continued or turn.is_handed)

        def may_join(needle: Needle) -> bool:
            if asked.is_auxiliary and prompt.head == needle.turn.head:
                return False  # a second title in the same words is a second program's
            return now - needle.at <= _TITLE_SPAN and not needle.is_used

        def may_quote(needle: Needle) -> bool:
            # A question may hold its own answer, so it must stand where an answer would.
            turn = needle.turn
            if prompt.points[0].chain == turn.conversation.first and prompt.head != turn.head:
                return hay.is_heard(needle)  # a team: one task, and what the others said
            if not needle.is_telling or (prompt.tools and turn.has_tools):
                return False
            return asked.is_auxiliary or hay.is_said(needle)

        return (
            (NeedleKind.SUMMARY, Relation.REWRITES, lambda n: not n.is_used),
            (NeedleKind.SPAWN, Relation.SPAWNS, may_spawn),
            (NeedleKind.HANDOFF, Relation.HANDS, may_hand),
            (NeedleKind.TITLE, Relation.JOINS, may_join),
            (NeedleKind.ANSWER, Relation.HANDS, may_quote),
        )


def _only(relation: Relation, needles: Iterable[Needle]) -> Match | None:
    """The one that is meant: of texts not found again yet, else of those still waited for."""
    all_of = list(needles)
    for pool in (
        [n for n in all_of if not n.is_used],
        [n for n in all_of if n.is_used and not n.turn.is_continued],
    ):
        if pool:
            programs = {id(n.turn.conversation.program) for n in pool}
            if len(programs) > 1:
                return None
            return Match(pool[0].turn, relation, Evidence.CONTAINMENT, pool[0])
    return None


def _is_ours(asked: Asked, turn: Turn) -> bool:
    """Whether the prompt holds a tool-call id that we handed out to the turn's program."""
    calls, program = asked.book.calls, turn.conversation.program
    for ref in reversed(asked.prompt.refs[-4_096:]):
        known = calls.get(ref)
        if known is not None and not is_weak(ref):
            return known.conversation.program is program
    return False


def _kind(turn: Turn) -> Evidence:
    return Evidence.CALL_ID if any(not is_weak(call) for call in turn.calls) else Evidence.PREFIX
