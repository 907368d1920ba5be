"""Commands that join the command line by entry point, imported only when they are called.

A distribution offers a command as an entry point of the group `agentsched.commands`, named by the
words that call it (`replay`, `engine sim`). A function becomes one command, a `typer.Typer` a group
of commands. Listing the commands imports none of them: their help is read out of the source text.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from agentsched.cli.summary import summary

GROUP: Final = "agentsched.commands"

#: Help of the words that only gather commands; others list what they gather.
_GATHERED: Final = {"engine": "Start an engine: embedded, or a real vLLM."}


class Verb(TyperCommand):
    """The place of a command that is not imported yet: its name, and one line about it."""

    def __init__(self, name: str, entries: list[EntryPoint]) -> None:
        super().__init__(name=name)
        self._entries = entries

    def get_short_help_str(self, limit: int = 45) -> str:
        return summary(self._entries[0])

    def load(self) -> TyperCommand | TyperGroup:
        """Import the command.

        Raises:
            ConfigError: two distributions offer it, a package that it needs is not installed, or
                what the entry point names is no command.
        """
        if len(self._entries) > 1:
            values = ", ".join(sorted(e.value for e in self._entries))
            raise _refusal(f"command {self._entries[0].name!r} is offered twice: {values}")
        entry = self._entries[0]
        try:
            thing: object = entry.load()
        except ModuleNotFoundError as error:
            raise _refusal(_missing(entry, error)) from error
        except AttributeError as error:
            raise _refusal(f"command {entry.name!r}: {error}") from error
        return _as_command(thing, name=str(self.name), entry=entry)


class VerbGroup(TyperGroup):
    """A group of commands, in which each `Verb` gives way to the real command when called."""

    # The context's type is private to typer, here and below.
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, Verb) else command, rest

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands)


class JoinedGroup(VerbGroup):
    """The root of the command line: its own commands and all that joined by entry point."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        join(self, entry_points(group=GROUP))


def join(root: TyperGroup, entries: Iterable[EntryPoint]) -> None:
    """Add the entries' commands to `root`. Root's own commands keep their names."""
    by_name: dict[str, dict[str, EntryPoint]] = {}
    for entry in entries:
        # An editable install beside an old one names the same thing twice: that is no conflict.
        by_name.setdefault(" ".join(entry.name.split()), {})[entry.value] = entry
    for name, offers in sorted(by_name.items()):
        *path, last = name.split(" ")
        group = _descend(root, path)
        if last not in group.commands:
            group.add_command(Verb(last, list(offers.values())), last)
    for word, command in root.commands.items():
        if isinstance(command, VerbGroup):
            gathered = ", ".join(sorted(command.commands))
            command.help = _GATHERED.get(word, f"Commands: {gathered}.")


def called(root: object, words: Iterable[str]) -> str:
    """The path of the command that these words call, as its help is asked for."""
    path, command = ["agentsched"], root
    for word in words:
        if word.startswith("-"):
            continue  # an option of the root: they take no values
        found = command.commands.get(word) if isinstance(command, TyperGroup) else None
        if found is None:
            break
        path.append(word)
        command = found.load() if isinstance(found, Verb) else found
    return " ".join(path)


def _descend(root: TyperGroup, path: list[str]) -> TyperGroup:
    group = root
    for word in path:
        found = group.commands.get(word)
        if not isinstance(found, TyperGroup):
            # A group takes the place of a command of its name, which could not be told apart.
            found = VerbGroup(name=word, rich_markup_mode=None)
            group.add_command(found, word)
        group = found
    return group


def _as_command(thing: object, *, name: str, entry: EntryPoint) -> TyperCommand | TyperGroup:
    if isinstance(thing, TyperCommand | TyperGroup):
        return thing
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    if isinstance(thing, typer.Typer):
        app.add_typer(thing, name=name)
    elif callable(thing):
        app.command(name)(thing)
        app.callback()(_nothing)
    else:
        raise _refusal(f"command {entry.name!r}: {entry.value} is no command")
    command = typer.main.get_group(app).commands[name]
    assert isinstance(command, TyperCommand | TyperGroup)
    return command


def _nothing() -> None: ...


def _refusal(text: str) -> Exception:
    # Imported late, for speed: see the command line's `_explain`.
    from agentsched.model.errors import ConfigError

    return ConfigError(text)


def _missing(entry: EntryPoint, error: ModuleNotFoundError) -> str:
    name = (error.name or "").partition(".")[0]
    if not name or name.startswith("agentsched"):
        return f"command {entry.name!r} cannot be loaded: {error}"
    return f"command {entry.name!r} needs {name} (pip install 'agentsched[all]')"
