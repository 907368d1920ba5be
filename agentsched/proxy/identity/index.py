"""Recognises programs: gives every request its program and conversation, with ids or without.

The order of evidence: what the client declares (see `native`), a response id, the chain of the
prompt up to an answer of ours, tool-call ids of ours, a long text of ours, a text of ours
inside the prompt. Two equal first prompts are two programs; a shared system prompt joins nobody.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from agentsched.model import (
    ConversationId,
    Instant,
    Prefix,
    ProgramId,
    StepClass,
    TenantId,
)
from agentsched.proxy.answer import Answer
from agentsched.proxy.identity.classify import classify
from agentsched.proxy.identity.cookie import TURN_STATE, Cookies
from agentsched.proxy.identity.learn import Learner
from agentsched.proxy.identity.match import Asked, Match, Matcher, Relation
from agentsched.proxy.identity.model import (
    NOTHING_DECLARED,
    Evidence,
    Identity,
    IdentityLimits,
    IdentityStatistics,
)
from agentsched.proxy.identity.naming import (
    CACHE_KEY,
    Names,
    branch_of,
    over_weak,
    quoted,
    without_shared,
)
from agentsched.proxy.identity.native import Claim, ClaimReader
from agentsched.proxy.identity.needles import Needle, hay_of
from agentsched.proxy.identity.place import AUXILIARY, Place, answers_of, goes_on, place
from agentsched.proxy.identity.prompt import Digester, Prompt
from agentsched.proxy.identity.records import (
    Book,
    Conversation,
    Program,
    Turn,
    TurnState,
)
from agentsched.proxy.identity.traces import Tracer
from agentsched.proxy.identity.turns import add_turn
from agentsched.proxy.request import ParsedRequest
from agentsched.proxy.token_ids import ID_BYTES

BYTES_PER_TOKEN: Final = 4.0
DEFAULT_TENANT: Final = TenantId("default")
#: A cache key under which more unrelated prompts begin is one application's, not one program's.
_CACHE_KEY_HEADS_MAX: Final = 8
_PASSING: Final = frozenset({StepClass.TOKEN_COUNT, StepClass.PROBE})


class IdentityIndex:
    """Knows the programs that pass by. Bounded in memory; holds no prompt text, only hashes.

    `secret` keys the hashes: random per process, or shared by replicas that must name prefixes
    alike. `default_tenant` is left out of program ids, all other tenants are part of them.
    """

    def __init__(
        self,
        *,
        secret: int,
        limits: IdentityLimits | None = None,
        default_tenant: TenantId = DEFAULT_TENANT,
        extra_headers: Sequence[str] = (),
    ) -> None:
        self._limits = limits if limits is not None else IdentityLimits()
        self._secret = secret & (2**64 - 1)
        self._digester = Digester(seed=self._secret, messages_max=self._limits.messages_max)
        self._matcher = Matcher(digester=self._digester, limits=self._limits)
        self._tracer = Tracer(secret=self._secret)
        self._learner = Learner(digester=self._digester, tracer=self._tracer, limits=self._limits)
        self._reader = ClaimReader(
            extra_headers=extra_headers, id_characters_max=self._limits.id_characters_max
        )
        self._names = Names(secret=self._secret, default=default_tenant, clean=self._reader.clean)
        self._cookies = Cookies(secret=self._secret)
        self._books: dict[TenantId, Book] = {}
        #: All programs, the idlest first.
        self._programs: OrderedDict[ProgramId, Program] = OrderedDict()
        #: Those of them that were only ever refused, the one refused longest ago first. They make
        #: room before any that was served, so that a flood of newcomers costs no other its place.
        self._unserved: OrderedDict[ProgramId, None] = OrderedDict()
        self._turns = 0
        self._next = 0
        self._counts: Counter[str] = Counter()
        self._evidence: Counter[Evidence] = Counter()

    def __len__(self) -> int:
        return len(self._programs)

    def __contains__(self, program: object) -> bool:
        return program in self._programs

    # -- the three things that happen ------------------------------------------------------------

    def identify(
        self,
        request: ParsedRequest,
        headers: Mapping[str, str],
        *,
        tenant: TenantId,
        now: Instant,
        bytes_per_token: float = BYTES_PER_TOKEN,
        is_dry: bool = False,
    ) -> Identity:
        """Say whose request this is, and remember it. Never raises on what a client may send.

        `headers` have lower-case names. With `is_dry` nothing is remembered, and `answered` may not
        be called with the result.
        """
        claim = self._reader.read(request, headers)
        book = self._books.get(tenant)
        if book is None:
            book = Book(name=tenant, needles_max=self._limits.needles_per_tenant_max)
        if claim is not None:
            claim = without_shared(claim, book)
        echoed = self._echoed(tenant, headers) if TURN_STATE in headers else None
        if echoed is not None:
            claim = over_weak(claim, echoed)
        previous = self._previous(book, request)
        base = (previous.answer or previous.prompt) if previous is not None else b""
        base_size = previous.size if previous is not None else 0
        prompt = self._digester.digest(
            request,
            base=base,
            base_size=base_size,
            base_head=previous.head if previous is not None else b"",
        )
        step_class = classify(request, prompt, claim)
        named = self._named(book, claim)
        if echoed is not None and claim is not None and claim.source == TURN_STATE:
            named = echoed.program.id
        program = self._programs.get(named) if named is not None else None
        asked = Asked(
            prompt=prompt,
            book=book,
            program=program,
            thread=claim.thread if claim is not None and claim.is_exact else "",
            is_single=claim is not None and claim.evidence is Evidence.NATIVE,
            is_resent=headers.get("x-stainless-retry-count", "0") not in ("0", ""),
            is_auxiliary=not step_class.is_work,
            now=now,
        )
        match = self._match(asked, request, step_class, previous, named)
        at = place(prompt=prompt, step_class=step_class, claim=claim, match=match, program=program)
        if at.is_aside:
            step_class = StepClass.AUXILIARY
        if is_dry or step_class in _PASSING:
            return self._passing(asked, at, step_class, claim, match, named, bytes_per_token)
        return self._settle(asked, at, step_class, claim, match, named, bytes_per_token, request)

    def cookie(self, identity: Identity) -> str:
        """A token by which `identify` knows the conversation again, in `x-codex-turn-state`."""
        return self._cookies.issue(identity.tenant, identity.program, identity.conversation)

    def _echoed(self, tenant: TenantId, headers: Mapping[str, str]) -> Conversation | None:
        found = self._cookies.find(tenant, headers[TURN_STATE])
        program = self._programs.get(found[0]) if found is not None else None
        return program.conversations.get(found[1]) if program is not None and found else None

    def answered(
        self,
        identity: Identity,
        answer: Answer,
        *,
        now: Instant,
        bytes_per_token: float = BYTES_PER_TOKEN,
        can_be_named: bool = True,
    ) -> Prefix | None:
        """Learn an answer: its calls, its text, its id. Names prompt plus answer where it can.

        An answer that is not complete counts as abandoned; its calls are learnt all the same.
        `can_be_named`: later requests may go on from its id, as only the Responses API's can.
        """
        turn = self._take(identity)
        if turn is None:
            return None
        if not answer.is_complete:
            self._learner.calls(turn, answer, self._counts)
            self._abandon(turn, now=now)
            return None
        named = answer.response_id if can_be_named else ""
        self._learner.answer(turn, answer, self._counts, now=now, named=named)
        self._touch(turn.conversation.program, now)
        if not turn.answer:
            return None
        ratio = ID_BYTES if turn.text is not None and turn.text.is_ids else bytes_per_token
        return self._digester.prefix(turn.head, turn.answer, turn.size, ratio)

    def abandoned(self, identity: Identity, *, now: Instant) -> None:
        """Note that no complete answer reached the client: the same prompt may come again."""
        turn = self._take(identity)
        if turn is not None:
            self._abandon(turn, now=now)

    def _abandon(self, turn: Turn, *, now: Instant) -> None:
        turn.abandon(now=now)
        self._note_unserved(turn.conversation.program)

    # -- upkeep ----------------------------------------------------------------------------------

    def forget(self, program: ProgramId) -> bool:
        """Forget a program and all that names it. False: it was not known."""
        known = self._programs.pop(program, None)
        if known is None:
            return False
        self._unserved.pop(program, None)
        book = known.book
        for turn in known.turns:
            book.forget_turn(turn)
        self._turns -= len(known.turns)
        book.needles.forget_program(known)
        book.quotes.forget_program(known)
        book.programs -= 1
        if not book.programs:
            self._books.pop(book.name, None)
        self._counts["forgotten"] += 1
        return True

    def expire(self, *, now: Instant) -> tuple[ProgramId, ...]:
        """Forget the programs that were idle, with no request under way, too long; returns them."""
        gone = []
        while self._programs:
            program = next(iter(self._programs.values()))
            if now - program.last_at <= self._limits.program_idle_ns_max:
                break
            if program.open:
                program.last_at = now
                self._programs.move_to_end(program.id)
                continue
            gone.append(program.id)
            self.forget(program.id)
        for book in self._books.values():
            book.needles.expire(now=now, span=self._limits.needle_ns_max)
            book.quotes.expire(now=now, span=self._limits.needle_ns_max)
        return tuple(gone)

    def statistics(self) -> IdentityStatistics:
        return IdentityStatistics(
            programs=len(self._programs),
            conversations=sum(len(p.conversations) for p in self._programs.values()),
            turns=self._turns,
            messages=len(self._digester),
            identified=self._evidence.total(),
            by_evidence={str(kind): count for kind, count in sorted(self._evidence.items())},
            retries=self._counts["retries"],
            repeated_call_ids=self._counts["repeated_call_ids"],
            forgotten=self._counts["forgotten"],
        )

    # -- names -----------------------------------------------------------------------------------

    def program_id(self, tenant: TenantId, name: str) -> ProgramId:
        """A program's id over all tenants. What we showed to a client may come back as it was."""
        return self._names.program(tenant, name)

    def clean(self, name: str) -> str:
        """A name that came from outside, as `identify` takes it."""
        return self._reader.clean(name)

    def _fresh(self, tenant: TenantId) -> ProgramId:
        self._next += 1
        return self._names.made(tenant, self._next)

    def _named(self, book: Book, claim: Claim | None) -> ProgramId | None:
        """The program that the client named: outright, or as that of a parent's thread."""
        if claim is None:
            return None
        if claim.root:
            return self._shown_or_named(book.name, claim.root)
        for thread in (claim.thread, claim.parent_thread):
            if thread and thread in book.threads:
                return book.threads[thread]
        name = claim.parent_thread or claim.thread
        return self.program_id(book.name, name) if name else None

    def _shown_or_named(self, tenant: TenantId, name: str) -> ProgramId:
        """The program that we showed under this id, else the one that its client calls so."""
        shown = self._programs.get(ProgramId(name))
        if shown is not None and shown.book.name == tenant:
            return shown.id
        return self.program_id(tenant, name)

    # -- finding ---------------------------------------------------------------------------------

    def _previous(self, book: Book, request: ParsedRequest) -> Turn | None:
        raw = request.fields.get("previous_response_id")
        if raw is None or len(raw) > 1_024:
            return None
        try:
            value = msgspec.json.decode(raw)
        except msgspec.DecodeError:
            return None
        return book.responses.get(value) if isinstance(value, str) else None

    def _exactly(self, asked: Asked, request: ParsedRequest, previous: Turn | None) -> Match | None:
        """The match by exact means, also by an answer of ours that its client changed."""
        match = self._matcher.find(asked, previous)
        if asked.prompt.is_first or not (match is None or match.relation is Relation.FORKS):
            return match
        answers = self._digester.answers_in(request, asked.prompt, is_ours=asked.book.at)
        later = self._matcher.find_changed(asked, answers)
        is_later = later is not None and (match is None or later.turn.at > match.turn.at)
        return later if is_later else match

    def _match(
        self,
        asked: Asked,
        request: ParsedRequest,
        step_class: StepClass,
        previous: Turn | None,
        named: ProgramId | None,
    ) -> Match | None:
        match = self._exactly(asked, request, previous)
        book = asked.book
        is_condenser = step_class is StepClass.COMPACTION and len(book.quotes) > 0
        is_sought = is_condenser or len(book.needles) > 0
        if match is not None or step_class in _PASSING or not is_sought:
            return match
        if named is not None and (asked.program is None or asked.thread):
            return None  # the client says where it belongs
        hay = hay_of(
            request,
            first=asked.prompt.points[0].chain,
            tracer=self._tracer,
            is_condenser=is_condenser,
        )
        match = self._matcher.find_inside(asked, hay)
        if match is None and is_condenser:
            match = self._matcher.find_told(asked, hay)
        if match is not None and match.relation is Relation.JOINS:
            program = match.turn.conversation.program
            if any(c.thread != AUXILIARY for c in program.conversations.values()):
                return None  # its first step has come already
        return match

    def _take(self, identity: Identity) -> Turn | None:
        """The turn of a request whose end is reported now, for the first and only time."""
        program = self._programs.get(identity.program)
        return program.open.pop(identity.turn, None) if program is not None else None

    # -- answering -------------------------------------------------------------------------------

    def _passing(
        self,
        asked: Asked,
        at: Place,
        step_class: StepClass,
        claim: Claim | None,
        match: Match | None,
        named: ProgramId | None,
        ratio: float,
    ) -> Identity:
        """An identity for a request that leaves no trace."""
        tenant = asked.book.name
        program_id = at.program.id if at.program is not None else named or self._fresh(tenant)
        if at.conversation is not None:
            conversation = at.conversation.id
        else:
            conversation = ConversationId(f"{program_id}#{quoted(at.thread) or '0'}")
        return self._identity(
            asked,
            at,
            step_class,
            claim,
            match,
            ratio,
            program=program_id,
            conversation=conversation,
            step=at.program.steps if at.program is not None else 0,
        )

    def _settle(
        self,
        asked: Asked,
        at: Place,
        step_class: StepClass,
        claim: Claim | None,
        match: Match | None,
        named: ProgramId | None,
        ratio: float,
        request: ParsedRequest,
    ) -> Identity:
        """Remember the request at its place."""
        book, prompt, now = asked.book, asked.prompt, asked.now
        program = at.program
        if program is None:
            program = self._open(book, named, now=now)
        conversation = at.conversation
        if conversation is None:
            conversation = self._branch(program, at, prompt, now=now)
        self._touch(program, now)
        if claim is not None:
            self._note(program, conversation, claim)
            if match is None and prompt.is_first and claim.source == CACHE_KEY:
                own = sum(not c.is_subagent for c in program.conversations.values())
                if own > _CACHE_KEY_HEADS_MAX:
                    book.share(claim.root)
        if conversation.is_subagent and step_class is StepClass.STEP:
            step_class = StepClass.SUBAGENT
        turn = add_turn(
            asked,
            at,
            conversation,
            step_class,
            match,
            candidates_max=self._limits.candidates_max,
        )
        if match is not None and match.needle is not None:
            self._used(match.needle)
        self._next += 1
        program.turns.append(turn)
        program.open[self._next] = turn
        turn.handle = self._next
        turn.prefill = self._digester.prefill(request, prompt)
        self._turns += 1
        is_named = claim is not None and claim.is_naming
        if match is None and step_class is StepClass.AUXILIARY and named is None:
            self._learner.title(turn, request, now=now)
        if not is_named and prompt.results and step_class.is_work:
            self._learner.heard(turn, request, now=now)
        self._make_room(program)
        declared_step = claim.declared.step if claim is not None else None
        identity = self._identity(
            asked,
            at,
            step_class,
            claim,
            match,
            ratio,
            program=program.id,
            conversation=conversation.id,
            parent=program.parent,
            agent=conversation.agent or program.agent,
            step=turn.step if declared_step is None else declared_step,
            turn=self._next,
        )
        self._evidence[identity.evidence] += 1
        self._counts["retries"] += at.is_retry
        return identity

    def _identity(
        self,
        asked: Asked,
        at: Place,
        step_class: StepClass,
        claim: Claim | None,
        match: Match | None,
        ratio: float,
        *,
        program: ProgramId,
        conversation: ConversationId,
        step: int,
        parent: ProgramId | None = None,
        agent: str | None = None,
        turn: int = 0,
    ) -> Identity:
        prompt = asked.prompt
        evidence, source = Evidence.NONE, ""
        if claim is not None and claim.is_naming:
            evidence, source = claim.evidence, claim.source
        elif match is not None:
            evidence = match.evidence
        marks = (match.turn.prompt, match.turn.answer) if match is not None else ()
        known = match.turn.text if match is not None else None
        return Identity(
            program=program,
            conversation=conversation,
            tenant=asked.book.name,
            step_class=step_class,
            lineage=at.lineage,
            evidence=evidence,
            source=source,
            parent_conversation=at.kin,
            parent=parent,
            agent=agent if agent is not None else claim.agent if claim is not None else "",
            step=step,
            turn=turn,
            is_retry=at.is_retry,
            retries=match.turn.handle if at.is_retry and match is not None else 0,
            answers=answers_of(asked, at, match),
            prefixes=self._digester.prefixes(prompt, marks, ratio, known),
            prompt_tokens=prompt.tokens(ratio),
            is_told=prompt.is_told,
            declared=claim.declared if claim is not None else NOTHING_DECLARED,
            goes_on=goes_on(prompt, at, claim),
        )

    # -- remembering -----------------------------------------------------------------------------

    def _open(self, book: Book, named: ProgramId | None, *, now: Instant) -> Program:
        program_id = named if named is not None else self._fresh(book.name)
        program = Program(program=program_id, book=book, is_declared=named is not None)
        program.last_at = now
        self._programs[program_id] = program
        self._books[book.name] = book
        book.programs += 1
        while len(self._programs) > self._limits.programs_max:
            self.forget(self._first_to_go())
        return program

    def _branch(self, program: Program, at: Place, prompt: Prompt, *, now: Instant) -> Conversation:
        conversation = Conversation(
            program=program,
            conversation=branch_of(program, at.thread),
            thread=at.thread,
            head=prompt.head,
        )
        conversation.first = prompt.points[0].chain
        conversation.is_subagent = at.is_subagent
        program.conversations[conversation.id] = conversation
        if at.is_handed:
            program.heads += 1
        if len(program.conversations) > self._limits.conversations_per_program_max:
            self._drop_conversation(program)
        return conversation

    def _drop_conversation(self, program: Program) -> None:
        """Forget the conversation that was idle for longest, with its turns."""
        last: dict[ConversationId, int] = dict.fromkeys(program.conversations, -1)
        for at, turn in enumerate(program.turns):
            if turn.conversation.id in last:
                last[turn.conversation.id] = at
        newest = next(reversed(program.conversations))
        idlest = min((c for c in last if c != newest), key=lambda c: last[c])
        gone = program.conversations.pop(idlest)
        for turn in [t for t in program.turns if t.conversation is gone]:
            program.turns.remove(turn)
            self._drop_turn(program, turn)

    def _drop_turn(self, program: Program, turn: Turn) -> None:
        program.book.forget_turn(turn)
        for handle in [h for h, t in program.open.items() if t is turn]:
            del program.open[handle]
        self._turns -= 1

    def _make_room(self, program: Program) -> None:
        while len(program.turns) > self._limits.turns_per_program_max:
            self._drop_turn(program, program.turns.pop(0))
        while self._turns > self._limits.turns_max and len(self._programs) > 1:
            self.forget(self._first_to_go())

    def _note_unserved(self, program: Program) -> None:
        is_served = any(turn.state is not TurnState.ABANDONED for turn in program.turns)
        if program.id in self._programs and not is_served:
            self._unserved[program.id] = None

    def _first_to_go(self) -> ProgramId:
        return next(iter(self._unserved or self._programs))

    def _used(self, needle: Needle) -> None:
        """A text of ours was found in a prompt. For those that keep what is known of it."""

    def _touch(self, program: Program, now: Instant) -> None:
        program.last_at = now
        self._unserved.pop(program.id, None)
        if program.id in self._programs:
            self._programs.move_to_end(program.id)

    def _note(self, program: Program, conversation: Conversation, claim: Claim) -> None:
        """Keep what the client says about itself."""
        if claim.agent:
            if claim.is_subagent:
                conversation.agent = claim.agent
            elif not program.agent:
                program.agent = claim.agent
        if claim.is_subagent and conversation.thread != AUXILIARY:
            conversation.is_subagent = True
        if claim.parent_program:
            program.parent = self._shown_or_named(program.book.name, claim.parent_program)
        if claim.thread and claim.is_exact:
            threads = program.book.threads
            threads[claim.thread] = program.id
            threads.move_to_end(claim.thread)
            if len(threads) > self._limits.programs_max:
                threads.popitem(last=False)
