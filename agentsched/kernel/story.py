"""A program's latest journal entries, packed: a line of JSON takes three times the bytes.

Values without their names, and an arrival without its prefixes: those are for engines' caches, and
would be most of it. Packed entries never leave the process, so they have no version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final, get_args

import msgspec

from agentsched.kernel.journal import JournalEntry
from agentsched.model import Command, Event, Instant, StepArrived

_LEFT_OUT: Final[dict[type, str]] = {StepArrived: "prefixes"}


def _names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls) if f.name != _LEFT_OUT.get(cls))


def _values(names: tuple[str, ...]) -> Callable[[object], Any]:
    # One name alone would give its bare value.
    return attrgetter(*names) if len(names) > 1 else lambda part: [getattr(part, n) for n in names]


_CLASSES: Final[tuple[type, ...]] = (*get_args(Event), *get_args(Command))
_NAMES: Final = tuple(_names(cls) for cls in _CLASSES)
#: The number of each class and what takes its values out, by class.
_PACKERS: Final = {cls: (n, _values(_NAMES[n])) for n, cls in enumerate(_CLASSES)}
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(tuple[int, int, list[tuple[int, list[Any]]]]).decode


def pack(entry: JournalEntry) -> bytes:
    """The entry in few bytes."""
    parts = []
    for part in (entry.event, *entry.commands):
        number, values = _PACKERS[type(part)]
        parts.append((number, values(part)))
    return _ENCODE((entry.seq, entry.now, parts))


def unpack(packed: bytes) -> JournalEntry:
    """The entry that `pack` packed, but for what it leaves out."""
    seq, now, parts = _DECODE(packed)
    made: list[Any] = [
        msgspec.convert(dict(zip(_NAMES[number], values, strict=True)), _CLASSES[number])
        for number, values in parts
    ]
    return JournalEntry(seq=seq, now=Instant(now), event=made[0], commands=tuple(made[1:]))
