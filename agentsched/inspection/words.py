"""Words of clients and engines, on their way to a terminal."""

from __future__ import annotations


def plain(text: str) -> str:
    """The text on one line, every sign that steers a terminal replaced by `�`; of the same length.

    Names come from clients, models and engines: an escape sequence in one of them would clear the
    screen of whoever looks, write over it, or reach the clipboard.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
