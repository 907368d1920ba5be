"""Mixes of programs: how many of which trace, in which order, and of what kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentsched.model import ConfigError
from agentsched_bench.recognition.mix import Choice, grows, mixed, sharing
from agentsched_bench.workload.generate import generate
from agentsched_bench.workload.shape import (
    Piece,
    PlannedCall,
    PlannedConversation,
    PlannedProgram,
    ShapeOptions,
)
from agentsched_bench.workload.trace import write_trace

_SHAPE = ShapeOptions(scale_tokens=16, steps_max=6)


@pytest.fixture
def traces(tmp_path: Path) -> list[Path]:
    """A small trace and a larger one."""
    paths = []
    for name, programs, seed in (("large", 12, 1), ("small", 4, 2)):
        path = tmp_path / f"{name}.jsonl"
        write_trace(generate(programs=programs, seed=seed, steps_max=8), path)
        paths.append(path)
    return paths


def test_what_one_trace_lacks_another_gives(traces: list[Path]) -> None:
    programs, rows = mixed(traces, count=12, choice=Choice.ANY, shape=_SHAPE, seed=0)

    assert {row.name: row.programs for row in rows} == {"small.jsonl": 4, "large.jsonl": 8}
    assert len({program.program for program in programs}) == len(programs) == 12
    assert sum(row.calls for row in rows) == sum(program.calls for program in programs)
    assert all(row.is_synthetic for row in rows)


def test_the_seed_decides_what_is_taken_and_in_which_order(traces: list[Path]) -> None:
    def names(seed: int) -> list[str]:
        programs, _ = mixed(traces, count=8, choice=Choice.ANY, shape=_SHAPE, seed=seed)
        return [program.program for program in programs]

    assert names(3) == names(3) != names(4)


def test_growing_programs_are_alone_and_only_grow(traces: list[Path]) -> None:
    programs, _ = mixed(traces, count=20, choice=Choice.GROWING, shape=_SHAPE, seed=0)

    assert programs
    assert all(not program.children and grows(program.main) for program in programs)
    assert all(len(program.main.calls) >= 2 for program in programs)


def _call(base: int | None, *, keep: int, prompt: int) -> PlannedCall:
    return PlannedCall(
        base=base,
        keep_tokens=keep,
        echo_tokens=0,
        pieces=(),
        prompt_tokens=prompt,
        output_tokens=1,
        pause_s=0.0,
    )


def test_a_prompt_that_lost_something_does_not_grow() -> None:
    whole = PlannedConversation(
        conversation="c",
        calls=(_call(None, keep=0, prompt=10), _call(0, keep=10, prompt=20)),
    )
    cut = replace(whole, calls=(whole.calls[0], _call(0, keep=9, prompt=20)))
    forked = replace(whole, calls=(*whole.calls, _call(0, keep=10, prompt=30)))

    assert grows(whole)
    assert not grows(cut)
    assert not grows(forked)


def test_programs_of_one_trace_get_a_system_prompt_in_common() -> None:
    def program(name: str, *, prompt: int, system_tokens: int = 0) -> PlannedProgram:
        own = (Piece(stream=f"own/{name}", tokens=10), Piece(stream="more", tokens=prompt - 10))
        call = replace(_call(None, keep=0, prompt=prompt), pieces=own)
        main = PlannedConversation(conversation=name, calls=(call,), system_tokens=system_tokens)
        return PlannedProgram(program=name, main=main)

    known = program("known", prompt=90, system_tokens=20)
    small, large, same = sharing(
        [program("small", prompt=40), program("large", prompt=100), known], name="system/x"
    )

    assert same is known
    assert small.main.system_tokens == large.main.system_tokens == 20
    assert small.main.calls[0].pieces == (
        Piece(stream="system/x", tokens=20),
        Piece(stream="more", start=10, tokens=20),
    )
    assert sum(piece.tokens for piece in large.main.calls[0].pieces) == 100


def test_nothing_that_fits_is_an_error(traces: list[Path]) -> None:
    with pytest.raises(ConfigError, match="no program"):
        mixed(traces, count=5, choice=Choice.ANY, shape=_SHAPE, seed=0, steps_min=500)
