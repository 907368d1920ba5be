"""What an answer teaches: the ids, chains and texts by which the next request will be known."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Final

from agentsched.model import Instant, StepClass
from agentsched.proxy.answer import Answer
from agentsched.proxy.identity.atoms import call_ref, spoken
from agentsched.proxy.identity.model import IdentityLimits
from agentsched.proxy.identity.needles import (
    Needle,
    NeedleKind,
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
from agentsched.proxy.identity.prompt import Digester, Prefill
from agentsched.proxy.identity.records import TextEnd, Turn, TurnState
from agentsched.proxy.identity.traces import Tracer
from agentsched.proxy.request import ParsedRequest
from agentsched.proxy.token_ids import ID_BYTES

#: Shorter answers (`Done.`) are said by many.
_SAID_MIN: Final = 48
_SPAWNS_MAX: Final = 16


class Learner:
    """Writes what an answer teaches into its tenant's book."""

    def __init__(self, *, digester: Digester, tracer: Tracer, limits: IdentityLimits) -> None:
        self._digester = digester
        self._tracer = tracer
        self._limits = limits
        #: Texts are to outlive the process, as traces.
        self.is_kept = False

    def answer(
        self, turn: Turn, answer: Answer, counts: Counter[str], *, now: Instant, named: str
    ) -> None:
        """A complete answer; `named` is the id by which a request may go on from it, or empty."""
        turn.state = TurnState.ANSWERED
        turn.at = now
        turn.origin = None
        # Text, which is not to be held for longer, whatever became of the answer.
        prefill, turn.prefill = turn.prefill, None
        self.calls(turn, answer, counts)
        is_ids = turn.text is not None and turn.text.is_ids
        said = len(answer.token_ids) if is_ids else len(answer.text)
        turn.size += said + sum(len(call.arguments) for call in answer.calls)
        if turn.text is not None:
            self._text(turn, turn.text, answer)
        elif not answer.is_truncated:
            self._chain(turn, answer, prefill)
        self._response(turn, named)
        self._needles(turn, answer, now=now)

    def calls(self, turn: Turn, answer: Answer, counts: Counter[str]) -> None:
        """The ids of tool calls; an id that another turn handed out before is noticed."""
        calls = answer.calls[: self._limits.calls_per_turn_max]
        ids = tuple(sys.intern(call_ref(call.call_id)) for call in calls if call.call_id)
        turn.calls = ids
        book = turn.conversation.program.book
        for call_id in ids:
            if not book.add_call(call_id, turn):
                counts["repeated_call_ids"] += 1

    def title(self, turn: Turn, request: ParsedRequest, *, now: Instant) -> None:
        """An auxiliary call that came before its program."""
        text = title_of(hay_of(request, first=b""))
        if text:
            self._add(NeedleKind.TITLE, text, turn, now=now)

    def heard(self, turn: Turn, request: ParsedRequest, *, now: Instant) -> None:
        """What tools said, by a client that gives nothing else to go by."""
        for text in heard_of(request):
            self._quote(turn, text, now=now)

    def _quote(self, turn: Turn, text: str, *, now: Instant) -> None:
        trace = self._tracer.trace(text)
        needle = Needle(kind=NeedleKind.QUOTE, text="", turn=turn, at=now, trace=trace)
        self._put(needle)

    def _chain(self, turn: Turn, answer: Answer, prefill: Prefill | None) -> None:
        if prefill is not None:
            chains = self._digester.continued_chains(prefill, answer)
        else:
            chain = self._digester.answer_chain(turn.prompt, answer)
            chains = [] if chain is None else [chain]
        if not chains:
            return
        turn.answer, *others = chains
        turn.others = tuple(others)
        book = turn.conversation.program.book
        for chain in chains:
            book.add_point(chain, turn, candidates_max=self._limits.candidates_max)
        text = ((prefill.text if prefill is not None else "") + answer.text).strip()
        if not answer.calls and prefill is None:
            turn.begun = self._digester.beginnings(spoken(text))
        if not answer.calls and len(text) >= _SAID_MIN and turn.step_class.is_work:
            turn.said = self._digester.said(text)
            book.add_said(turn.said, turn)

    def _text(self, turn: Turn, end: TextEnd, answer: Answer) -> None:
        """A completion's answer, in each of the forms in which clients send it back."""
        book = turn.conversation.program.book
        for said in _forms(end, answer):
            tail = end.tail + said
            boundary, length = end.boundary, end.length
            for boundary, length in self._digester.boundaries_from(  # noqa: B007
                end.boundary, end.length, tail
            ):
                pass
            whole = end.length + len(tail)
            chain = self._digester.link(boundary, tail[length - end.length :])
            if not turn.answer:
                turn.answer = chain
            end.chains.append(chain)
            end.places.append((boundary, whole))
            book.add_length(boundary, whole)
            book.add_point(chain, turn, candidates_max=self._limits.candidates_max)
        end.tail = b""

    def _response(self, turn: Turn, response_id: str) -> None:
        if not response_id or len(response_id) > 256:
            return
        responses = turn.conversation.program.book.responses
        if response_id not in responses:
            turn.response_id = response_id
            responses[response_id] = turn

    def _needles(self, turn: Turn, answer: Answer, *, now: Instant) -> None:
        if turn.conversation.thread:
            return  # its client names every agent: nothing will have to be searched for
        quote = quote_of(answer.text) if turn.step_class is not StepClass.COMPACTION else ""
        if quote:
            self._quote(turn, quote, now=now)
        for call in answer.calls[:_SPAWNS_MAX]:
            for text, is_named in spawns_of(call):
                self._add(NeedleKind.SPAWN, text, turn, now=now, is_named=is_named)
        if is_handoff(answer):
            first = turn.conversation.first.hex()
            self._add(NeedleKind.HANDOFF, first, turn, now=now)
        if turn.step_class is StepClass.COMPACTION:
            summary = summary_of(answer.text)
            if summary:
                self._add(NeedleKind.SUMMARY, summary, turn, now=now)
        elif turn.step_class.is_work and not answer.calls:
            line = answer_of(answer.text)
            if line:
                self._add(NeedleKind.ANSWER, line, turn, now=now)

    def _add(
        self, kind: NeedleKind, text: str, turn: Turn, *, now: Instant, is_named: bool = False
    ) -> None:
        self._put(Needle(kind=kind, text=text, turn=turn, at=now, is_named=is_named))

    def _put(self, needle: Needle) -> None:
        turn = needle.turn
        turn.conversation.program.book.looked_for(needle.kind).add(needle)
        if self.is_kept:
            needle.place = len(turn.traces)
            turn.traces += (kept(needle, self._tracer),)


def _forms(end: TextEnd, answer: Answer) -> list[bytes]:
    """An answer as it was and trimmed, for templates differ; of ids, with and without the last.

    That one ends the turn, and many templates bring their own.
    """
    if end.is_ids:
        ids = answer.token_ids
        return [said for said in (ids, ids[:-ID_BYTES]) if said]
    text = answer.text
    return [
        said.encode("utf-8", "surrogatepass")
        for said in dict.fromkeys((text, text.rstrip(), text.strip()))
        if said.strip()
    ]
