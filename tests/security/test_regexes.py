"""No regular expression of ours takes long over any text that it may be given.

All patterns of the modules that see what clients and engines send are collected, each is tried on
long texts that are made to keep it busy, and twice the text must not take much more than twice as
long.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import pkgutil
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

ROOMS = (
    "agentsched.bus",
    "agentsched.config_access",
    "agentsched.dashboard",
    "agentsched.model",
    "agentsched.proxy",
    "agentsched.telemetry",
    "agentsched_adapters",
    "agentsched_graphs",
)
SKIPPED = ("agentsched_adapters.vllm_plugin",)
SIZE = 20_000


def modules() -> Iterator[str]:
    for name in ROOMS:
        room = importlib.import_module(name)
        yield name
        for found in pkgutil.walk_packages(getattr(room, "__path__", ()), f"{name}."):
            if not found.name.startswith(SKIPPED) and not found.name.endswith("__main__"):
                yield found.name


@dataclass(frozen=True)
class Found:
    """A pattern, and the ways in which its module asks it."""

    pattern: re.Pattern[str] | re.Pattern[bytes]
    asks: tuple[str, ...]


def patterns() -> dict[str, Found]:
    found: dict[str, Found] = {}
    seen: set[int] = set()
    for name in modules():
        module = importlib.import_module(name)
        for key, value in vars(module).items():
            if isinstance(value, re.Pattern) and id(value) not in seen:
                asks = re.findall(rf"\b{key}\.(\w+)\b", inspect.getsource(module))
                ways = tuple(sorted({_WAYS.get(ask, ask) for ask in asks} & {*_WAYS.values()}))
                if ways:
                    seen.add(id(value))
                    found[f"{name}.{key}"] = Found(value, ways)
    return found


#: All that looks for a match anywhere costs what a search costs; the first match is the same work.
_WAYS = {
    "search": "findall",
    "sub": "findall",
    "split": "findall",
    "finditer": "findall",
    "findall": "findall",
    "match": "match",
    "fullmatch": "fullmatch",
}
PATTERNS = patterns()


def pieces(pattern: str) -> set[str]:
    """Short texts that the pattern has an eye for."""
    words = set(re.findall(r"[A-Za-z0-9_/:=<>\"' -]{1,24}", pattern))
    signs = set("a0A_-/.:%=,;'\"<>{}[]()#@ \n\t\\")
    return {w for w in words if w} | signs


def texts(pattern: str, size: int) -> Iterator[str]:
    found = sorted(pieces(pattern))[:60]
    for piece in found:
        whole = (piece * (size // len(piece) + 1))[:size]
        yield whole
        yield whole[:-1] + "\x00"
    # One word, then much of one sign, then what cannot match.
    for word in found[:12]:
        for sign in ("a", "0", " ", "-", "/", ":", '"', "\n"):
            yield word + sign * (size - len(word) - 1) + "\x00"


def took(found: Found, text: str, *, tries: int = 1) -> float:
    """The least CPU time of so many tries, in seconds: whatever else goes on only adds to it."""
    given = text if isinstance(found.pattern.pattern, str) else text.encode()
    spent = []
    gc.disable()  # a collection looks at all that other tests left
    try:
        for _ in range(tries):
            began = time.process_time()
            for ask in found.asks:
                getattr(found.pattern, ask)(given)
            spent.append(time.process_time() - began)
    finally:
        gc.enable()
    return min(spent)


def test_they_are_found() -> None:
    assert "agentsched.proxy.access.redact._SECRETS" in PATTERNS
    assert "agentsched.proxy.headers._CONTROLS" in PATTERNS
    assert len(PATTERNS) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_long_texts_take_time_in_proportion(name: str) -> None:
    found = PATTERNS[name]
    pattern = found.pattern
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode()
    for text in texts(source, SIZE):
        if took(found, text) < 0.05:
            continue
        half, spent = (took(found, part, tries=7) for part in (text[: SIZE // 2], text))
        # Twice as much for twice the text is in proportion; four times as much is not.
        assert spent < 3.2 * max(half, 0.005), f"{text[:30]!r}...: {half:.3f} s, {spent:.3f} s"


def test_the_measure_sees_what_it_is_for() -> None:
    bad = Found(re.compile(r"x.*y.*z.*\x01"), ("findall",))
    short, long = (took(bad, "x" + "y" * count, tries=7) for count in (150, 1_500))
    assert long > 20 * max(short, 1e-6)
