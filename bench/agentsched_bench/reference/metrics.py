"""The reference page of metrics, drawn from the registry of a proxy with everything turned on."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from prometheus_client.metrics_core import Metric

from agentsched.bus.connection import Broker
from agentsched.bus.metrics import BusCollector
from agentsched.bus.service import Bus, Wiring
from agentsched.bus.telling import State
from agentsched.config import Config
from agentsched.proxy.app import build_gateway
from agentsched.proxy.memory import remembered
from agentsched.proxy.observed import observed

_HEAD: Final = """\
# Metrics

What `GET /metrics` shows, drawn from the registry of a proxy with a store, a bus and telemetry
turned on (`python -m agentsched_bench.reference`). Prometheus writes `_total` behind the name of a
counter. A family without a value yet has its name and kind there and no more. Labels are bounded:
engines are those that are configured, tenants the first so many, all others are words of the code.
"""
#: Headings by how a metric's name begins, the first that fits.
_GROUPS: Final = (
    ("agentsched_engine_", "Engines"),
    ("agentsched_tenant", "Tenants"),
    ("agentsched_store_", "Store"),
    ("agentsched_bus_", "Bus"),
    ("agentsched_auth_", "Access"),
    ("agentsched_warm", "Warm-ups"),
    ("agentsched_breaker_", "Faults"),
    ("agentsched_retry_budget_", "Faults"),
    ("agentsched_idempotency_", "Faults"),
    ("agentsched_client_retries", "Faults"),
    ("agentsched_", "Steps, programs, decisions"),
    ("gen_ai_", "OpenTelemetry's GenAI conventions"),
    ("", "Process"),
)


def to_page() -> str:
    """The page, as Markdown."""
    groups: dict[str, list[Metric]] = {title: [] for _, title in _GROUPS}
    for family in asyncio.run(families()):
        title = next(title for start, title in _GROUPS if family.name.startswith(start))
        groups[title].append(family)
    lines = [_HEAD]
    for title in ("Steps, programs, decisions", *groups):
        if found := groups.pop(title, []):
            lines += [
                f"## {title}",
                "",
                "| metric | kind | labels | meaning |",
                "|---|---|---|---|",
            ]
            lines += [_row(family) for family in sorted(found, key=lambda f: f.name)]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _row(family: Metric) -> str:
    name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
    labels = ", ".join(f"`{label}`" for label in _labels(family))
    text = family.documentation.replace("|", "\\|").replace("<", "&lt;")
    return f"| `{name}` | {family.type} | {labels} | {text} |"


def _labels(family: Metric) -> tuple[str, ...]:
    known: tuple[str, ...] | None = getattr(family, "_labelnames", None)
    if known:
        return known
    labels = {label for sample in family.samples for label in sample.labels}
    return tuple(sorted(labels - {"le"}))


async def families() -> list[Metric]:
    """All families of metrics that a proxy can have."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {
                "engines": [{"url": "http://127.0.0.1:1", "id": "e0"}],
                "store": {"url": f"sqlite+aiosqlite:///{Path(folder) / 'reference.db'}"},
                "telemetry": {"otlp_endpoint": "http://127.0.0.1:1"},
                "tenants": {"red": {}},
            }
        )
        async with remembered(config) as memory:
            gateway = build_gateway(config, memory=memory)
            async with observed(gateway):
                gateway.meters.registry.register(BusCollector(_bus()))
                found = list(gateway.meters.registry.collect())
            await gateway.host.aclose()
    return sorted(_unique(found), key=lambda family: family.name)


def _unique(found: list[Metric]) -> Iterator[Metric]:
    seen: set[str] = set()
    for family in found:
        if family.name not in seen:
            seen.add(family.name)
            yield family


def _bus() -> Bus:
    """A bus that nobody is on."""

    def nothing(*args: Any) -> Any:
        return None

    wiring = Wiring(now=nothing, feed=nothing, state=State, tool=nothing)
    broker = Broker(host="127.0.0.1", port=1)
    return Bus(broker, wiring, cluster="reference", replica="reference", url="")
