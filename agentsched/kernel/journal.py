"""The journal: what happened and what was decided, and its byte form (one JSON line an entry).

The journal is the single truth. Logs, metrics, spans, the database and the bus are projections of
it, and feeding its events to a fresh scheduler must give its commands again. To make that scheduler
one must know what it was made of: a journal that is kept begins with a header that says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Final, get_args

import msgspec

from agentsched.model import AgentschedError, Command, ConfigError, Event, Instant, Limits
from agentsched.policy import Choice

#: Raised when a line of this version means something else than one of the version before.
JOURNAL_VERSION: Final = 1


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


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalHeader:
    """What the scheduler of a journal was made of: enough to make it again.

    `choices` names the policy in force at each point, also where the profile chose it, so that a
    later version whose profiles differ still replays the journal. `agentsched` is the version that
    wrote it, for people. `workflows` are the declared ones as texts, which only graphs read.
    """

    profile: str
    choices: Mapping[str, Choice]
    limits: Limits
    agentsched: str = ""
    version: int = JOURNAL_VERSION
    workflows: tuple[str, ...] = ()


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    params: dict[str, Any] = {}


class _Header(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    journal: int
    agentsched: str
    profile: str
    choices: dict[str, _Choice]
    limits: dict[str, int]
    workflows: tuple[str, ...] = ()


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    seq: int
    now: int
    event: tuple[str, msgspec.Raw]
    commands: list[tuple[str, msgspec.Raw]]


#: What journals of before a limit was there were made with.
_LIMITS_BEFORE: Final = {"slow_start_ns": 1, "silence_ns": 1 << 62}

_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_LINE: Final = msgspec.json.Decoder(_Line)
_HEADER: Final = msgspec.json.Decoder(_Header)
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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JournalError(f"not a journal line: {error}") from error


def encode_header(header: JournalHeader) -> bytes:
    """The header as one line of JSON, without a line end."""
    limits = {name: getattr(header.limits, name) for name in Limits.__slots__}
    return _ENCODER.encode(
        _Header(
            journal=header.version,
            agentsched=header.agentsched,
            profile=header.profile,
            choices={
                point: _Choice(name=choice.name, params=dict(choice.params))
                for point, choice in header.choices.items()
            },
            limits=limits,
            workflows=header.workflows,
        )
    )


def decode_header(line: bytes) -> JournalHeader:
    """The header that `encode_header` made this line from.

    Raises:
        JournalError: not such a line, or of a version that this one cannot read.
    """
    try:
        raw = _HEADER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JournalError(f"not the header of a journal: {error}") from error
    if raw.journal != JOURNAL_VERSION:
        raise JournalError(f"journal version {raw.journal}; this reads {JOURNAL_VERSION}")
    try:
        limits = Limits(**(_LIMITS_BEFORE | raw.limits))  # type: ignore[arg-type]  # NewTypes over int
    except (TypeError, ConfigError) as error:
        raise JournalError(f"the header's limits are not ours: {error}") from error
    return JournalHeader(
        profile=raw.profile,
        choices={p: Choice(name=c.name, params=c.params) for p, c in raw.choices.items()},
        limits=limits,
        agentsched=raw.agentsched,
        version=raw.journal,
        workflows=raw.workflows,
    )


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
