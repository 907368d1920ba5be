"""Lower bounds: what no scheduler and no cache can beat with these engines and these programs.

Per program: each token that nobody has computed before is computed once, each answer is decoded by
itself, and pauses and sub-agents take their recorded time along the critical path. Nothing waits,
nothing is computed twice, and what several conversations share is there from the beginning.
Engines: all computation, at the best batch there could be, spread evenly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentsched.model import SECOND
from agentsched_bench.engine.cost import CostModel
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.workload.shape import PlannedCall, PlannedConversation, PlannedProgram


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """`programs_s`: least completion time of each plan. `makespan_s`: least time for all of them.
    `computed_tokens`: prompt tokens that had to be computed once, whatever the cache.
    """

    programs_s: Mapping[str, float]
    makespan_s: float
    computed_tokens: int


def bound_of(
    programs: Sequence[tuple[PlannedProgram, str]], engines: Sequence[EngineConfig]
) -> Bound:
    """The bounds for these programs, each with the copy that it is (equal ones share content)."""
    # Most fleets are of few kinds: each is reckoned with once, and counted as often as it is there.
    kinds = [(engine.cost, engine.max_num_seqs) for engine in engines]
    costs = list(dict.fromkeys(cost for cost, _ in kinds))
    # Copies are the same plan: one path each.
    plans = {plan.program: plan for plan, _ in programs}
    common = _common(plans.values())
    least = {name: least_s(plan, costs, common=common) for name, plan in plans.items()}
    work = {kind: _work_s(programs, *kind, common=common) for kind in dict.fromkeys(kinds)}
    together = 1.0 / sum(1.0 / max(1e-12, work[kind]) for kind in kinds)
    longest = max(least.values(), default=0.0)
    return Bound(
        programs_s=least,
        makespan_s=max(longest, together),
        computed_tokens=sum(_new_tokens(programs)),
    )


def least_s(
    plan: PlannedProgram, costs: Iterable[CostModel], *, common: frozenset[str] = frozenset()
) -> float:
    """Seconds from a program's first call to its last answer on the fastest engine there is.

    `common`: streams that others hold as well, and may have computed before.
    """
    new = {talk.conversation: _new_by_call(talk, common) for talk in plan.conversations}
    return min(_path_s(plan, plan.main, cost, new) for cost in costs)


def _common(plans: Iterable[PlannedProgram]) -> frozenset[str]:
    """Streams that more than one conversation holds: blocks with one hash, say."""
    met: set[str] = set()
    common: set[str] = set()
    for plan in plans:
        for talk in plan.conversations:
            own = {piece.stream for call in talk.calls for piece in call.pieces}
            common |= own & met
            met |= own
    return frozenset(common)


def _new_by_call(talk: PlannedConversation, common: frozenset[str]) -> list[int]:
    """Of each call's prompt, the tokens that nobody can have computed before it."""
    reach: dict[str, int] = {}
    found: list[int] = []
    for call in talk.calls:
        new = 0
        for piece in call.pieces:
            end = piece.start + piece.tokens
            if _is_own(piece.stream) and piece.stream not in common:
                new += max(0, end - max(piece.start, reach.get(piece.stream, 0)))
            reach[piece.stream] = max(end, reach.get(piece.stream, 0))
        # An engine computes a prompt's last token whatever it has.
        found.append(max(1, new))
    return found


def _path_s(
    plan: PlannedProgram,
    talk: PlannedConversation,
    cost: CostModel,
    new: Mapping[str, Sequence[int]],
) -> float:
    """When the last thing ends that a conversation began, from its own beginning."""
    at = 0.0
    ends: list[float] = []
    for index, call in enumerate(talk.calls):
        at += call_s(call, cost, new=new[talk.conversation][index])
        joined = at
        for child in plan.children:
            if child.parent == talk.conversation and child.parent_call == index:
                end = at + child.start_delay_s + _path_s(plan, child, cost, new)
                ends.append(end)
                joined = max(joined, end if child.joins else joined)
        at = joined
        if index + 1 < len(talk.calls):
            at += call.pause_s
    return max([at, *ends])


def call_s(call: PlannedCall, cost: CostModel, *, new: int | None = None) -> float:
    """One call alone on an idle engine that has all it can have of the prompt in its cache.

    `new` tokens are not there; None: all that the call adds and that is its conversation's own.
    """
    if new is None:
        new = max(1, sum(p.tokens for p in call.pieces if _is_own(p.stream)))
    start = call.prompt_tokens - new
    # The step of the last prompt token emits the first token of the answer.
    later = call.output_tokens - 1
    context = later * call.prompt_tokens + later * (later + 1) // 2
    decode_ns = later * (cost.base_ns + cost.per_decode_ns) + context * cost.per_decode_context_ns
    first_ns = cost.base_ns + cost.prefill_ns(start=start, tokens=new)
    return float(cost.per_call_ns + first_ns + decode_ns) / SECOND


def _work_s(
    programs: Sequence[tuple[PlannedProgram, str]],
    cost: CostModel,
    batch: int,
    *,
    common: frozenset[str] = frozenset(),
) -> float:
    """Engine seconds of everything, each step's fixed cost shared by the largest batch."""
    total = 0.0
    for plan, _ in programs:
        for talk in plan.conversations:
            for call, new in zip(talk.calls, _new_by_call(talk, common), strict=True):
                start = call.prompt_tokens - new
                later = call.output_tokens - 1
                context = later * call.prompt_tokens + later * (later + 1) // 2
                total += cost.prefill_ns(start=start, tokens=new)
                total += later * (cost.base_ns / batch + cost.per_decode_ns)
                total += context * cost.per_decode_context_ns
    return total / SECOND


def _is_own(stream: str) -> bool:
    return not stream.startswith("shared/")


def _new_tokens(programs: Sequence[tuple[PlannedProgram, str]]) -> Iterable[int]:
    """Tokens of each content that some prompt holds, each counted once."""
    spans: dict[str, set[tuple[int, int]]] = {}
    for plan, copy in programs:
        for talk in plan.conversations:
            for call in talk.calls:
                for piece in call.pieces:
                    own = _is_own(piece.stream)
                    name = f"{copy}/{piece.stream}" if own and copy else piece.stream
                    spans.setdefault(name, set()).add((piece.start, piece.start + piece.tokens))
    for held in spans.values():
        reach = 0
        for begin, end in sorted(held):
            # What lies before a stretch need not be in any prompt.
            yield max(0, end - max(begin, reach))
            reach = max(reach, end)
