"""Programs of several traces, mixed and shaped for a test of recognition."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from agentsched.model import ConfigError
from agentsched_bench.live.results import TraceRow
from agentsched_bench.workload.shape import (
    Piece,
    PlannedConversation,
    PlannedProgram,
    ShapeOptions,
    SharedPrompts,
    plan_program,
)
from agentsched_bench.workload.trace import Recording, group_programs, read_trace, sha256_of


class Choice(StrEnum):
    """Which programs are taken.

    GROWING: main conversations alone, of programs whose prompts only ever grow. ANY: all, with
    their sub-agents, also where a recorded prompt has nothing of the one before it.
    """

    GROWING = "growing"
    ANY = "any"


def mixed(
    traces: Sequence[Path],
    *,
    count: int,
    choice: Choice,
    shape: ShapeOptions,
    seed: int,
    steps_min: int = 2,
) -> tuple[list[PlannedProgram], list[TraceRow]]:
    """Up to `count` programs with `steps_min` calls or more: as many of each trace as can be.

    The order is drawn by lot, so that programs of one trace do not come one after the other. Where
    a trace does not say how much of a first prompt is the agent's own, half of the shortest one's
    length is, in all of its programs (see `sharing`).

    Raises:
        ConfigError: no program fits.
        TraceError: a trace cannot be read.
    """
    pools = [_fitting(path, choice=choice, shape=shape, steps_min=steps_min) for path in traces]
    taken: list[PlannedProgram] = []
    rows: list[TraceRow] = []
    # The smallest first: what it lacks, the others give.
    order = sorted(range(len(pools)), key=lambda index: len(pools[index][0]))
    for place, index in enumerate(order):
        programs, is_synthetic = pools[index]
        share = (count - len(taken)) // (len(order) - place)
        rng = random.Random(f"mix/{seed}/{index}")
        chosen = rng.sample(programs, min(share, len(programs)))
        taken += chosen
        path = traces[index]
        rows.append(
            TraceRow(
                name=path.name,
                sha256=sha256_of(path),
                programs=len(chosen),
                calls=sum(program.calls for program in chosen),
                is_synthetic=is_synthetic,
            )
        )
    if not taken:
        raise ConfigError("no program of these traces fits")
    random.Random(f"mix/{seed}").shuffle(taken)
    return taken, rows


def _fitting(
    path: Path, *, choice: Choice, shape: ShapeOptions, steps_min: int
) -> tuple[list[PlannedProgram], bool]:
    recordings: list[Recording] = list(read_trace(path))
    shared = SharedPrompts.learn(recordings)
    plans = [plan_program(program, shape, shared=shared) for program in group_programs(recordings)]
    if choice is Choice.GROWING:
        plans = [replace(plan, children=()) for plan in plans if grows(plan.main)]
    fitting = sharing(
        [plan for plan in plans if len(plan.main.calls) >= steps_min], name=f"system/{path.name}"
    )
    return fitting, all(recording.synthetic for recording in recordings)


def sharing(programs: Sequence[PlannedProgram], *, name: str) -> list[PlannedProgram]:
    """The programs with a system prompt in common, those that have one already as they are.

    It takes the place of the first prompt's beginning; no length changes.
    """
    bare = [program for program in programs if not program.main.system_tokens]
    tokens = min((program.main.calls[0].prompt_tokens for program in bare), default=0) // 2
    if not tokens:
        return list(programs)
    return [
        program if program.main.system_tokens else _with_system(program, name=name, tokens=tokens)
        for program in programs
    ]


def _with_system(program: PlannedProgram, *, name: str, tokens: int) -> PlannedProgram:
    first, *others = program.main.calls
    left = tokens
    rest: list[Piece] = []
    for piece in first.pieces:
        cut = min(left, piece.tokens)
        left -= cut
        if cut < piece.tokens:
            rest.append(replace(piece, start=piece.start + cut, tokens=piece.tokens - cut))
    system = Piece(stream=name, tokens=tokens)
    calls = (replace(first, pieces=(system, *rest)), *others)
    return replace(program, main=replace(program.main, calls=calls, system_tokens=tokens))


def grows(conversation: PlannedConversation) -> bool:
    """Whether each prompt begins with the whole one before it."""
    calls = conversation.calls
    return all(
        call.base == index - 1 and call.keep_tokens >= calls[index - 1].prompt_tokens
        for index, call in enumerate(calls)
        if index
    )
