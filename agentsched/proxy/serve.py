"""Run the proxy: listen, tell when it is ready, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Sequence

from aiohttp import web

from agentsched.config import Config
from agentsched.model import in_seconds
from agentsched.ports import EventSink
from agentsched.proxy.app import build_app, build_gateway
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.journal_file import JournalFile
from agentsched.proxy.server import ConnectionGuard

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def running(
    config: Config, *, sinks: Sequence[EventSink] = ()
) -> AsyncIterator[tuple[Gateway, str]]:
    """A listening proxy and its base URL; drained and stopped on the way out.

    Raises:
        OSError: the address cannot be listened on.
    """
    gateway = build_gateway(config, sinks=sinks)
    runner = web.AppRunner(
        build_app(gateway),
        handler_cancellation=True,
        access_log=None,
        max_line_size=config.http.header_bytes_max,
        max_field_size=config.http.header_bytes_max,
        shutdown_timeout=in_seconds(config.http.drain_timeout),
    )
    await runner.setup()
    assert runner.server is not None
    guard = asyncio.create_task(ConnectionGuard(runner.server, gateway).watch(), name="guard")
    try:
        site = web.TCPSite(runner, config.host, config.port, reuse_address=True, backlog=1024)
        await site.start()
        port = runner.addresses[0][1]
        host = f"[{config.host}]" if ":" in config.host else config.host
        yield gateway, f"http://{host}:{port}"
    finally:
        gateway.is_draining = True
        guard.cancel()
        await asyncio.gather(guard, return_exceptions=True)
        await runner.cleanup()


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Running requests are given the drain timeout."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        sinks: list[EventSink] = []
        if config.journal is not None:
            journal = JournalFile(
                config.journal,
                header=b"{}",
                backlog_max=config.limits.to_limits().journal_backlog_max,
            )
            sinks.append(await stack.enter_async_context(journal))
        gateway, url = await stack.enter_async_context(running(config, sinks=sinks))
        up = len(gateway.fleet.up())
        total = len(gateway.fleet.members)
        print(
            f"agentsched ready on {url} (profile {config.profile}, {up} of {total} engines up)",
            flush=True,
        )
        await stop.wait()
        gateway.is_draining = True
        log.info("draining: %d steps are live", gateway.host.live_steps)
