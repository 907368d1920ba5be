"""The command line: one program, whose failures are one clear line and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted. Tracebacks appear
with `--debug` or AGENTSCHED_DEBUG only. A command returns nothing, or its exit code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130

#: Set (to anything) for tracebacks; `--debug` sets it, so that child processes see it too.
DEBUG: Final = "AGENTSCHED_DEBUG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` without arguments); returns the exit code."""
    try:
        from agentsched.cli.root import run
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        # A bare install, in an engine image say, has no command line.
        return _say("the command line is not installed (pip install 'agentsched[all]')", MISUSED)
    try:
        return run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if os.environ.get(DEBUG):
            import traceback

            traceback.print_exception(error)
        return _say(*_explain(_unwrap(error)))


def _unwrap(error: Exception) -> Exception:
    """What went wrong inside a task group that held one failure."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _explain(error: Exception) -> tuple[str, int]:
    # Imported late: the words take a fifth of the time that a list of commands takes.
    from agentsched.model.errors import AgentschedError, ConfigError, PolicyError

    match error:
        case ConfigError() | PolicyError():
            return str(error), MISUSED
        case AgentschedError() | OSError():
            return str(error), FAILED
        case _:
            said = f"{type(error).__name__}: {error}"
            return f"{said} (a defect; `agentsched --debug ...` shows where)", FAILED


def _say(text: str, code: int) -> int:
    # Words of proxies and engines may be in it, which are not to steer the terminal.
    signs = (c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    line = "".join(signs)
    print(f"agentsched: {line}", file=sys.stderr)
    return code
