"""Small values out of client fields: decoded, checked, None or empty where they make no sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from agentsched.model import StepClass

_SMALL_FIELD: Final = 65_536


def value_of(raw: msgspec.Raw | None) -> Any:
    if raw is None or len(raw) > _SMALL_FIELD:
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None


def inner_of(fields: Mapping[str, msgspec.Raw], name: str) -> dict[str, msgspec.Raw]:
    """The object in field `name`, its values still raw; empty where there is none."""
    raw = fields.get(name)
    if raw is None or len(raw) > _SMALL_FIELD:
        return {}
    try:
        return msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return {}


def object_of(fields: Mapping[str, msgspec.Raw], name: str) -> dict[str, Any]:
    value = value_of(fields.get(name))
    return value if isinstance(value, dict) else {}


def decoded(text: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def flag_of(value: object) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in ("1", "true", "yes")
    return value is True or value == 1


def number_of(value: object) -> float | None:
    """A finite number that is not negative; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number < 1e9 else None


def integer_of(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = int(float(value))
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 2**31 else None


def durations_of(text: str) -> tuple[tuple[str, float], ...]:
    """`Bash=226;Read=3` as pairs of tool and milliseconds; at most 64."""
    found = []
    for part in text[:8_192].split(";")[:64]:
        name, _, value = part.rpartition("=")
        number = number_of(value)
        if name.strip() and number is not None:
            found.append((name.strip(), number))
    return tuple(found)


def step_class_of(value: object) -> StepClass | None:
    try:
        return StepClass(value) if isinstance(value, str) else None
    except ValueError:
        return None
