"""Workflows that somebody declared: what an agent's steps are and what follows them.

A file in YAML or JSON (or a dict) says for each step which tools its answer calls, what it is
followed by, and how long it is away. Where a program keeps to its workflow, forecasts come from
there; where it leaves it, from what was learnt, until it calls something that the workflow knows.

    name: fix-bug              # also the agent type that it is about, unless `agent` says another
    start: explore
    steps:
      explore: {tools: [grep, read], next: {explore: 0.7, edit: 0.3}, expected_s: 0.5}
      edit:    {tools: [edit], next: [test]}
      test:    {tools: [Bash pytest], next: {edit: 0.5, done: 0.5}, expected_s: 30}
      done:    {}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Final

import msgspec

from agentsched.model import ConfigError, Nanos, ToolName, seconds
from agentsched_graphs.templates import END

STEPS_MAX: Final = 256
_NAME_CHARS_MAX: Final = 128
_SUM_SLACK: Final = 0.01
_ROUNDS_MAX: Final = 10_000


class _Step(msgspec.Struct, forbid_unknown_fields=True):
    tools: list[str] | dict[str, float] = []
    next: list[str] | dict[str, float] = []
    expected_s: float | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """A whole workflow, as it is written, and as the control plane describes it."""

    name: str
    start: str
    steps: dict[str, _Step]
    agent: str = ""


class _Unread(msgspec.Struct, forbid_unknown_fields=True):
    """The same with its steps not read yet: one by one, what is wrong with one is said of it."""

    name: str
    start: str
    steps: dict[str, Any]
    agent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredStep:
    """One step. Probabilities of `tools` and of `successors` add up to one where there are any."""

    name: str
    tools: tuple[tuple[ToolName, float], ...] = ()
    successors: tuple[tuple[str, float], ...] = ()
    expected: Nanos | None = None
    #: Expected number of steps after this one.
    steps_left: float = 0.0

    def calls(self, tool: ToolName) -> float:
        """How likely its answer calls this tool; a name without a command word fits them all."""
        if not self.tools:
            return 1.0 if tool == END else 0.0
        name = tool.partition(" ")[0]
        return sum(chance for known, chance in self.tools if known in (tool, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """A validated workflow; made by `read_workflow`."""

    name: str
    agent: str
    start: str
    steps: Mapping[str, DeclaredStep]

    def follow(self, place: str | None, tool: ToolName) -> str | None:
        """Where a program is that was at `place` (None: before its start) and called `tool`.

        None when neither what was to come nor any other step calls it.
        """
        coming = ((self.start, 1.0),) if place is None else self.steps[place].successors
        for candidates in (coming, tuple((name, 1.0) for name in self.steps)):
            fits = [(self.steps[name].calls(tool) * chance, name) for name, chance in candidates]
            likeliest = max(fits, key=lambda fit: fit[0], default=(0.0, ""))
            if likeliest[0] > 0.0:
                return likeliest[1]
        return None

    def next_tools(self, place: str | None) -> tuple[tuple[ToolName, float], ...]:
        """Tools by how likely the next step calls them; `END` for none."""
        coming = ((self.start, 1.0),) if place is None else self.steps[place].successors
        chances: dict[ToolName, float] = {}
        for name, chance in coming:
            for tool, share in self.steps[name].tools or ((END, 1.0),):
                chances[tool] = chances.get(tool, 0.0) + chance * share
        return tuple(sorted(chances.items(), key=lambda pair: (-pair[1], pair[0])))

    def steps_left(self, place: str | None) -> float:
        """Expected number of steps to come."""
        if place is None:
            return 1.0 + self.steps[self.start].steps_left
        return self.steps[place].steps_left


def read_workflow(source: bytes | str | Mapping[str, Any]) -> Workflow:
    """Read and validate a workflow: YAML or JSON text, or a dict of the same shape.

    Raises:
        ConfigError: what is wrong with it, and where.
    """
    try:
        raw = msgspec.convert(_parsed(source), _Unread)
    except msgspec.ValidationError as error:
        raise ConfigError(f"workflow: {error}") from error
    if not raw.name:
        raise ConfigError("workflow: it has no name")
    where = f"workflow {raw.name!r}"
    if not 0 < len(raw.steps) <= STEPS_MAX:
        raise ConfigError(f"{where}: it has {len(raw.steps)} steps (1 to {STEPS_MAX} are allowed)")
    if raw.start not in raw.steps:
        raise ConfigError(f"{where}: it starts with {raw.start!r}, which is none of its steps")
    steps = {
        name: _step(name, _read_step(step, name, where=where), raw, where=where)
        for name, step in raw.steps.items()
    }
    _check_paths(steps, start=raw.start, where=where)
    left = _steps_left(steps, where=where)
    return Workflow(
        name=raw.name,
        agent=raw.agent or raw.name,
        start=raw.start,
        steps={name: replace(step, steps_left=left[name]) for name, step in steps.items()},
    )


def write_workflow(workflow: Workflow) -> str:
    """The workflow as JSON text that `read_workflow` reads back to an equal one."""
    steps = {
        step.name: _Step(
            tools=dict(step.tools),
            next=dict(step.successors),
            expected_s=None if step.expected is None else step.expected / 1e9,
        )
        for step in workflow.steps.values()
    }
    raw = _File(name=workflow.name, start=workflow.start, steps=steps, agent=workflow.agent)
    return msgspec.json.encode(raw).decode()


def _parsed(source: bytes | str | Mapping[str, Any]) -> object:
    if isinstance(source, Mapping):
        return source
    try:
        return msgspec.json.decode(source)
    except RecursionError as error:
        raise ConfigError("workflow: it is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeError):
        pass  # then it is YAML, or nothing
    try:
        return msgspec.yaml.decode(source)
    except ImportError as error:
        raise ConfigError("workflow: pip install 'agentsched[yaml]' to read YAML") from error
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        # A number of thousands of digits is a ValueError of Python's own; a parser's word on YAML
        # takes several lines.
        said = " ".join(str(error).split())
        raise ConfigError(f"workflow: neither YAML nor JSON: {said}") from error


def _read_step(raw: object, name: str, *, where: str) -> _Step:
    try:
        return msgspec.convert(raw, _Step)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}, step {name!r}: {error}") from error


def _step(name: str, raw: _Step, file: _Unread, *, where: str) -> DeclaredStep:
    where = f"{where}, step {name!r}"
    if not 0 < len(name) <= _NAME_CHARS_MAX:
        raise ConfigError(f"{where}: a name has 1 to {_NAME_CHARS_MAX} characters")
    for successor in raw.next:
        if successor not in file.steps:
            raise ConfigError(f"{where}: it is followed by {successor!r}, which is no step")
    expected = raw.expected_s
    if expected is not None and not (isfinite(expected) and 0.0 <= expected <= 1e6):
        raise ConfigError(f"{where}: expected_s is a number of seconds, not {expected}")
    tools = _chances(raw.tools, where=f"{where}, tools")
    return DeclaredStep(
        name=name,
        tools=tuple((ToolName(tool), chance) for tool, chance in tools),
        successors=_chances(raw.next, where=f"{where}, next"),
        expected=None if expected is None else seconds(expected),
    )


def _chances(raw: list[str] | dict[str, float], *, where: str) -> tuple[tuple[str, float], ...]:
    """Names with probabilities; a plain list means that all are as likely."""
    if not raw:
        return ()
    if isinstance(raw, list):
        if len(set(raw)) < len(raw):
            raise ConfigError(f"{where}: a name stands there twice")
        return tuple((name, 1.0 / len(raw)) for name in raw)
    for name, chance in raw.items():
        if not (isfinite(chance) and 0.0 < chance <= 1.0):
            raise ConfigError(f"{where}: {name!r} has the probability {chance} (over 0, up to 1)")
    if abs(sum(raw.values()) - 1.0) > _SUM_SLACK:
        raise ConfigError(f"{where}: the probabilities add up to {sum(raw.values()):g}, not to 1")
    return tuple(raw.items())


def _check_paths(steps: Mapping[str, DeclaredStep], *, start: str, where: str) -> None:
    """Every step can be reached, and from each an end can be."""
    forward = {name: [n for n, _ in step.successors] for name, step in steps.items()}
    backward: dict[str, list[str]] = {name: [] for name in steps}
    for name, successors in forward.items():
        for successor in successors:
            backward[successor].append(name)
    lost = [name for name in steps if name not in _reach([start], forward)]
    if lost:
        raise ConfigError(f"{where}: nothing leads to step {lost[0]!r}")
    ends = [name for name, successors in forward.items() if not successors]
    ending = _reach(ends, backward)
    endless = [name for name in steps if name not in ending]
    if endless:
        raise ConfigError(f"{where}: from step {endless[0]!r} no end can be reached")


def _reach(begin: list[str], edges: Mapping[str, list[str]]) -> set[str]:
    reached, waiting = set(begin), list(begin)
    while waiting:
        for name in edges[waiting.pop()]:
            if name not in reached:
                reached.add(name)
                waiting.append(name)
    return reached


def _steps_left(steps: Mapping[str, DeclaredStep], *, where: str) -> dict[str, float]:
    """Expected steps after each: the chain's time to absorption, by repeated substitution."""
    left = dict.fromkeys(steps, 0.0)
    for _ in range(_ROUNDS_MAX):
        change = 0.0
        for name, step in steps.items():
            now = sum(chance * (1.0 + left[after]) for after, chance in step.successors)
            change = max(change, abs(now - left[name]))
            left[name] = now
        if change < 1e-6:
            return left
    raise ConfigError(f"{where}: its loops take too long to end (thousands of steps)")
