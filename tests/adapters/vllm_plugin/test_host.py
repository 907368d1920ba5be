"""What the core inside the engine asks for beside proxies, over an engine that is made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from shorthand import pin, unpin

from agentsched.model import Command, HintOutcome, Instant, UnpinReason, seconds
from agentsched_adapters.vllm_plugin.blocks import Keeper
from agentsched_adapters.vllm_plugin.caller import Caller
from agentsched_adapters.vllm_plugin.core import Core
from agentsched_adapters.vllm_plugin.wire import XARG_CONVERSATION
from agentsched_bench.vllm_local.fake_plugin import FakePlugin


class Scripted(Core):
    """A core that says what a test wants, and notes how much was cached of what ended."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.cached: list[int] = []

    def tick(self, *, now: Instant) -> Sequence[Command]:
        said, self.commands = self.commands, []
        return said

    def arrived(self, request: Any, caller: Caller, *, now: Instant) -> Sequence[Command]:
        return ()

    def finished(
        self, request: Any, caller: Caller, *, cached_tokens: int, now: Instant
    ) -> Sequence[Command]:
        self.cached.append(cached_tokens)
        return ()


@pytest.fixture
def core() -> Scripted:
    return Scripted()


@pytest.fixture
def fake(core: Scripted) -> FakePlugin:
    made = FakePlugin()
    made.host.core = core
    return made


def step(fake: FakePlugin, conversation: str) -> list[int]:
    """A step of 200 tokens that no other conversation has; its prompt."""
    prompt = [sum(conversation.encode()) * 1_000 + i for i in range(200)]
    fake.step(prompt, {XARG_CONVERSATION: conversation})
    return prompt


def says(fake: FakePlugin, core: Scripted, *commands: Command) -> None:
    core.commands += commands
    fake.host.step_begins()


def wanted(fake: FakePlugin, name: str, conversation: str) -> Command:
    until = fake.host.now() + seconds(60)
    return pin(name, conversation=conversation, tokens=192, until=until, value=1.0)


def held(fake: FakePlugin) -> dict[str, str]:
    fake.host.pins.check()
    return {one.conversation: one.pin for one in fake.host.pins}


def test_a_pin_that_the_core_ends_is_its_own(fake: FakePlugin, core: Scripted) -> None:
    """Proxies number theirs alike."""
    for conversation in ("asked", "own"):
        step(fake, conversation)
    keeper = Keeper(pin="pin-1", conversation="asked", value=1.0)
    assert fake.host.refine(keeper, ttl=seconds(60))[0] is HintOutcome.ACCEPTED
    says(fake, core, wanted(fake, "pin-1", "own"))
    assert set(held(fake)) == {"asked", "own"}
    says(fake, core, unpin("pin-1", reason=UnpinReason.BUDGET))
    assert held(fake) == {"asked": "pin-1"}


def test_what_was_asked_for_is_not_replaced(fake: FakePlugin, core: Scripted) -> None:
    """A proxy knows the tool; the core does not."""
    for conversation in ("asked", "own"):
        step(fake, conversation)
    keeper = Keeper(pin="pin-9", conversation="asked", value=5.0)
    fake.host.refine(keeper, ttl=seconds(60))
    says(fake, core, wanted(fake, "pin-1", "asked"), wanted(fake, "pin-2", "own"))
    assert held(fake)["asked"] == "pin-9"
    # What nobody asked for it takes, and what it asked for itself.
    before = held(fake)["own"]
    says(fake, core, wanted(fake, "pin-3", "own"))
    assert held(fake)["own"] != before
    assert not any(one.is_grace for one in fake.host.pins)
    assert fake.host.is_active


def test_what_was_cached_is_what_was_when_it_first_ran(fake: FakePlugin, core: Scripted) -> None:
    prompt = step(fake, "c")
    request, hits = fake.begin(prompt, {XARG_CONVERSATION: "c"})
    assert hits == 192
    # It had given its first token, is preempted, and runs again.
    request.prefill_stats = None
    fake.host.scheduled([request.request_id])
    fake.end(request)
    assert core.cached == [0, 192]
