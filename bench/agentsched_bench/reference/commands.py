"""The reference page of the command line, drawn from the commands themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, Final

import typer

from agentsched.cli.root import app
from agentsched.cli.verbs import Verb

_HEAD: Final = """\
# Command line

Drawn from the commands (`python -m agentsched_bench.reference`). `agentsched COMMAND --help` says
the same. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, and 3 where `whatif` finds
that a journal does not replay. Errors are one line; `--debug` (or `AGENTSCHED_DEBUG=1`) shows the
traceback.
"""
_ALWAYS: Final = frozenset({"help", "install_completion", "show_completion"})


def to_page() -> str:
    """The page, as Markdown."""
    root = typer.main.get_command(app)
    found = list(_walk(root, "agentsched"))
    lines = [_HEAD, "| command | does |", "|---|---|"]
    for name, command in found:
        if not _is_group(command):
            lines.append(f"| [`{name}`](#{_anchor(name)}) | {_cell(_first(command))} |")
    lines.append("")
    for name, command in found:
        if not _is_group(command):
            lines += _section(name, command)
    return "\n".join(lines).rstrip() + "\n"


def _walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    loaded = command.load() if isinstance(command, Verb) else command
    yield name, loaded
    if _is_group(loaded):
        group: Any = loaded
        for word, child in sorted(group.commands.items()):
            yield from _walk(child, f"{name} {word}")


def _is_group(command: Any) -> bool:
    return hasattr(command, "commands")


def _first(command: Any) -> str:
    return inspect.cleandoc(command.help or "").partition("\n\n")[0].replace("\n", " ")


def _section(name: str, command: Any) -> Iterator[str]:
    parameters = [p for p in command.params if p.name not in _ALWAYS and not _is_hidden(p)]
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    options = [p for p in parameters if p.param_type_name != "argument"]
    words = " ".join(_usage(argument) for argument in arguments)
    yield f"## `{name}`"
    yield ""
    yield "```"
    yield " ".join(part for part in (name, "[OPTIONS]" if options else "", words) if part)
    yield "```"
    yield ""
    yield from _prose(inspect.cleandoc(command.help or ""))
    yield ""
    if parameters:
        yield "| option | default | meaning |"
        yield "|---|---|---|"
        for parameter in (*arguments, *options):
            yield f"| {_names(parameter)} | {_default(parameter)} | {_cell(_help(parameter))} |"
        yield ""


def _prose(text: str) -> Iterator[str]:
    """Help as it is written: what is indented in it is an example."""
    for block in text.replace("\b\n", "").split("\n\n"):
        if block.startswith("    "):
            yield from ("```", *inspect.cleandoc(block).splitlines(), "```", "")
        else:
            yield from (_escaped(line) for line in block.splitlines())
            yield ""


def _is_hidden(parameter: Any) -> bool:
    return bool(getattr(parameter, "hidden", False))


def _usage(argument: Any) -> str:
    word = (argument.metavar or argument.name or "").upper()
    word = word.removesuffix("...").strip("[]")
    word = f"{word}..." if argument.nargs == -1 and not word.endswith("...") else word
    return word if argument.required else f"[{word}]"


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_usage(parameter)}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if callable(value) or value is None or value is False or value in ((), [], ""):
        return ""
    if isinstance(value, list | tuple):
        value = ",".join(str(part) for part in value)
    return f"`{getattr(value, 'value', value)}`"


def _help(parameter: Any) -> str:
    text = str(getattr(parameter, "help", "") or "")
    variable = getattr(parameter, "envvar", None)
    return f"{text} (environment: `{variable}`)" if variable else text


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Angle brackets would be taken for HTML; code in backquotes is left alone."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", name.lower()).replace(" ", "-")
