"""This proxy on the bus: what it tells, and what becomes of what it hears."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, unquote, urlsplit

from agentsched.bus.messages import EngineMessage, ToolMessage
from agentsched.bus.telling import Served, State
from agentsched.bus.topics import ToolTopic
from agentsched.config import BusConfig, Config
from agentsched.kernel.holdings import wanted_tokens
from agentsched.model import ConfigError
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.tool_reports import ToolReport, ToolReports

if TYPE_CHECKING:
    from agentsched.bus.connection import Broker
    from agentsched.bus.service import Bus

_NOTHING: Final = Served()


@contextlib.asynccontextmanager
async def joined(config: Config, gateway: Gateway, *, url: str) -> AsyncIterator[Bus | None]:
    """On the bus while inside, where there is one.

    Raises:
        ConfigError: a file of certificates cannot be read, or the packages of the extra `mqtt` are
            not installed.
    """
    if config.bus.url is None:
        yield None
        return
    try:
        from agentsched.bus.metrics import BusCollector
        from agentsched.bus.service import Bus, Wiring
    except ImportError as error:
        raise ConfigError("bus: pip install 'agentsched[mqtt]' for a broker") from error
    broker = _broker(urlsplit(config.bus.url.get_secret_value()), config.bus)
    reports = ToolReports(gateway)

    def take(topic: ToolTopic, said: ToolMessage) -> str:
        report = ToolReport(
            event=topic.verb,
            program=topic.program,
            tool=said.tool,
            call_id=topic.call_id,
            expected_s=said.expected_s,
            took_s=said.took_s,
            is_error=said.is_error,
        )
        # Who may publish about which programs is the broker's access list to say.
        return reports.take(report, tenant=None)

    sharing = gateway.sharing
    wiring = Wiring(
        now=gateway.host.now,
        feed=gateway.host.feed,
        state=lambda: _state(gateway),
        tool=take,
        turns=sharing.hear if sharing is not None else None,
        gone=sharing.gone if sharing is not None else lambda _: None,
    )
    replica = config.bus.replica or f"{socket.gethostname()}-{url.rpartition(':')[2]}"
    bus = Bus(broker, wiring, cluster=config.bus.cluster, replica=replica, url=url)
    if sharing is not None:
        sharing.join(bus)
    collector = BusCollector(bus)
    gateway.meters.registry.register(collector)
    gateway.bus = bus
    try:
        async with bus.running():
            yield bus
    finally:
        gateway.bus = None
        gateway.meters.registry.unregister(collector)


def _state(gateway: Gateway) -> State:
    scheduler, now = gateway.host.scheduler, gateway.host.now()
    engines = {
        engine.engine: EngineMessage(
            running_steps=engine.running_steps,
            # Ours alone: what we heard of the others' must not come back to them. And not what we
            # would give up at once, for nobody there can ask us to.
            resident_tokens=wanted_tokens(scheduler, engine.engine),
        )
        for engine in scheduler.engines.values()
        if engine.is_alive
    }
    tenants = {}
    for tenant, account in scheduler.tenants.items():
        served = Served(
            uncached_tokens=account.uncached_here,
            output_tokens=account.output_here,
            idle_token_s=account.idle_token_s(now=now),
            waits=account.claiming_steps > 0,
        )
        if served != _NOTHING:
            tenants[tenant] = served
    return State(engines=engines, tenants=tenants)


def _broker(parts: SplitResult, config: BusConfig) -> Broker:
    from agentsched.bus.connection import Broker

    assert parts.hostname is not None
    is_safe = parts.scheme == "mqtts"
    return Broker(
        host=parts.hostname,
        port=parts.port or (8883 if is_safe else 1883),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls=_tls(config) if is_safe else None,
    )


def _tls(config: BusConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.tls_ca)
        if config.tls_certificate is not None:
            context.load_cert_chain(config.tls_certificate, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"bus: its certificates cannot be read: {error}") from error
    return context
