"""Interleaved programs that share system prompts and first words are told apart, always."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.model import StepClass
from agentsched.proxy.identity import Identity
from agentsched_bench.clients.acting import Wire, result, said, system, user

SYSTEMS = ("You are an agent.", "You are another agent.")
TASKS = ("fix the bug", "write a test")
TEXTS = ("", "Let me look.", "Hm.")

Call = tuple[str, str, str]


@dataclass
class Line:
    """One conversation as its client knows it. `told` is all that it will send next."""

    program: int
    told: list[dict[str, Any]]
    tools: tuple[str, ...]
    last: Identity | None = None
    waits: tuple[Call, ...] = ()
    is_subagent: bool = False
    is_solid: bool = False
    past: list[list[dict[str, Any]]] = field(default_factory=list)


class World:
    """Clients at work on one index; knows whose each request is and checks the answer at once."""

    def __init__(self, choose: random.Random, *, is_unique: bool) -> None:
        self.wire = Wire()
        self.choose = choose
        self.is_unique = is_unique
        self.lines: list[Line] = []
        self.named: dict[int, str] = {}
        self.owners: dict[str, int] = {}
        self.calls = 0
        self.checked = 0

    def act(self) -> None:
        kind = self.choose.random()
        ready = [line for line in self.lines if line.last is not None]
        if not ready or kind < 0.2:
            self.start()
        elif kind < 0.3:
            self.fork(self.choose.choice(ready))
        elif kind < 0.4:
            self.spawn(self.choose.choice(ready))
        else:
            self.go_on(self.choose.choice(ready))

    def start(self) -> None:
        told = [system(self.choose.choice(SYSTEMS)), user(self.choose.choice(TASKS))]
        line = Line(len(self.named), told, ("bash",))
        self.named[line.program] = ""
        self.lines.append(line)
        self.send(line)

    def send(self, line: Line) -> None:
        """Send what is told, twice where the first time failed; then take the answer."""
        identity = self.wire.chat(self.reshaped(line.told), tools=line.tools)
        self.check(line, identity)
        if self.choose.random() < 0.2:
            self.wire.abandon(identity)
            again = self.wire.chat(self.reshaped(line.told), tools=line.tools)
            self.check(line, again)
            assert again.is_retry
            assert again.step == identity.step
            identity = again
        line.last = identity
        self.answer(line, identity)

    def answer(self, line: Line, identity: Identity) -> None:
        line.past.append(list(line.told))
        text = self.choose.choice(TEXTS)
        if line.is_solid and self.choose.random() < 0.25:
            line.waits = ()
            self.wire.answer(identity, text or "Done.")
            line.told = [*line.told, said(text or "Done.")]
            return
        calls = tuple(self.call("bash", '{"cmd": "ls"}') for _ in range(self.choose.randint(1, 3)))
        self.reply(line, identity, text, calls)

    def reply(self, line: Line, identity: Identity, text: str, calls: tuple[Call, ...]) -> None:
        line.waits = calls
        line.is_solid = self.is_unique
        self.wire.answer(identity, text, calls)
        line.told = [*line.told, said(text, *calls)]

    def call(self, name: str, arguments: str) -> Call:
        self.calls += 1
        call_id = f"call_{self.calls:06x}f0f0a1" if self.is_unique else "call_1"
        return (call_id, name, arguments)

    def go_on(self, line: Line) -> None:
        line.told = [*line.told, *self.results(line)]
        self.send(line)

    def results(self, line: Line) -> list[dict[str, Any]]:
        if not line.waits:
            return [user("go on")]
        return [result(call_id, "ok") for call_id, _, _ in line.waits]

    def fork(self, line: Line) -> None:
        """Go on from an earlier place in another way."""
        if not line.waits or not self.is_unique:
            return
        other = Line(line.program, [*line.told], line.tools, is_subagent=line.is_subagent)
        other.is_solid, other.waits = line.is_solid, line.waits
        other.told += [*self.results(line), user(f"instead, do {self.calls}")]
        self.go_on(line)
        self.lines.append(other)
        self.send(other)

    def spawn(self, line: Line) -> None:
        """Answer with a call of a sub-agent, which starts beside its parent."""
        if line.is_subagent or not self.is_unique:
            return
        prompt = f"look into matter number {self.calls}"
        line.told = [*line.told, *self.results(line)]
        identity = self.wire.chat(self.reshaped(line.told), tools=line.tools)
        self.check(line, identity)
        line.last = identity
        self.reply(line, identity, "", (self.call("Agent", f'{{"prompt": "{prompt}"}}'),))
        told = [system("You are a helper."), user(f"<env/>\n{prompt}")]
        child = Line(line.program, told, ("grep",), is_subagent=True)
        self.lines.append(child)
        self.send(child)

    def reshaped(self, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same history as another client would put it."""
        shape = self.choose.randint(0, 2)
        if shape == 0:
            return told
        out = []
        for message in told:
            message = dict(message)
            if shape == 1 and isinstance(message.get("content"), str):
                message["content"] = [{"type": "text", "text": message["content"] + " \n"}]
            if shape == 2 and message.get("tool_calls"):
                message["content"] = None
            out.append(message)
        return out

    def check(self, line: Line, identity: Identity) -> None:
        self.checked += 1
        owner = self.owners.setdefault(identity.program, line.program)
        if self.is_unique:
            assert owner == line.program, "two programs were merged"
            name = self.named[line.program] or identity.program
            assert identity.program == name, "a step was not linked"
            self.named[line.program] = name
            assert (identity.step_class is StepClass.SUBAGENT) is line.is_subagent
        else:
            head = self.head_of(line.program)
            assert self.head_of(owner) == head, "programs with different heads were merged"

    def head_of(self, program: int) -> list[dict[str, Any]]:
        return next(line.told[:2] for line in self.lines if line.program == program)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 60))
@pytest.mark.slow
def test_with_unique_call_ids_every_step_is_linked_and_none_is_merged(
    seed: int, length: int
) -> None:
    world = World(random.Random(seed), is_unique=True)
    for _ in range(length):
        world.act()
    assert world.checked >= length // 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 60))
@pytest.mark.slow
def test_with_repeated_call_ids_only_equal_beginnings_can_be_confused(
    seed: int, length: int
) -> None:
    world = World(random.Random(seed), is_unique=False)
    for _ in range(length):
        world.act()
    assert world.checked >= length // 3
