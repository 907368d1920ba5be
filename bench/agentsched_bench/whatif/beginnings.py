"""What first prompts had in common: by the names of their beginnings, and by what engines found.

A name stands for whole messages. Where an agent's own prompt holds a date or a folder, no two
conversations have a name in common, though the engine finds all before that place in its cache:
then its count of cached tokens tells how much of the prompt somebody before had begun with. With
whom it was shared nobody tells: whoever began most alike, on the same engine, is taken.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from agentsched.model import EngineId, PrefixId
from agentsched_bench.whatif.past import Past, PastStep
from agentsched_bench.workload.pieces import split
from agentsched_bench.workload.shape import Piece

#: Of those who began on one engine so many latest ones are compared with who begins next.
_LATEST_MAX: Final = 64
#: A cache counts whole blocks; what it found beyond a name's end by less than this is no more.
_ROUGHLY: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """A first prompt: what it is made of, and how much of it is the agent's own part, by name."""

    pieces: tuple[Piece, ...]
    system_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A conversation that began before: what tells how much another is like it."""

    agent: str | None
    first_tokens: int
    prompt_tokens: int
    pieces: tuple[Piece, ...]

    def likeness(self, other: _Known) -> tuple[bool, bool, int]:
        return (
            self.pieces[0].stream == other.pieces[0].stream,
            self.agent == other.agent,
            -abs(self.first_tokens - other.first_tokens),
        )


def beginnings_of(past: Past) -> dict[str, Beginning]:
    """How each conversation began, by its name."""
    firsts = [
        (str(conversation), steps[0])
        for conversations in past.programs.values()
        for conversation, steps in conversations.items()
    ]
    firsts.sort(key=lambda found: (found[1].sent_at, found[0]))
    shared = _shared_names(past)
    latest: dict[tuple[EngineId, str], deque[_Known]] = defaultdict(
        lambda: deque(maxlen=_LATEST_MAX)
    )
    made: dict[str, Beginning] = {}
    for name, step in firsts:
        before = latest[step.engine, step.arrived.model]
        beginning, known = _begun(name, step, shared, before)
        made[name] = beginning
        before.append(known)
    return made


def _shared_names(past: Past) -> frozenset[PrefixId]:
    """Beginnings that several conversations had."""
    seen: Counter[PrefixId] = Counter()
    for conversations in past.programs.values():
        for steps in conversations.values():
            seen.update({prefix.prefix for step in steps for prefix in step.arrived.prefixes})
    return frozenset(name for name, count in seen.items() if count > 1)


def _begun(
    name: str, step: PastStep, shared: frozenset[PrefixId], before: Sequence[_Known]
) -> tuple[Beginning, _Known]:
    prompt = max(step.prompt_tokens, 1)
    ends = _ends(step, prompt)
    pieces = _named_pieces(name, ends, prompt, shared)
    system_tokens = sum(p.tokens for p in pieces if p.stream.startswith("shared/"))
    known = _Known(
        agent=step.arrived.agent,
        first_tokens=ends[0][1] if ends else prompt,
        prompt_tokens=prompt,
        pieces=pieces,
    )
    named = Beginning(pieces=pieces, system_tokens=system_tokens)
    found = min(step.finished.usage.cached_tokens or 0, prompt - 1)
    # Estimates put the end of a name a few tokens off.
    if found < system_tokens + _ROUGHLY:
        return named, known
    able = [other for other in before if other.prompt_tokens >= found]
    # Of equals the latest: `max` takes the first.
    like = max(reversed(able), key=known.likeness, default=None)
    if like is None:
        return named, known
    made = _borrowed(name, like, found, named, ends)
    return made, replace(known, pieces=made.pieces)


def _borrowed(
    name: str, like: _Known, found: int, named: Beginning, ends: Sequence[tuple[PrefixId, int]]
) -> Beginning:
    """So many tokens as another's, the rest its own. No name tells: policies knew of none either.

    A prompt is named where the agent's own part ends, and then where its first piece does.
    """
    prompt = sum(piece.tokens for piece in named.pieces)
    head, _ = split(like.pieces, found)
    own = Piece(stream=f"own/{name}/0", tokens=prompt - found)
    if not named.system_tokens:
        end = next((end for _, end in ends if end > found), prompt)
        return Beginning(pieces=(*head, own), system_tokens=min(end, prompt - 1))
    common, rest = split(head, named.system_tokens)
    first, more = split(rest, 1)
    return Beginning(pieces=(*common, *first, *more, own), system_tokens=named.system_tokens)


def _ends(step: PastStep, prompt: int) -> list[tuple[PrefixId, int]]:
    """Where each named beginning ends, in tokens of the engine's."""
    scale = prompt / max(1, step.arrived.prompt_tokens)
    return [
        (prefix.prefix, min(prompt - 1, round(prefix.tokens * scale)))
        for prefix in step.arrived.prefixes
    ]


def _named_pieces(
    name: str, ends: Sequence[tuple[PrefixId, int]], prompt: int, shared: frozenset[PrefixId]
) -> tuple[Piece, ...]:
    """The first prompt as stretches between its named beginnings, true to their shares of it."""
    pieces: list[Piece] = []
    at = 0
    for prefix, end in ends:
        if prefix not in shared or end <= at:
            continue
        pieces.append(Piece(stream=f"shared/{prefix}", tokens=end - at))
        at = end
    pieces.append(Piece(stream=f"own/{name}/0", tokens=prompt - at))
    return tuple(pieces)
