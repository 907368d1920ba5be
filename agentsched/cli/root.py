"""The root of the command line: its own options and commands, and all that joined it."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from agentsched import cli
from agentsched.cli.verbs import JoinedGroup, called
from agentsched.version import __version__

app = typer.Typer(
    cls=JoinedGroup,
    # Plain help starts in half the time, and reads the same in a terminal and in a file.
    rich_markup_mode=None,
    invoke_without_command=True,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def run(arguments: Sequence[str] | None) -> int:
    """Run one command; returns its exit code.

    Raises:
        Exception: whatever the command raises, but for wrong usage, which is said here.
    """
    command = typer.main.get_command(app)
    try:
        returned = command.main(
            args=None if arguments is None else list(arguments),
            prog_name="agentsched",
            standalone_mode=False,
        )
    except typer.Abort:
        return cli.INTERRUPTED
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        if context is None:  # the parser's own errors have none: an option without its value
            words = sys.argv[1:] if arguments is None else arguments
            return _say_misuse(error, where=called(command, words))
        return _say_misuse(error, where=context.command_path, context=context)
    return returned if isinstance(returned, int) else 0


def _say_misuse(
    error: typer.TyperException, *, where: str, context: typer.Context | None = None
) -> int:
    if context is not None and error.format_message() == context.get_help():
        print(context.get_help(), file=sys.stderr)  # a group was called without a command
        return error.exit_code
    text = " ".join(error.format_message().split())
    print(f"{where}: {text} (see '{where} --help')", file=sys.stderr)
    return error.exit_code


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"agentsched {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks (also: AGENTSCHED_DEBUG=1).")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Scheduling proxy for LLM agents: knows programs, not only requests.

    Start with `agentsched demo`, or put it in front of an engine:
    `agentsched serve --engine http://127.0.0.1:8000`.
    """
    if debug:
        os.environ[cli.DEBUG] = "1"
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def version(
    is_json: Annotated[bool, typer.Option("--json", help="For a machine to read.")] = False,
) -> None:
    """Show the versions of agentsched and of what it runs on."""
    versions = {
        "agentsched": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    if is_json:
        print(json.dumps(versions))
        return
    for name, value in versions.items():
        print(f"{name} {value}")
