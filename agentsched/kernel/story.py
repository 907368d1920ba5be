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
from agentsched.model import Command, Event, Instant, Prefix, StepArrived, ToolCall, Usage

_LEFT_OUT: Final[dict[type, str]] = {StepArrived: "prefixes"}
#: Fields whose names within would be most of a packed end of a step.
_WITHIN: Final[dict[str, type]] = {"usage": Usage, "tool_calls": ToolCall, "prefix": Prefix}


def _names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls) if f.name != _LEFT_OUT.get(cls))


def _values(names: tuple[str, ...]) -> Callable[[object], Any]:
    # One name alone would give its bare value.
    return attrgetter(*names) if len(names) > 1 else lambda part: [getattr(part, n) for n in names]


_CLASSES: Final[tuple[type, ...]] = (*get_args(Event), *get_args(Command))
_NAMES: Final = tuple(_names(cls) for cls in _CLASSES)
#: Where such fields are among a class's, and what is within them.
_PARTS: Final = tuple(
    tuple((at, _names(_WITHIN[name])) for at, name in enumerate(names) if name in _WITHIN)
    for names in _NAMES
)
#: The number of each class, what takes its values out, and what is within them, by class.
_PACKERS: Final = {cls: (n, _values(_NAMES[n]), _PARTS[n]) for n, cls in enumerate(_CLASSES)}
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(tuple[int, int, list[tuple[int, list[Any]]]]).decode


def pack(entry: JournalEntry) -> bytes:
    """The entry in few bytes."""
    parts = []
    for part in (entry.event, *entry.commands):
        number, values, within = _PACKERS[type(part)]
        packed = values(part)
        if within:
            packed = list(packed)
            for at, names in within:
                packed[at] = _bare(packed[at], names)
        parts.append((number, packed))
    return _ENCODE((entry.seq, entry.now, parts))


def unpack(packed: bytes) -> JournalEntry:
    """The entry that `pack` packed, but for what it leaves out."""
    seq, now, parts = _DECODE(packed)
    made: list[Any] = []
    for number, values in parts:
        for at, names in _PARTS[number]:
            values[at] = _named(values[at], names)
        named = dict(zip(_NAMES[number], values, strict=True))
        made.append(msgspec.convert(named, _CLASSES[number]))
    return JournalEntry(seq=seq, now=Instant(now), event=made[0], commands=tuple(made[1:]))


def _bare(value: Any, names: tuple[str, ...]) -> Any:
    """An object's values, those of each of several, or None for none."""
    if isinstance(value, tuple):
        return [_bare(one, names) for one in value]
    return None if value is None else tuple(getattr(value, name) for name in names)


def _named(values: Any, names: tuple[str, ...]) -> Any:
    """What `_bare` was given, by names."""
    if values is None:
        return None
    if values and isinstance(values[0], list):
        return [_named(one, names) for one in values]
    return dict(zip(names, values, strict=True)) if values else []
