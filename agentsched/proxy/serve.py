"""Run the proxy: listen, tell when it is ready, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from aiohttp import web

from agentsched.clock import Clock
from agentsched.compose import journal_header
from agentsched.config import Config
from agentsched.kernel import encode_header
from agentsched.model import AgentschedError, ConfigError, in_seconds
from agentsched.ports import EventSink
from agentsched.proxy.access import tls
from agentsched.proxy.access.stored import followed, provided
from agentsched.proxy.app import STEERING, answer_in_shape, build_app, build_gateway
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.journal_file import JournalFile
from agentsched.proxy.memory import Memory, remembered
from agentsched.proxy.on_bus import joined
from agentsched.proxy.server import Connection, ConnectionGuard
from agentsched.proxy.steering import Steering

log = logging.getLogger(__name__)

_BACKLOG: Final = 1_024
_LINGER_S_MAX: Final = 5.0
#: How often a draining proxy looks whether it is done.
_LOOK_EVERY_S: Final = 0.02
#: What handlers may take to send an error to clients of steps that were stopped.
_LAST_WORDS_S: Final = 2.0


@contextlib.asynccontextmanager
async def running(
    config: Config,
    *,
    sinks: Sequence[EventSink] = (),
    reread: Callable[[], Config] | None = None,
    memory: Memory | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[tuple[Gateway, str]]:
    """A listening proxy and its base URL; stopped on the way out, whatever runs.

    With a `memory` (see `remembered`) it goes on from where an earlier process was.

    `reread` reads the configuration again, for `SIGHUP` and `POST reload`.

    Raises:
        OSError: the address cannot be listened on.
    """
    gateway = build_gateway(config, clock=clock, sinks=sinks, memory=memory)
    context = tls.server_context(config.tls)
    app = build_app(gateway, reread=reread)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=_LAST_WORDS_S,
    )
    # Not on a loop that knows no signals, nor in a thread of somebody else's program.
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, _reload, app[STEERING], context)
    keys = contextlib.AsyncExitStack()
    try:
        await keys.enter_async_context(followed(config, gateway.gate))
        await keys.enter_async_context(provided(config, gateway.gate))
        await runner.setup()
        assert runner.server is not None
        answer_in_shape(runner.server)
        guard = asyncio.create_task(ConnectionGuard(runner.server, gateway).watch(), name="guard")
        try:
            listener = await _listen(runner.server, config, context)
            try:
                yield gateway, _url(config, listener)
            finally:
                gateway.draining.set()
                gateway.host.stop_all("this proxy is shutting down")
                listener.close()
        finally:
            guard.cancel()
            await asyncio.gather(guard, return_exceptions=True)
    finally:
        await runner.cleanup()
        await keys.aclose()


def _reload(steering: Steering, context: tls.PortContext | None) -> None:
    try:
        steering.reload()
    except AgentschedError as error:
        log.error("the configuration stays as it was: %s", error)
    if context is None:
        return
    try:
        tls.load(context, steering.config.tls)
    except ConfigError as error:
        log.error("the certificate stays as it was: %s", error)


async def _listen(
    server: web.Server, config: Config, context: ssl.SSLContext | None
) -> asyncio.Server:
    http = config.http
    settings: dict[str, Any] = {
        "access_log": None,
        "keepalive_timeout": in_seconds(http.keepalive_timeout),
        "max_line_size": http.header_bytes_max,
        "max_field_size": http.header_bytes_max,
        "max_headers": http.headers_max,
        # What a refused client still sends is read for so long, for it to see the answer.
        "lingering_time": min(_LINGER_S_MAX, in_seconds(http.body_timeout)),
    }
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: Connection(server, loop=loop, **settings),
        config.host,
        config.port,
        reuse_address=True,
        backlog=_BACKLOG,
        ssl=context,
        ssl_handshake_timeout=in_seconds(http.header_timeout) if context else None,
    )


def _url(config: Config, listener: asyncio.Server) -> str:
    port = listener.sockets[0].getsockname()[1]
    host = f"[{config.host}]" if ":" in config.host else config.host
    scheme = "https" if config.tls.certificate is not None else "http"
    return f"{scheme}://{host}:{port}"


async def drain(gateway: Gateway, *, hurry: asyncio.Event | None = None) -> None:
    """Refuse new work and wait for what runs; `hurry` ends the wait.

    The port stays open for the while: whoever still sends is told to try elsewhere, and a load
    balancer sees /readyz say no before a connection is refused.
    """
    gateway.draining.set()
    http = gateway.config.http
    clock = asyncio.get_running_loop()
    began = clock.time()
    log.info("draining: %d steps are live", gateway.host.live_steps)
    while hurry is None or not hurry.is_set():
        spent = clock.time() - began
        is_noticed = spent >= in_seconds(http.drain_notice)
        # A step ends before its last bytes are written, and there are clients that read slowly.
        is_done = gateway.is_idle and not gateway.answering
        if is_noticed and (is_done or spent >= in_seconds(http.drain_timeout)):
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    if not gateway.is_idle:
        log.warning("stopping %d steps that took too long", gateway.host.live_steps)


async def serve(config: Config, *, reread: Callable[[], Config] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; running requests are given the drain timeout.

    A second signal ends the wait. SIGHUP reads the configuration again with `reread`.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()

    def stop_or_hurry() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop_or_hurry)
    async with contextlib.AsyncExitStack() as stack:
        sinks: list[EventSink] = []
        journal: JournalFile | None = None
        if config.journal is not None:
            journal = JournalFile(
                config.journal,
                header=encode_header(journal_header(config.scheduler())),
                backlog_max=config.limits.to_limits().journal_backlog_max,
            )
            sinks.append(await stack.enter_async_context(journal))
        try:
            memory = await stack.enter_async_context(remembered(config))
            gateway, url = await stack.enter_async_context(
                running(config, sinks=sinks, reread=reread, memory=memory)
            )
            await stack.enter_async_context(joined(config, gateway, url=url))
        except BaseException:
            if journal is not None:
                # A start that failed (the port is taken, say) leaves none in the way of the next.
                journal.is_void = True
            raise
        up = len(gateway.fleet.up())
        total = len(gateway.fleet.members)
        print(
            f"agentsched ready on {url} (profile {config.profile}, {up} of {total} engines up)",
            flush=True,
        )
        await stop.wait()
        await drain(gateway, hurry=hurry)
