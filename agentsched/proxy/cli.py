"""`agentsched serve`: the command."""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from agentsched.config import load_config
from agentsched.model import ConfigError
from agentsched.proxy.access.redact import redact_logs
from agentsched.telemetry.logs import set_up_logging

#: Open files that are asked for where the system lets us: two for each request, and some.
_FILES_WANTED: Final = 65_536


def serve(
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", "-e", help="URL of an engine, or NAME=URL. Repeatable."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="TOML file (docs/configuration.md).")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one [8900].")] = None,
    profile: Annotated[str | None, typer.Option(help="Set of policies [agentsched].")] = None,
    max_wait: Annotated[
        str | None, typer.Option(help="No step is held longer than this (15s, 2m) [2m].")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="File that gets the journal; .gz is compressed.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error.")] = None,
) -> None:
    """Serve the proxy in front of one or more engines.

    Agents change nothing but their base URL: `http://127.0.0.1:8900/v1`.
    """
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "profile": profile,
        "journal": journal,
        "log_level": log_level,
    }
    if engine:
        options["engines"] = [_engine(text) for text in engine]
    if max_wait is not None:
        options["limits"] = {"max_wait": max_wait}
    loaded = load_config(config, options)
    if not loaded.engines:
        raise ConfigError("no engine is given (write --engine http://127.0.0.1:8000)")
    set_up_logging(level=loaded.log_level, style=loaded.telemetry.log_format)
    redact_logs()
    _raise_file_limit()
    # Imported late, so that --help and usage errors do not wait for the data plane.
    import uvloop

    from agentsched.proxy import serve as server

    _tune_collector()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve(loaded, reread=partial(load_config, config, options)))


def _raise_file_limit() -> None:
    """Take as many files as we may have: services and containers often begin with 1,024.

    Without them not only clients are turned away: engines cannot be looked at, and seem lost.
    """
    import resource  # only where there are such limits: importing this module works everywhere

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(_FILES_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _tune_collector() -> None:
    """Look for garbage less often: what a proxy makes in a turn is freed by counting references."""
    # Modules are for ever, and the defaults would walk over every live program's records for each
    # few requests: a tenth of all CPU.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _engine(text: str) -> dict[str, str]:
    name, separator, url = text.partition("=")
    if separator and "/" not in name:
        return {"id": name, "url": url}
    return {"url": text}
