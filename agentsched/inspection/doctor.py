"""`agentsched doctor`: what an engine can do, and what agentsched will therefore do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from agentsched.inspection.client import AdminKey, AsJson, ControlClient, ProxyError, base_url
from agentsched.inspection.words import plain
from agentsched.model import (
    Capabilities,
    ConfigError,
    EngineError,
    EngineId,
    EngineLoad,
    EngineUnreachable,
)
from agentsched_adapters.detect import detect
from agentsched_adapters.openai_compatible import OpenAiCompatibleEngine
from agentsched_adapters.sglang import SglangEngine
from agentsched_adapters.vllm import PriorityAnswer, VllmEngine


class Mark(StrEnum):
    """How good a finding is for scheduling."""

    GOOD = "ok"
    LIMIT = "--"
    BAD = "!!"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that the engine can or cannot do, and what follows from it."""

    about: str
    mark: Mark
    found: str
    therefore: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LearntCost:
    """An engine's prices as a proxy learnt them; confidences from 0 to 1."""

    samples: int
    prefill_us_per_token: float
    decode_ms_per_token: float
    prefill_confidence: float
    decode_confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How an engine does, as a proxy saw it at `seen_at`.

    `was_up` says whether it ever answered; `silent_for_s` for how long nothing has come out of it,
    with steps inside; None while it is well.
    """

    seen_at: datetime
    is_up: bool
    is_draining: bool
    was_up: bool
    last_error: str
    running_steps: int = 0
    silent_for_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """One engine as it was found. `kind` is vllm, sglang, openai or as a proxy says."""

    name: str
    url: str
    kind: str
    version: str
    capabilities: Capabilities
    priority: PriorityAnswer
    load: EngineLoad | None
    #: What a running proxy has learnt of its times; None where nobody has.
    cost: LearntCost | None = None
    #: How it does behind that proxy; None where none was asked.
    standing: Standing | None = None


#: What a proxy of ours says to whom it does not list its engines. Engines have OpenAI's error
#: object for paths that they do not know, too: with codes of their own, or none.
_NOES_OF_A_PROXY: Final = frozenset({"unauthorized", "forbidden", "internal_error"})
_STYLES: Final = {Mark.GOOD: "green", Mark.LIMIT: "yellow", Mark.BAD: "red"}
_KINDS: Final = {
    "vllm": "speaks vLLM's API",
    "sglang": "SGLang",
    "openai": "OpenAI-compatible",
}


def doctor(
    url: Annotated[str, typer.Argument(help="An engine, or a running proxy for all of its.")],
    api_key: Annotated[
        str | None, typer.Option(help="The engine's API key.", envvar="AGENTSCHED_ENGINE_API_KEY")
    ] = None,
    admin_key: AdminKey = None,
    is_json: AsJson = False,
) -> int:
    """Say what an engine can do, and what agentsched will therefore do.

    Asks the engine with a few one-token requests; of a proxy's engines it says as well which are
    silent, drained or not up, since when, and what to do. Exit code 1 when no prompt would be
    cached, or when an engine of a proxy is silent or not up.
    """
    engines = _behind_proxy(url, admin_key=admin_key)
    clients = _clients_of(url, admin_key=admin_key) if engines is not None else None
    if engines is None:
        engines = [asyncio.run(_examine(base_url(url), api_key=api_key))]
    if not engines:
        raise ConfigError(f"{url}: this proxy has no engines")
    reports = [(engine, findings(engine)) for engine in engines]
    if is_json:
        shown: dict[str, Any] = {"engines": [_as_json(*report) for report in reports]}
        if clients is not None:
            shown["clients"] = clients
        print(json.dumps(shown))
    else:
        console = Console(highlight=False)
        for engine, found in reports:
            _print(console, engine, found)
        if clients is not None:
            seen = ", ".join(f"{name} ({count})" for name, count in clients.items())
            console.print(Text(plain(f"clients seen: {seen or 'none yet'}")), soft_wrap=True)
    is_bad = any(f.mark is Mark.BAD for _, found in reports for f in found)
    return int(is_bad)


def _behind_proxy(url: str, *, admin_key: str | None) -> list[Examined] | None:
    """The engines of a proxy, as it sees them; None where the URL is not a proxy's."""
    with ControlClient(url, admin_key=admin_key) as client:
        try:
            shown = client.get_json("/engines")
        except ProxyError as error:
            if error.code in _NOES_OF_A_PROXY:
                raise
            return None  # the engine's own probe says more about why
    engines = shown.get("engines")
    if not isinstance(engines, list):
        return None  # there are servers that answer 200 to any path
    return [_seen(engine) for engine in engines]


def _seen(shown: Mapping[str, Any]) -> Examined:
    """An engine as the control plane shows it; of one that never answered not much is known."""
    if "url" not in shown:
        raise ProxyError("this key may not see what engines can do (give the admin key)")
    known = msgspec.convert(shown.get("capabilities", {}), Capabilities)
    return Examined(
        name=shown["engine"],
        url=shown["url"],
        kind="engine",
        version="",
        capabilities=known,
        priority=PriorityAnswer.CONFIRMED if known.priority else PriorityAnswer.UNKNOWN,
        load=msgspec.convert(shown["load"], EngineLoad) if "load" in shown else None,
        cost=msgspec.convert(shown["cost"], LearntCost) if "cost" in shown else None,
        standing=Standing(
            seen_at=datetime.now(UTC),
            is_up=shown["is_up"],
            is_draining=shown["is_draining"],
            was_up="capabilities" in shown,
            last_error=shown["last_error"],
            running_steps=shown.get("running_steps", 0),
            silent_for_s=shown.get("silent_for_s"),
        ),
    )


def _clients_of(url: str, *, admin_key: str | None) -> dict[str, int]:
    """How many requests each family of clients sent to a proxy."""
    with ControlClient(url, admin_key=admin_key) as client:
        return msgspec.convert(client.get_json("/statistics").get("clients", {}), dict[str, int])


async def _examine(url: str, *, api_key: str | None) -> Examined:
    try:
        engine = await detect(EngineId("engine"), url, api_key=api_key)
    except EngineUnreachable as error:
        raise EngineUnreachable(f"{error} (is the engine, or the proxy, running?)") from error
    try:
        capabilities = await engine.probe()
        try:
            load: EngineLoad | None = await engine.load()
        except EngineError:
            load = None
        kind, version, priority = _make(engine)
        return Examined(
            name="engine",
            url=engine.url,
            kind=kind,
            version=version,
            capabilities=capabilities,
            priority=priority,
            load=load,
        )
    finally:
        await engine.aclose()


def _make(engine: OpenAiCompatibleEngine) -> tuple[str, str, PriorityAnswer]:
    """What it is, its version, and what is known of its priorities, once it was probed."""
    match engine:
        case VllmEngine():
            return "vllm", engine.version, engine.priority_answer
        case SglangEngine():
            takes = engine.capabilities.priority
            answer = PriorityAnswer.CONFIRMED if takes else PriorityAnswer.REFUSED
            return "sglang", engine.version, answer
        case _:
            return "openai", "", PriorityAnswer.UNKNOWN


def findings(engine: Examined) -> list[Finding]:
    """What was found and what follows, most important first."""
    standing = [] if engine.standing is None else _standing(engine.standing)
    if engine.standing is not None and not engine.standing.was_up:
        return standing  # what it can do is not known yet
    return [
        *standing,
        _prefix_cache(engine.capabilities),
        _pool(engine.capabilities),
        _cached_tokens(engine.capabilities),
        _gauges(engine.load),
        _pins(engine.capabilities),
        _priority(engine.priority),
        _session(engine.capabilities),
        *([_tier()] if engine.capabilities.tier else ()),
        *([_cost(engine.cost)] if engine.cost is not None else ()),
    ]


def _standing(it: Standing) -> list[Finding]:
    """What keeps new steps from it; nothing where it is well."""
    found = []
    if it.silent_for_s is not None:
        since = it.seen_at - timedelta(seconds=it.silent_for_s)
        found.append(
            Finding(
                about="silent",
                mark=Mark.BAD,
                found=f"nothing has come out since {since:%H:%M:%S} UTC "
                f"({it.silent_for_s:,.0f} s); steps inside: {it.running_steps}",
                therefore="new steps go to others while one is well, those inside wait for it. Is "
                "its process stopped, swapping, or waiting for its GPU? Restart it if it does not "
                "go on by itself (docs/operations.md, AgentschedEngineSilent)",
            )
        )
    if it.is_draining:
        found.append(
            Finding(
                about="drained",
                mark=Mark.LIMIT,
                found=it.last_error or "by an operator, or by its breaker",
                therefore="it gets no new steps until it is taken back "
                "(docs/operations.md, AgentschedEngineDown)",
            )
        )
    elif not it.is_up:
        found.append(
            Finding(
                about="not up",
                mark=Mark.BAD,
                found=it.last_error or "it has not answered yet",
                therefore="it gets no steps, and is taken back by itself as soon as it answers "
                "(docs/operations.md, AgentschedEngineDown)",
            )
        )
    return found


def _cost(cost: LearntCost) -> Finding:
    if not cost.samples:
        return Finding(
            about="cost model",
            mark=Mark.LIMIT,
            found="nothing learnt yet",
            therefore="a first guess stands in; streamed answers with cached tokens teach it",
        )
    is_known = min(cost.prefill_confidence, cost.decode_confidence) >= 0.5
    return Finding(
        about="cost model",
        mark=Mark.GOOD if is_known else Mark.LIMIT,
        found=f"prefill {cost.prefill_us_per_token:,.1f} us a token (confidence "
        f"{cost.prefill_confidence:.2f}), decode {cost.decode_ms_per_token:,.2f} ms a token "
        f"(confidence {cost.decode_confidence:.2f}), from {cost.samples} steps",
        therefore="what is kept, warmed and moved is weighed by these",
    )


def _prefix_cache(can: Capabilities) -> Finding:
    if can.prefix_cache:
        return Finding(
            about="prefix cache",
            mark=Mark.GOOD,
            found="it keeps prefixes",
            therefore="programs go back to the engine that holds theirs, and are admitted so that "
            "their prefixes fit",
        )
    return Finding(
        about="prefix cache",
        mark=Mark.BAD,
        found="none that it reports",
        therefore="nothing can be saved by going back to it: expect fair sharing and bounded "
        "waits, no fewer prefilled tokens (vLLM: --enable-prefix-caching, SGLang: no "
        "--disable-radix-cache)",
    )


def _pool(can: Capabilities) -> Finding:
    if can.kv_tokens is None:
        return Finding(
            about="KV pool",
            mark=Mark.LIMIT,
            found="size unknown",
            therefore="pressure cannot be told, so programs are not held back for memory",
        )
    block = f", blocks of {can.block_size}" if can.block_size else ""
    return Finding(
        about="KV pool",
        mark=Mark.GOOD,
        found=f"{can.kv_tokens:,} tokens{block}",
        therefore="programs whose prefixes would not fit together wait at the end of a turn",
    )


def _cached_tokens(can: Capabilities) -> Finding:
    if can.cached_tokens:
        return Finding(
            about="cached tokens",
            mark=Mark.GOOD,
            found="told with each answer",
            therefore="prefill and decode prices are learnt from ordinary traffic",
        )
    return Finding(
        about="cached tokens",
        mark=Mark.LIMIT,
        found="not told",
        therefore="prices stay a guess, and cache hits cannot be shown "
        "(vLLM: --enable-prompt-tokens-details, SGLang: --enable-cache-report)",
    )


def _gauges(load: EngineLoad | None) -> Finding:
    if load is not None and load.running is not None:
        usage = "" if load.kv_usage is None else f", {load.kv_usage:.0%} of its KV in use"
        return Finding(
            about="gauges",
            mark=Mark.GOOD,
            found=f"{load.running} running, {load.waiting or 0} waiting{usage}",
            therefore="its load is seen, also where others use it beside the proxy",
        )
    return Finding(
        about="gauges",
        mark=Mark.LIMIT,
        found="none",
        therefore="only what the proxy sent itself counts as its load (SGLang: --enable-metrics)",
    )


def _pins(can: Capabilities) -> Finding:
    if can.pins:
        return Finding(
            about="pins",
            mark=Mark.GOOD,
            found="it retains prefixes on request",
            therefore="paused programs keep their KV for as long as that pays",
        )
    return Finding(
        about="pins",
        mark=Mark.LIMIT,
        found="none: no agentsched plugin in it",
        therefore="nothing is pinned; admission, order and placement do what can be done outside",
    )


def _priority(answer: PriorityAnswer) -> Finding:
    found, therefore, mark = {
        PriorityAnswer.CONFIRMED: (
            "its queue is ordered by priority",
            "each step carries its place in the order",
            Mark.GOOD,
        ),
        PriorityAnswer.TAKEN: (
            "taken, perhaps ignored",
            "it is sent and not relied on (vLLM: --scheduling-policy priority)",
            Mark.LIMIT,
        ),
        PriorityAnswer.REFUSED: (
            "not taken",
            "it is never sent; order is kept by sending steps in order "
            "(SGLang: --enable-priority-scheduling)",
            Mark.LIMIT,
        ),
        PriorityAnswer.UNKNOWN: (
            "not known",
            "order is kept by sending steps in order",
            Mark.LIMIT,
        ),
    }[answer]
    return Finding(about="priority", mark=mark, found=found, therefore=therefore)


def _session(can: Capabilities) -> Finding:
    if can.session_id:
        return Finding(
            about="session_id",
            mark=Mark.GOOD,
            found="taken",
            therefore="each step tells the engine which conversation it belongs to",
        )
    return Finding(
        about="session_id",
        mark=Mark.LIMIT,
        found="not taken",
        therefore="the field is left out",
    )


def _tier() -> Finding:
    return Finding(
        about="tier",
        mark=Mark.GOOD,
        found="memory below its cache gives back what the cache dropped",
        therefore="nobody waits for memory where loading costs far less than computing "
        "(docs/policies.md, cheap_reload)",
    )


def _as_json(engine: Examined, found: list[Finding]) -> dict[str, Any]:
    return {
        "engine": engine.name,
        "url": engine.url,
        "kind": engine.kind,
        "version": engine.version,
        "capabilities": msgspec.to_builtins(engine.capabilities),
        "silent_for_s": None if engine.standing is None else engine.standing.silent_for_s,
        "findings": [
            {
                "about": f.about,
                "is_good": f.mark is Mark.GOOD,
                "found": f.found,
                "therefore": f.therefore,
            }
            for f in found
        ],
    }


def _print(console: Console, engine: Examined, found: list[Finding]) -> None:
    kind = _KINDS.get(engine.kind, "")
    models = ", ".join(engine.capabilities.models) or "no models"
    version = f" {engine.version}" if engine.version else ""
    details = "; ".join(part for part in (f"{kind}{version}".strip(), models) if part)
    console.print(Text(plain(f"{engine.name} {engine.url} ({details})"), style="bold"))
    for f in found:
        line = Text("  ")
        line.append(f.mark.value, style=_STYLES[f.mark])
        line.append(f" {f.about}: {plain(f.found)}\n       {f.therefore}")
        console.print(line, soft_wrap=True)
