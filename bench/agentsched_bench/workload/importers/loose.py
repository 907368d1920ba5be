"""Reading foreign JSON without trusting it: a wrong type counts as absent, never as an error."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

Json = Any  # what a foreign file holds: nothing about it is known
Object = dict[str, Any]

#: No token count of one call comes near; a larger number is a mistake of the file's.
COUNT_MAX: Final = 1_000_000_000
_ISO_DIGITS: Final = re.compile(r"(\.\d{6})\d+")


def as_object(value: Json) -> Object:
    return value if isinstance(value, dict) else {}


def as_list(value: Json) -> list[Any]:
    return value if isinstance(value, list) else []


def as_objects(value: Json) -> list[Object]:
    return [item for item in as_list(value) if isinstance(item, dict)]


def flat(values: Sequence[Any]) -> list[Any]:
    """The values, those of lists among them one by one (`claude -p --output-format json`)."""
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def as_text(value: Json) -> str:
    """A string, or the texts of a list of content parts, one after the other."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return "\n".join(text for text in map(_part_text, value) if text)
    if isinstance(value, dict):
        return _part_text(value)
    return ""


def _part_text(part: Json) -> str:
    if isinstance(part, str):
        return clean(part)
    if not isinstance(part, dict):
        return ""
    for key in ("text", "content", "input_text", "output_text", "thinking", "response", "result"):
        value = part.get(key)
        if isinstance(value, str):
            return clean(value)
        if isinstance(value, list | dict) and value:
            return as_text(value)
    return ""


def clean(text: str) -> str:
    """`text` as it can be written again: half surrogate pairs become question marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def as_name(value: Json, *, default: str = "") -> str:
    """A short string: no line ends, at most 200 characters."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return default
    return " ".join(clean(value).split())[:200] or default


def as_count(value: Json) -> int | None:
    """A number of tokens, 0 or more; also from a string, as OTLP writes 64-bit integers."""
    number = as_number(value)
    if number is None or not 0 <= number <= COUNT_MAX:
        return None
    return int(number)


def as_number(value: Json) -> float | None:
    """A finite number, also from a string; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_seconds(value: Json) -> float | None:
    """A span in seconds, 0 or more."""
    number = as_number(value)
    return number if number is not None and number >= 0 else None


def as_instant(value: Json) -> float | None:
    """Seconds since 1970 from ISO 8601, or from a number of s, ms, us or ns by its size.

    A time without a zone is taken as UTC: only differences within a file are used.
    """
    number = as_number(value)
    if number is not None:
        if number < 0:
            return None
        for limit, unit in ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6)):
            if number < limit:
                return number / unit
        return number / 1e9
    if not isinstance(value, str):
        return None
    text = _ISO_DIGITS.sub(r"\1", value.strip())
    try:
        instant = datetime.fromisoformat(text.replace("Z", "+00:00").replace("z", "+00:00"))
        instant = instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)
        return instant.timestamp()
    except (ValueError, OverflowError):
        return None


def as_json(value: Json) -> Json:
    """What a string of JSON holds, or the value as it is; None for a string that is none."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def first(*values: Json) -> Json:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)
