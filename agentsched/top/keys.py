"""Single keys from a terminal, without waiting for Enter, and what they do to the view."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import termios
import tty
from collections.abc import Iterator
from typing import Final

from agentsched.top.screen import SORTS, View

_NAMES: Final = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b[5~": "page-up",
    "\x1b[6~": "page-down",
    "\x1b": "escape",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "rub",
    "\x08": "rub",
    "\x03": "quit",
}
_TYPED_MAX: Final = 60
#: What a terminal sends for one key that is no letter.
_SEQUENCE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[@-~])")


class Keys:
    """Reads keys from a terminal's file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._decode = codecs.getincrementaldecoder("utf-8")("ignore").decode

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Give keys as they are pressed; the terminal is as it was afterwards."""
        before = termios.tcgetattr(self._descriptor)
        try:
            tty.setcbreak(self._descriptor)
            yield
        finally:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, before)

    def wait(self, seconds: float) -> list[str]:
        """Keys that were pressed, or none within this time. A closed terminal is `quit`."""
        ready, _, _ = select.select([self._descriptor], [], [], max(0.0, seconds))
        if not ready:
            return []
        try:
            read = os.read(self._descriptor, 1_024)
        except OSError:
            read = b""
        return list(_keys(self._decode(read))) if read else ["quit"]


def _keys(text: str) -> Iterator[str]:
    while text:
        sequence = _SEQUENCE.match(text)
        found = text[0] if sequence is None else sequence[0]
        text = text[len(found) :]
        # One that means nothing here is no Esc with letters after it.
        if sequence is None or found in _NAMES:
            yield _NAMES.get(found, found)


def press(key: str, view: View) -> str:
    """Apply a key to the view; returns `quit`, `look` (ask the proxy again) or nothing."""
    if view.typing is not None:
        return _type(key, view)
    match key:
        case "q" | "quit":
            return "quit"
        case "?":
            view.is_help = not view.is_help
        case "escape":
            view.is_help, view.filter = False, ""
        case "/":
            view.typing = view.filter
        case "s":
            view.sort = SORTS[(SORTS.index(view.sort) + 1) % len(SORTS)]
        case "p":
            view.is_paused = not view.is_paused
        case "r":
            return "look"
        case _:
            _scroll(key, view)
    return ""


def _type(key: str, view: View) -> str:
    typed = view.typing or ""
    match key:
        case "quit":
            return "quit"
        case "enter":
            view.filter, view.typing, view.offset = typed, None, 0
        case "escape":
            view.filter, view.typing = "", None
        case "rub":
            view.typing = typed[:-1]
        case _ if len(key) == 1 and key.isprintable() and len(typed) < _TYPED_MAX:
            view.typing = typed + key
        case _:
            pass
    return ""


def _scroll(key: str, view: View) -> None:
    by = {"j": 1, "down": 1, "k": -1, "up": -1, " ": view.page, "page-down": view.page}
    by |= {"b": -view.page, "page-up": -view.page, "G": 1 << 30, "g": -(1 << 30)}
    view.offset = max(0, view.offset + by.get(key, 0))
