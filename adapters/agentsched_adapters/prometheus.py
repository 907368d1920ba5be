"""Read a few gauges out of a Prometheus text page without parsing the rest of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_LABEL: Final = re.compile(rb'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
_ESCAPE: Final = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One line of a page."""

    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def samples(page: bytes, name: str) -> tuple[Sample, ...]:
    """All samples of exactly this metric, in order. Lines that cannot be read are left out.

    A page of 50 KB is mostly histograms, so lines are searched for, not parsed.
    """
    needle = b"\n" + name.encode()
    text = b"\n" + page
    found = []
    at = text.find(needle)
    while at >= 0:
        start = at + len(needle)
        end = text.find(b"\n", start)
        line = text[start : end if end >= 0 else len(text)]
        if line[:1] in (b"{", b" ", b"\t") and (sample := _parse(line)) is not None:
            found.append(sample)
        at = text.find(needle, start)
    return tuple(found)


def total(page: bytes, *names: str) -> float | None:
    """The sum over the first of `names` that the page has; None when it has none of them."""
    for name in names:
        if found := samples(page, name):
            return math.fsum(sample.value for sample in found)
    return None


def _parse(line: bytes) -> Sample | None:
    labels: dict[str, str] = {}
    rest = line
    if line.startswith(b"{"):
        at = 1
        while match := _LABEL.match(line, at):
            labels[match[1].decode()] = _ESCAPE.sub(_unescape, match[2].decode(errors="replace"))
            at = match.end()
            # A comma may follow the last label as well.
            at += len(line) - at - len(line[at:].lstrip(b", \t"))
        if line[at : at + 1] != b"}":
            return None
        rest = line[at + 1 :]
    words = rest.split()
    try:
        value = float(words[0])
    except (IndexError, ValueError):
        return None
    # `NaN` and `+Inf` are legal there, and no reading of what is counted here.
    return Sample(value=value, labels=labels) if math.isfinite(value) else None


def _unescape(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]
