"""What a planned conversation sends, as the engine model's block chains and the kernel's prefixes.

Nothing here has tokens, only names of content: equal names mean equal tokens. Prefixes are named
as the proxy names them: the agent's own prompt first, then where the latest calls ended; eight at
most.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import xxhash

from agentsched.model import Prefix, PrefixId
from agentsched_bench.engine.tokens import Run, RunChain
from agentsched_bench.workload.pieces import split
from agentsched_bench.workload.shape import Piece, PlannedCall, PlannedConversation

_PREFIXES_MAX: Final = 8
#: Beginnings of a first prompt without a prompt of the agent's own, counted in its pieces.
_FIXED_PIECES: Final = (1, 4, 16, 64)
_LINK: Final = struct.Struct("<QQQQ")


@dataclass(frozen=True, slots=True)
class _Mark:
    """A place in a prompt: the name of all before it, and how many tokens that is."""

    name: int
    tokens: int


@dataclass(slots=True, kw_only=True)
class _Sent:
    """One call that was sent: its chain (prompt and answer) and the marks of its prompt."""

    chain: RunChain
    tokens: int
    marks: tuple[_Mark, ...]
    answer: _Mark


class SimPrompts:
    """The prompts of one conversation, call by call.

    `copy` tells apart programs that replay one recording: what was their own stays their own. With
    `token_error` e, each token count is off by a factor in 1 - e .. 1 + e, the same for the same
    content, as an estimate from bytes is.
    """

    def __init__(
        self, plan: PlannedConversation, *, copy: str, block_size: int, token_error: float = 0.0
    ) -> None:
        self._plan = plan
        self._copy = copy
        self._block_size = block_size
        self._token_error = token_error
        self._sent: list[_Sent] = []

    def chain(self, index: int) -> RunChain:
        """Prompt and whole answer of call `index`; calls are taken in order."""
        return self._of(index).chain

    def prefixes(self, index: int) -> tuple[Prefix, ...]:
        """Beginnings of the prompt of call `index`, shortest first, all of it last."""
        marks = self._of(index).marks
        head, rest = marks[:1], marks[1:]
        return tuple(self._prefix(mark) for mark in (*head, *rest[-(_PREFIXES_MAX - 1) :]))

    def answered(self, index: int) -> Prefix:
        """Prompt plus answer of call `index`."""
        return self._prefix(self._of(index).answer)

    def prompt_tokens(self, index: int) -> int:
        """The host's estimate of the prompt."""
        return self._estimate(self._of(index).marks[-1].tokens)

    def seen_tokens(self, index: int) -> int:
        """How much of the prompt an earlier call of this conversation had computed."""
        call = self._plan.calls[index]
        if call.base is None:
            return 0
        # The last token of an answer is never computed: nothing came after it.
        is_whole = call.echo_tokens == self._plan.calls[call.base].output_tokens
        return call.keep_tokens + call.echo_tokens - is_whole

    def _of(self, index: int) -> _Sent:
        if index == len(self._sent):
            self._sent.append(self._make(index))
        return self._sent[index]

    def _make(self, index: int) -> _Sent:
        call = self._plan.calls[index]
        chain = self._kept(call)
        for piece in call.pieces:
            chain.extend(self._run(piece))
        assert chain.tokens == call.prompt_tokens
        marks = self._marks(call)
        stream = f"answer/{self._plan.conversation}/{index}"
        answer = Piece(stream=stream, tokens=call.output_tokens)
        chain.extend(self._run(answer))
        return _Sent(
            chain=chain,
            tokens=chain.tokens,
            marks=marks,
            answer=self._link(marks[-1], [answer]),
        )

    def _kept(self, call: PlannedCall) -> RunChain:
        """The chain of what the prompt takes over from its base."""
        if call.base is None:
            return RunChain(block_size=self._block_size)
        base = self._sent[call.base]
        keep = call.keep_tokens + call.echo_tokens
        if keep == base.tokens == base.chain.tokens:
            return base.chain  # nobody else went on from here: the same chain grows
        chain = base.chain.fork(tokens=keep)
        for run in self._runs(call, chain.tokens, keep):
            chain.extend(run)
        return chain

    def _runs(self, call: PlannedCall, start: int, end: int) -> Iterator[Run]:
        """What tokens `start` to `end` of a prompt's kept part are made of."""
        assert call.base is not None
        base = self._plan.calls[call.base]
        reach = min(end, call.keep_tokens)
        if start < reach:
            yield from self._prompt_runs(base, start, reach)
        if end > call.keep_tokens:
            begin = max(start, call.keep_tokens)
            stream = f"answer/{self._plan.conversation}/{call.base}"
            yield self._run(
                Piece(stream=stream, start=begin - call.keep_tokens, tokens=end - begin)
            )

    def _prompt_runs(self, call: PlannedCall, start: int, end: int) -> Iterator[Run]:
        at = call.keep_tokens + call.echo_tokens if call.base is not None else 0
        if start < at:
            yield from self._runs(call, start, min(end, at))
        for piece in call.pieces:
            begin, stop = max(start, at), min(end, at + piece.tokens)
            if begin < stop:
                offset = piece.start + begin - at
                yield self._run(Piece(stream=piece.stream, start=offset, tokens=stop - begin))
            at += piece.tokens

    def _run(self, piece: Piece) -> Run:
        return Run(content=self._content(piece.stream), tokens=piece.tokens, offset=piece.start)

    def _content(self, stream: str) -> int:
        is_common = stream.startswith("shared/")
        name = stream if is_common or not self._copy else f"{self._copy}/{stream}"
        return xxhash.xxh3_64_intdigest(name.encode())

    # Names of beginnings.

    def _marks(self, call: PlannedCall) -> tuple[_Mark, ...]:
        if call.base is None:
            return self._first_marks(call)
        base = self._sent[call.base]
        before = self._plan.calls[call.base]
        marks = [mark for mark in base.marks if mark.tokens <= call.keep_tokens]
        end = marks[-1] if marks else _Mark(0, 0)
        kept = (call.keep_tokens, call.echo_tokens)
        if kept == (before.prompt_tokens, before.output_tokens):
            end = base.answer
            marks.append(end)
        gap = call.keep_tokens + call.echo_tokens - end.tokens
        # What was cut in the middle has no name that anyone else would use.
        between = [Piece(stream=f"cut/{self._plan.conversation}/{call.base}", tokens=gap)]
        whole = self._link(end, [*(between if gap else ()), *call.pieces])
        return (*marks, whole)

    def _first_marks(self, call: PlannedCall) -> tuple[_Mark, ...]:
        head, rest = split(call.pieces, self._plan.system_tokens)
        marks: list[_Mark] = []
        at = _Mark(0, 0)
        if head:
            at = self._link(at, head)
            marks.append(at)
        for number, piece in enumerate(rest, start=1):
            at = self._link(at, [piece])
            if number in _FIXED_PIECES or number == len(rest):
                marks.append(at)
        return tuple(marks)

    def _link(self, mark: _Mark, pieces: Sequence[Piece]) -> _Mark:
        name, tokens = mark.name, mark.tokens
        for piece in pieces:
            link = _LINK.pack(name, self._content(piece.stream), piece.start, piece.tokens)
            name = xxhash.xxh3_64_intdigest(link)
            tokens += piece.tokens
        return _Mark(name, tokens)

    def _prefix(self, mark: _Mark) -> Prefix:
        return Prefix(prefix=PrefixId(f"{mark.name:016x}"), tokens=self._estimate(mark.tokens))

    def _estimate(self, tokens: int) -> int:
        if not self._token_error:
            return tokens
        head = min(tokens, self._plan.system_tokens)
        system = head * self._factor(self._plan.calls[0].pieces[0].stream)
        own = (tokens - head) * self._factor(f"{self._copy}/{self._plan.conversation}")
        return max(1, round(system + own))

    def _factor(self, name: str) -> float:
        draw = xxhash.xxh3_64_intdigest(name.encode(), seed=1) / 2**63 - 1.0
        return 1.0 + self._token_error * draw
