"""`agentsched engine vllm`."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agentsched.model import ConfigError, EngineError, EngineTimeout
from agentsched_bench.vllm_local.launcher import LocalVllmConfig, find_python, serve_until_signal


class Scheduling(StrEnum):
    """vLLM's own order of waiting requests."""

    FCFS = "fcfs"
    PRIORITY = "priority"


def vllm(
    extra: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- VLLM_ARGUMENTS]", help="Handed to vLLM as they are."),
    ] = None,
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    blocks: Annotated[int, typer.Option(min=2, help="KV blocks: the dial for pressure.")] = 1024,
    block_size: Annotated[int, typer.Option(help="Tokens per block; multiples of 32.")] = 32,
    max_model_len: Annotated[int, typer.Option(help="Tokens of prompt and answer.")] = 16_384,
    scheduling: Annotated[Scheduling, typer.Option(help="vLLM's order.")] = Scheduling.FCFS,
    model_name: Annotated[str, typer.Option(help="The name that clients use.")] = "tiny",
    dev_routes: Annotated[
        bool, typer.Option("--dev-routes", help="Add /server_info and /reset_prefix_cache.")
    ] = False,
    plugin: Annotated[
        bool, typer.Option("--plugin", help="Load agentsched's plugin: pins, order, endpoints.")
    ] = False,
    plugin_setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A setting of the plugin, as grace=5s; repeatable."
        ),
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option(help="The Python that has vLLM.", envvar="AGENTSCHED_VLLM_PYTHON"),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Keep vLLM's output in this file.")] = None,
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds until ready.")] = 240.0,
) -> None:
    """Start a real vLLM on this CPU with a tiny model made on the spot (output is noise).

    Needs vLLM in its own environment: --python, or .venv-vllm in the current directory. Prints one
    line when it is ready and stops cleanly on Ctrl-C or SIGTERM.
    """
    config = LocalVllmConfig(
        python=python,
        host=host,
        port=port,
        model_name=model_name,
        blocks=blocks,
        block_size=block_size,
        max_model_len=max_model_len,
        scheduling=scheduling.value,
        dev_routes=dev_routes,
        plugin=plugin or bool(plugin_setting),
        plugin_settings=tuple(_setting(text) for text in plugin_setting or ()),
        extra_args=tuple(extra or ()),
        log=log,
        start_timeout_s=start_timeout,
    )
    find_python(python)  # nothing is starting where there is none
    typer.echo("starting vLLM (about half a minute; minutes on a busy machine)", err=True)
    try:
        asyncio.run(serve_until_signal(config))
    except EngineError as error:
        # With the last lines of vLLM's log: lines, where other errors are one.
        typer.echo(f"agentsched: {error}", err=True)
        if isinstance(error, EngineTimeout):
            longer = f"--start-timeout {2 * start_timeout:g}"
            typer.echo(f"agentsched: where it only needs longer, write {longer}", err=True)
        raise typer.Exit(1) from None


def _setting(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"--plugin-setting takes NAME=VALUE, not {text!r}")
    return name, value
