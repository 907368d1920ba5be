"""How well it is foreseen how much of a program is still to come, on programs not learnt from.

Asked before every step of a held-out program, as the order of waiting steps asks. Two figures: how
far off the count is (the mean of |ln(forecast / truth)|), and how often the forecast tells which of
two programs has less to come. The second is what an order needs: a constant is right half the time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from agentsched_bench.forecast.cases import is_held_out, read_texts
from agentsched_bench.workload.trace import group_programs, read_trace
from agentsched_graphs.remaining import RemainingSteps

#: Pairs of programs that are compared; the same ones for every forecast.
_PAIRS: Final = 20_000
USED: Final = "used"


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """A program: its agent type and how many steps it took, those of sub-agents among them."""

    program: str
    agent: str
    steps: int


class RemainingScore(msgspec.Struct, frozen=True, kw_only=True):
    """One forecast. `log_error`: mean |ln(forecast / truth)|. `in_order`: share of pairs of states
    of different programs, with unequal truths, that it orders rightly; a tie counts half."""

    log_error: float
    in_order: float


class RemainingReport(msgspec.Struct, frozen=True, kw_only=True):
    """One trace; `steps_p10`, `steps_p50` and `steps_p90` are of the held-out programs' lengths."""

    programs_learnt: int
    programs_held_out: int
    states_held_out: int
    steps_p10: int
    steps_p50: int
    steps_p90: int
    forecasts: dict[str, RemainingScore]


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """Before a step: whose it is, how many are done, how many are to come with it."""

    program: str
    agent: str
    done: int
    left: int


Forecast = Callable[[_State], float]


def read_lives(path: Path) -> list[Life]:
    """The programs of a trace that ended by themselves, as far as their recording says.

    Raises:
        TraceError: it is neither a trace nor a file of whole texts.
    """
    texts = read_texts(path)
    if texts is not None:
        return [Life(program=c.program, agent=c.agent, steps=len(c.tools)) for c in texts]
    return [
        Life(
            program=program.main.session_id,
            agent=program.main.agent or "",
            steps=len(program.main.steps) + sum(len(child.steps) for child in program.children),
        )
        for program in group_programs(list(read_trace(path)))
        if program.main.steps and not program.main.is_cut
    ]


def evaluate_remaining(lives: Sequence[Life]) -> RemainingReport | None:
    """Learn from seven programs of ten, be examined on the others; None without both."""
    learnt = [life for life in lives if not is_held_out(life.program)]
    held_out = [life for life in lives if is_held_out(life.program)]
    if not learnt or not held_out:
        return None
    states = [state for life in held_out for state in _states(life)]
    pairs = _pairs(states)
    lengths = sorted(life.steps for life in held_out)
    return RemainingReport(
        programs_learnt=len(learnt),
        programs_held_out=len(held_out),
        states_held_out=len(states),
        steps_p10=_at(lengths, 0.1),
        steps_p50=_at(lengths, 0.5),
        steps_p90=_at(lengths, 0.9),
        forecasts={
            name: RemainingScore(
                log_error=round(_log_error(forecast, states), 4),
                in_order=round(_in_order(forecast, pairs), 4),
            )
            for name, forecast in _forecasts(learnt).items()
        },
    )


def _forecasts(learnt: Sequence[Life]) -> dict[str, Forecast]:
    """What is used, and what knows less: a constant, and the mean length less what is done."""
    model = RemainingSteps()
    for life in learnt:
        model.ended(agent=life.agent, steps=life.steps)
    # The best constant there is for this error, had one known the learnt programs.
    constant = median(state.left for life in learnt for state in _states(life))
    mean = sum(life.steps for life in learnt) / len(learnt)
    return {
        "constant": lambda state: constant,
        "mean length less done": lambda state: max(1.0, mean - state.done),
        USED: lambda state: max(1.0, model.expected(agent=state.agent, steps_done=state.done)),
    }


def _states(life: Life) -> list[_State]:
    return [
        _State(program=life.program, agent=life.agent, done=done, left=life.steps - done)
        for done in range(life.steps)
    ]


def _pairs(states: Sequence[_State]) -> list[tuple[_State, _State]]:
    """States of two programs with unequal truths, by lot: the same lot in every run."""
    rng = random.Random("remaining/pairs")
    drawn = (rng.choices(states, k=2) for _ in range(_PAIRS))
    return [(a, b) for a, b in drawn if a.program != b.program and a.left != b.left]


def _log_error(forecast: Forecast, states: Sequence[_State]) -> float:
    return sum(abs(log(forecast(state) / state.left)) for state in states) / len(states)


def _in_order(forecast: Forecast, pairs: Sequence[tuple[_State, _State]]) -> float:
    if not pairs:
        return 0.5
    right = 0.0
    for one, other in pairs:
        told = forecast(one) - forecast(other)
        right += 0.5 if not told else (told < 0) == (one.left < other.left)
    return right / len(pairs)


def _at(lengths: Sequence[int], share: float) -> int:
    return lengths[min(len(lengths) - 1, int(share * len(lengths)))]
