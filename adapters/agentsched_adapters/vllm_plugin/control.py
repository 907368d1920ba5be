"""The engine process's side of the control endpoints: operations by name, JSON in and out.

They reach the engine process as one of vLLM's own utility calls, which it serves between two engine
steps on its own thread (at once when it is idle), so nothing here can race with a step.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from math import isfinite
from typing import Any, Final

import msgspec

from agentsched.model import HintOutcome, Nanos, UnpinReason, between, in_seconds, seconds
from agentsched.version import __version__
from agentsched_adapters.vllm_plugin.blocks import Keeper
from agentsched_adapters.vllm_plugin.host import EngineHost
from agentsched_adapters.vllm_plugin.wire import (
    ID_CHARS_MAX,
    EngineState,
    ExtendRequest,
    OrderState,
    PinAnswer,
    PinRequest,
    PinState,
    ProgramState,
    ReleaseAnswer,
    ReleaseRequest,
)

#: The name of the utility call, a method that `attach` gives to vLLM's `EngineCore`.
METHOD: Final = "agentsched_control"
#: Pins and conversations that one state tells of, the most recent first; and as many older ones
#: that are gone.
_LISTED_MAX: Final = 1_024


def attach() -> None:
    """Give the engine process the utility call. In a process whose scheduler is ours only."""
    from vllm.v1.engine.core import EngineCore

    def agentsched_control(self: Any, operation: str, body: str) -> str:
        scheduler = self.scheduler
        return serve(scheduler.agentsched, scheduler, operation, body)

    setattr(EngineCore, METHOD, agentsched_control)


def state_body(query: Mapping[str, str]) -> str:
    """How much of the state a query asks for: counts alone, with what is cached, or all of it."""
    if query.get("brief") == "1":
        return "brief"
    return "cached" if query.get("only") == "cached" else ""


def serve(host: EngineHost, scheduler: Any, operation: str, body: str) -> str:
    """Perform one operation. What is wrong comes back as an error, not an exception.

    `is_ours` in it says that it is no fault of the request.
    """
    act = _OPERATIONS.get(operation)
    if act is None:
        return _error(f"no such operation: {operation}")
    try:
        answer = act(host, scheduler, body.encode())
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        return _error(str(error))
    except _Unfit as error:
        return _error(str(error))
    except Exception:
        # Not the host's affair: the engine's state is as it was, or the ledger is at fault.
        host.fail(f"control.{operation}")
        return _error("internal error: the engine runs as stock", is_ours=True)
    return msgspec.json.encode(answer).decode()


class _Unfit(Exception):
    """A request that makes no sense."""


def _error(message: str, *, is_ours: bool = False) -> str:
    return msgspec.json.encode({"error": message, "is_ours": is_ours}).decode()


def _pin(host: EngineHost, scheduler: Any, body: bytes) -> PinAnswer:
    request = msgspec.json.decode(body, type=PinRequest)
    _check_ids(request.conversation, request.pin, request.program, request.tenant)
    if not request.conversation:
        raise _Unfit("conversation must not be empty")
    keeper = Keeper(
        pin=request.pin,
        conversation=request.conversation,
        program=request.program or request.conversation,
        tenant=request.tenant,
        value=_finite("value", request.value),
    )
    if request.tokens is not None and request.tokens <= 0:
        raise _Unfit("tokens must be positive")
    given = host.refine(keeper, ttl=_span(request.ttl_s), tokens=request.tokens)
    return _answer(given)


def _extend(host: EngineHost, scheduler: Any, body: bytes) -> PinAnswer:
    request = msgspec.json.decode(body, type=ExtendRequest)
    value = None if request.value is None else _finite("value", request.value)
    given = host.extend(request.conversation, ttl=_span(request.ttl_s), value=value)
    return _answer(given)


def _release(host: EngineHost, scheduler: Any, body: bytes) -> ReleaseAnswer:
    request = msgspec.json.decode(body, type=ReleaseRequest)
    wanted = [n for n in ("pin", "conversation", "program") if getattr(request, n)]
    is_one_pin = wanted == ["pin", "conversation"] and not request.everything
    if len(wanted) + request.everything != 1 and not is_one_pin:
        raise _Unfit("name one of pin, conversation and program, or everything")
    if not host.is_active:
        return ReleaseAnswer(released=0)
    if request.everything:
        return ReleaseAnswer(released=host.pins.release_all(UnpinReason.RELEASED))
    if is_one_pin:
        reason, pin = UnpinReason.RELEASED, request.pin
        is_ended = host.pins.release(request.conversation, reason, pin=pin)
        return ReleaseAnswer(released=int(is_ended))
    name = wanted[0]
    value = getattr(request, name)
    released = host.pins.release_where(
        lambda pin: getattr(pin, name) == value, UnpinReason.RELEASED
    )
    if name == "conversation":
        host.pins.forget(value)
    return ReleaseAnswer(released=released)


def _state(host: EngineHost, scheduler: Any, body: bytes) -> EngineState:
    is_brief = body in (b"brief", b"cached")
    pins, now = host.pins, host.now()
    if host.is_active:
        pins.expire(now=now)
    running, waiting = scheduler.get_request_counts()
    listed = [] if is_brief else sorted(pins, key=lambda p: (-p.since, p.conversation))
    return EngineState(
        engine=f"{os.getpid()}",
        plugin=__version__,
        vllm=host.vllm,
        is_active=host.is_active,
        failures=host.failures,
        block_size=scheduler.block_size,
        blocks=pins.total,
        free_blocks=pins.free,
        pinned_blocks=pins.held,
        reclaimable_blocks=pins.reclaimable(),
        pinned_blocks_max=pins.blocks_max,
        running=running,
        waiting=waiting,
        pins=tuple(
            PinState(
                pin=pin.pin,
                conversation=pin.conversation,
                program=pin.program,
                tenant=pin.tenant,
                value=pin.value,
                is_grace=pin.is_grace,
                tokens=pins.tokens_of(pin),
                ends_in_s=round(in_seconds(between(now, pin.expires_at)), 3),
            )
            for pin in listed[:_LISTED_MAX]
        ),
        programs=() if is_brief else _programs(host),
        cached=_cached(host) if body == b"cached" else {},
        pins_granted_total=pins.granted_total,
        pins_ended_total=pins.ended_total,
        shrunk_blocks_total=pins.shrunk_blocks_total,
        order=_order(host),
    )


def _listed(host: EngineHost) -> Iterator[str]:
    """Conversations that ended a step lately, the most recent first.

    Of the older ones, those of which nothing is there any more: else who was told once that they
    are would never hear that they went.
    """
    known = list(reversed(list(host.pins.conversations)))
    yield from known[:_LISTED_MAX]
    yield from islice(filter(host.pins.is_gone, known[_LISTED_MAX:]), _LISTED_MAX)


def _cached(host: EngineHost) -> dict[str, bool]:
    """Of which of them anything is in the cache.

    A proxy asks every two seconds, and the engine's next step waits for the answer: to count the
    tokens of 1,024 conversations would take tens of milliseconds.
    """
    return {conversation: not host.pins.is_gone(conversation) for conversation in _listed(host)}


def _programs(host: EngineHost) -> tuple[ProgramState, ...]:
    """What is in the cache of each of their programs."""
    found: dict[str, dict[str, int]] = {}
    for conversation in _listed(host):
        tokens = host.pins.cached_tokens(conversation)
        program = host.pins.program_of(conversation)
        found.setdefault(program, {})[conversation] = tokens
    return tuple(ProgramState(program=p, conversations=c) for p, c in found.items())


def _order(host: EngineHost) -> OrderState | None:
    queue = host.queue
    if queue is None:
        return None
    return OrderState(
        policy=host.settings.order,
        waiting=len(queue),
        is_ordered=queue.is_ordered,
        cost_us=round(queue.cost_ns / 1e3, 1),
        cost_us_max=round(queue.cost_ns_max / 1e3, 1),
        fallbacks_total=queue.fallbacks_total,
        forced_total=queue.forced_total,
    )


def _answer(given: tuple[HintOutcome, Nanos, int]) -> PinAnswer:
    outcome, ttl, tokens = given
    return PinAnswer(outcome=outcome.value, ttl_s=round(in_seconds(ttl), 3), tokens=tokens)


def _check_ids(*ids: str) -> None:
    if any(len(one) > ID_CHARS_MAX for one in ids):
        raise _Unfit(f"identifiers have at most {ID_CHARS_MAX} characters")


def _finite(name: str, value: float) -> float:
    if not isfinite(value):
        raise _Unfit(f"{name} must be a finite number")
    return value


def _span(ttl_s: float) -> Nanos:
    if not 0 < _finite("ttl_s", ttl_s) <= 86_400:
        raise _Unfit("ttl_s must be positive, and a day at most")
    return seconds(ttl_s)


_OPERATIONS: Final[Mapping[str, Callable[[EngineHost, Any, bytes], msgspec.Struct]]] = {
    "pin": _pin,
    "extend": _extend,
    "release": _release,
    "state": _state,
}
