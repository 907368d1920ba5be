"""EngineHost: what happens in the engine becomes pins, order and answers; nothing else does.

vLLM's scheduler calls it at four places (a request comes, a step begins, requests were scheduled, a
request ends) and the API server through `control`. Every call runs on the engine's own thread, and
none of them lets an error of ours through: the first one is logged and counted, all pins are given
back, requests go as they came, and from then on the engine is a stock one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentsched.model import (
    Command,
    HintOutcome,
    Instant,
    Nanos,
    Pin,
    Unpin,
    UnpinReason,
    between,
)
from agentsched_adapters.vllm_plugin import LOGGER
from agentsched_adapters.vllm_plugin.blocks import BlockPins, Keeper
from agentsched_adapters.vllm_plugin.caller import Caller, caller_of
from agentsched_adapters.vllm_plugin.core import Core
from agentsched_adapters.vllm_plugin.ledger import HeldPin
from agentsched_adapters.vllm_plugin.queue import ProgramQueue
from agentsched_adapters.vllm_plugin.settings import PluginSettings

log = logging.getLogger(LOGGER)

#: Pins end for these here as well, at the moment when the engine sees it.
_ENDS_BY_ITSELF: Final = frozenset({UnpinReason.RESUMED, UnpinReason.EXPIRED})
#: How names of pins begin that the core in the engine asks for: proxies number theirs alike.
_OWN: Final = "core-"


@dataclass(slots=True, eq=False)
class _Live:
    """A request in the engine."""

    request: Any
    caller: Caller
    cached_tokens: int = 0


class EngineHost:
    """One engine's host. `core` and `queue` are None where no policy was chosen."""

    def __init__(
        self,
        *,
        pins: BlockPins,
        settings: PluginSettings,
        core: Core | None = None,
        vllm: str = "",
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.pins = pins
        self.settings = settings
        #: The version of the engine, for people.
        self.vllm = vllm
        self.core = core
        self.queue: ProgramQueue | None = None
        self._clock = clock
        self._now = Instant(0)
        #: All and only requests that came and have not ended.
        self._live: dict[str, _Live] = {}
        #: How many of them each known conversation has.
        self._active: dict[str, int] = {}
        self._minted = 0
        self.failures: dict[str, int] = {}
        self.is_active = True
        pins.install(awaited=self._active.__contains__, failed=self.fail)
        if core is not None and settings.order:
            self.queue = ProgramQueue(
                rank=core.rank,
                failed=self.fail,
                wait_max=settings.wait_max,
                bypasses_max=settings.bypasses_max,
                budget=settings.order_budget,
                now=self.now,
            )

    def now(self) -> Instant:
        """The present instant; never before the last one."""
        self._now = max(self._now, Instant(self._clock()))
        return self._now

    # What vLLM's scheduler tells.

    def arrived(self, request: Any) -> None:
        """A request comes; called before it is put into the waiting queue."""
        if not self.is_active or request.request_id in self._live:
            return
        try:
            caller = caller_of(request)
            self._live[request.request_id] = _Live(request, caller)
            if caller.is_known:
                self._active[caller.conversation] = self._active.get(caller.conversation, 0) + 1
            if self.core is not None:
                self._perform(self.core.arrived(request, caller, now=self.now()))
        except Exception:
            self.fail("arrived")

    def step_begins(self) -> None:
        """An engine step begins: what is over ends, and the queue gets its order."""
        if not self.is_active:
            return
        try:
            now = self.now()
            self.pins.expire(now=now)
            if self.core is not None:
                self._perform(self.core.tick(now=now))
            if self.queue is not None:
                self.queue.refresh(now=now)
        except Exception:
            self.fail("step")

    def scheduled(self, request_ids: Iterable[str]) -> None:
        """These requests run from now on: their own references keep their blocks."""
        if not self.is_active:
            return
        try:
            for key in request_ids:
                live = self._live.get(key)
                if live is None:
                    continue
                # One that runs again after it was preempted may have none any more.
                if (stats := live.request.prefill_stats) is not None:
                    live.cached_tokens = stats.num_cached_tokens
                if live.caller.is_known:
                    self.pins.release(live.caller.conversation, UnpinReason.RESUMED)
        except Exception:
            self.fail("scheduled")

    def ends(self, request: Any, *, is_whole: bool) -> None:
        """A request ends; called while it still has its blocks. A second end changes nothing.

        `is_whole` says that it gave its answer; else it was aborted or failed.
        """
        live = self._live.pop(request.request_id, None)
        if live is None or not self.is_active:
            return
        try:
            self._leave(live.caller)
            commands = self._end_in_core(live, is_whole=is_whole)
            own = None
            if live.caller.is_known and is_whole:
                own = _pin_for(live.caller.conversation, commands)
                self._keep(live, own)
            self._perform(command for command in commands if command is not own)
        except Exception:
            self.fail("ends")

    def cache_is_emptied(self) -> None:
        """vLLM is about to empty its prefix cache, which it refuses while blocks are in use.

        What was in it stays remembered: who was told of it has to hear that it went.
        """
        if self.is_active:
            try:
                self.pins.release_where(lambda pin: True, UnpinReason.RELEASED)
            except Exception:
                self.fail("emptied")

    def fail(self, what: str) -> None:
        """Called while an error of ours is handled: say so once, and leave the engine alone."""
        self.failures[what] = self.failures.get(what, 0) + 1
        if not self.is_active:
            return
        self.is_active = False
        log.exception("agentsched failed (%s): from now on this engine runs as stock", what)
        try:
            if self.queue is not None:
                self.queue.give_up()
            self.pins.uninstall()
        except Exception:
            log.exception("agentsched could not give back its blocks")
        self.core = None

    # What the proxy asks for.

    def refine(
        self, keeper: Keeper, *, ttl: Nanos, tokens: int | None = None
    ) -> tuple[HintOutcome, Nanos, int]:
        """Pin a paused conversation: the outcome, and the time and tokens that were granted.

        With `tokens`, its beginning alone. Refused while it has a request in the engine, for then
        the next turn is here already.
        """
        now = self.now()
        if not self.is_active or keeper.conversation in self._active:
            return HintOutcome.REFUSED, Nanos(0), 0
        grant = self.pins.pin(keeper, ttl=ttl, now=now, tokens=tokens)
        until = now if grant.until is None else grant.until
        return grant.outcome, between(now, until), grant.tokens

    def extend(
        self, conversation: str, *, ttl: Nanos, value: float | None
    ) -> tuple[HintOutcome, Nanos, int]:
        """Let a live pin end later or be worth something else; as `refine`."""
        now = self.now()
        if not self.is_active:
            return HintOutcome.REFUSED, Nanos(0), 0
        grant = self.pins.extend(conversation, ttl=ttl, value=value, now=now)
        until = now if grant.until is None else grant.until
        return grant.outcome, between(now, until), grant.tokens

    @property
    def live_requests(self) -> int:
        """Requests that came and have not ended."""
        return len(self._live)

    def check(self) -> None:
        """Assert that all books agree."""
        self.pins.check()
        if self.queue is not None:
            self.queue.check()
        if self.core is not None:
            self.core.check()
            assert self.core.live_steps == len(self._live)
        active: dict[str, int] = {}
        for live in self._live.values():
            if live.caller.is_known:
                key = live.caller.conversation
                active[key] = active.get(key, 0) + 1
        assert active == self._active

    # Inside.

    def _leave(self, caller: Caller) -> None:
        if not caller.is_known:
            return
        left = self._active[caller.conversation] - 1
        if left:
            self._active[caller.conversation] = left
        else:
            del self._active[caller.conversation]
            self.pins.no_longer_awaited(caller.conversation)

    def _end_in_core(self, live: _Live, *, is_whole: bool) -> Sequence[Command]:
        if self.queue is not None:
            self.queue.world_changed()
        if self.core is None:
            return ()
        now = self.now()
        if not is_whole:
            return self.core.cancelled(live.request.request_id, now=now)
        cached = live.cached_tokens
        return self.core.finished(live.request, live.caller, cached_tokens=cached, now=now)

    def _perform(self, commands: Iterable[Command]) -> None:
        """Pins and unpins of the core; its other commands are vLLM's affair (see `core`)."""
        for command in commands:
            if isinstance(command, Pin):
                self._retain(command)
            elif isinstance(command, Unpin) and command.reason not in _ENDS_BY_ITSELF:
                self.pins.release_where(_named(_OWN + command.pin), command.reason)

    def _retain(self, pin: Pin) -> None:
        """Pin for the core. Not where somebody asked for that conversation, who knows more."""
        now = self.now()
        self.pins.expire(now=now)
        held = self.pins.of_conversation(pin.conversation)
        if held is not None and not (held.is_grace or held.pin.startswith(_OWN)):
            return
        keeper = Keeper(
            pin=_OWN + pin.pin,
            conversation=pin.conversation,
            program=pin.program,
            value=pin.value,
        )
        self.refine(keeper, ttl=between(now, pin.expires_at), tokens=pin.prefix.tokens)

    def _keep(self, live: _Live, pin: Pin | None) -> None:
        """Pin what a whole answer leaves behind, until somebody says more about it."""
        now, caller = self.now(), live.caller
        if caller.conversation in self._active:
            # Another request of it is here: nothing to bridge, and no newer turn to end the pin.
            self.pins.remember_request(
                caller.conversation, live.request, program=caller.program, tenant=caller.tenant
            )
            return
        self._minted += 1
        grace = self.settings.grace if caller.grace is None else caller.grace
        ttl = grace if pin is None else between(now, pin.expires_at)
        keeper = Keeper(
            pin=f"grace-{self._minted}" if pin is None else _OWN + pin.pin,
            conversation=caller.conversation,
            program=caller.program,
            tenant=caller.tenant,
            value=0.0 if pin is None else pin.value,
            is_grace=pin is None,
        )
        tokens = None if pin is None else pin.prefix.tokens
        self.pins.hold_request(keeper, live.request, ttl=ttl, now=now, tokens=tokens)


def _named(name: str) -> Callable[[HeldPin], bool]:
    return lambda pin: pin.pin == name


def _pin_for(conversation: str, commands: Sequence[Command]) -> Pin | None:
    for command in commands:
        if isinstance(command, Pin) and command.conversation == conversation:
            return command
    return None
