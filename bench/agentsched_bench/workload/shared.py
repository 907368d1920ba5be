"""Programs that share less of their prompts than was recorded, to see what sharing is worth."""

from __future__ import annotations

from dataclasses import replace

from agentsched_bench.workload.pieces import split
from agentsched_bench.workload.shape import PlannedConversation, PlannedProgram


def limit_shared(program: PlannedProgram, *, tokens: int) -> PlannedProgram:
    """`program`, whose conversations share only their first `tokens` tokens with others."""
    children = tuple(_limit(child, tokens) for child in program.children)
    return replace(program, main=_limit(program.main, tokens), children=children)


def _limit(plan: PlannedConversation, tokens: int) -> PlannedConversation:
    first, *rest = plan.calls
    head, tail = split(first.pieces, tokens)
    own = [
        replace(piece, stream=f"own/{plan.conversation}/{piece.stream}")
        if piece.stream.startswith("shared/")
        else piece
        for piece in tail
    ]
    calls = (replace(first, pieces=(*head, *own)), *rest)
    return replace(plan, calls=calls, system_tokens=min(tokens, plan.system_tokens))
