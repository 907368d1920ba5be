"""The journal: what happened and what was decided, and its byte form (one JSON line an entry).

The journal is the single truth. Logs, metrics, spans, the database and the bus are projections of
it, and feeding its events to a fresh scheduler must give its commands again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import UnionType
from typing import Any, Final, get_args

import msgspec

from agentsched.model import AgentschedError, Command, Event, Instant


class JournalError(AgentschedError):
    """A journal line cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One turn of the scheduler: the event, when it came, and the commands that it led to."""

    seq: int
    now: Instant
    event: Event
    commands: tuple[Command, ...]


def _by_name(union: UnionType) -> dict[str, type]:
    return {cls.__name__: cls for cls in get_args(union)}


_EVENTS: Final = _by_name(Event)
_COMMANDS: Final = _by_name(Command)


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    seq: int
    now: int
    event: tuple[str, msgspec.Raw]
    commands: list[tuple[str, msgspec.Raw]]


_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_LINE: Final = msgspec.json.Decoder(_Line)
_DECODERS: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    name: msgspec.json.Decoder(cls) for name, cls in (_EVENTS | _COMMANDS).items()
}


def encode(entry: JournalEntry) -> bytes:
    """The entry as one line of JSON, without a line end."""
    return _ENCODER.encode(
        {
            "seq": entry.seq,
            "now": entry.now,
            "event": (type(entry.event).__name__, entry.event),
            "commands": [(type(c).__name__, c) for c in entry.commands],
        }
    )


def decode(line: bytes) -> JournalEntry:
    """The entry that `encode` made this line from.

    Raises:
        JournalError: not such a line, or made by a version that knew other events.
    """
    try:
        raw = _LINE.decode(line)
        return JournalEntry(
            seq=raw.seq,
            now=Instant(raw.now),
            event=_decode_one(raw.event, known=_EVENTS),
            commands=tuple(_decode_one(pair, known=_COMMANDS) for pair in raw.commands),
        )
    except msgspec.DecodeError as error:
        raise JournalError(f"not a journal line: {error}") from error


def _decode_one(pair: tuple[str, msgspec.Raw], *, known: dict[str, type]) -> Any:
    name, raw = pair
    if name not in known:
        raise JournalError(f"the journal knows a {name!r} that this version does not")
    return _DECODERS[name].decode(raw)


def subjects(entry: JournalEntry) -> Iterable[str]:
    """Ids of steps and programs that the entry is about, for filters; duplicates possible."""
    for part in (entry.event, *entry.commands):
        for field in ("step", "program"):
            value = getattr(part, field, None)
            if value is not None:
                yield value
