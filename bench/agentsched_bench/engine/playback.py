"""Scripted answers, so that a real agent can be run against the embedded engine.

A playback file is JSON Lines, one script a line:

    {"match": "fix the bug", "answers": [
        {"text": "Let me look.", "tool_calls": [{"name": "bash", "arguments": {"command": "ls"}}]},
        {"text": "Done.", "finish": "stop"}]}

A script applies to every conversation whose first user message contains `match` (the first such
script of the file; an empty `match` fits all) and whose last user message contains `last`, where
that is given (a compaction asks for its summary there). The answer is chosen by how many answers
the conversation holds already; after the last one it is given again. Fields of an answer, all
optional: `text`, `tool_calls` (left out where the client offers no tools), `finish` (`stop` or
`length`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from agentsched.model.errors import ConfigError


class ScriptedCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool call to make; `arguments` is an object, or a string to be sent as it is."""

    name: str
    arguments: dict[str, Any] | str = {}

    def text(self) -> str:
        """The arguments as they go over the wire."""
        if isinstance(self.arguments, str):
            return self.arguments
        return msgspec.json.encode(self.arguments).decode()


class ScriptedAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer."""

    text: str = ""
    tool_calls: tuple[ScriptedCall, ...] = ()
    finish: Literal["stop", "length"] = "stop"


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answers to one conversation, in order."""

    answers: tuple[ScriptedAnswer, ...]
    match: str = ""
    last: str = ""


class Playback:
    """All scripts of a file."""

    def __init__(self, scripts: tuple[Script, ...] = ()) -> None:
        self._scripts = scripts

    def __len__(self) -> int:
        return len(self._scripts)

    def answer(
        self, *, first_user: str, answers: int, last_user: str = ""
    ) -> ScriptedAnswer | None:
        """The answer that comes next, or None when no script fits."""
        for script in self._scripts:
            if script.match in first_user and script.last in last_user:
                return script.answers[min(answers, len(script.answers) - 1)]
        return None


def read_answer(text: str) -> ScriptedAnswer:
    """One answer from JSON, as a header carries it.

    Raises:
        ConfigError: it is none.
    """
    try:
        return msgspec.json.decode(text, type=ScriptedAnswer)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"scripted answer: {error}") from error


def read_playback(path: Path) -> Playback:
    """Read a playback file.

    Raises:
        ConfigError: it cannot be read, or a line is no script; the text has the line's number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the playback file {path}: {error}") from error
    scripts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            script = msgspec.json.decode(line, type=Script)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
        if not script.answers:
            raise ConfigError(f"{path}, line {number}: a script needs at least one answer")
        scripts.append(script)
    return Playback(tuple(scripts))
