"""A fixed comparison for pages: two arms, two repeats, a sub-agent, a pin, a failure, tenants."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from agentsched_bench.compare import results
from agentsched_bench.compare.figures import summarise
from agentsched_bench.compare.results import (
    ArmRow,
    Call,
    CompareResult,
    Decision,
    Pinned,
    Program,
    Reading,
    Run,
)
from agentsched_bench.live.results import TraceRow

#: A name that would break a careless page.
NASTY = "</script><b>p&2</b>"


def _call(program: str, step: int, sent_s: float, pace: float, **more: object) -> Call:
    values: dict[str, object] = {
        "program": program,
        "conversation": program,
        "step": step,
        "sent_s": sent_s,
        "latency_s": 2 * pace,
        "ttft_s": pace,
        "prompt_tokens": 1_000 + 200 * step,
        "cached_tokens": 900 if step else 0,
        "output_tokens": 50,
        "known_tokens": 1_000 if step else 0,
        "tools": ("bash",),
    }
    return Call(**(values | more))  # type: ignore[arg-type]


def _run(arm: str, repeat: int, pace: float) -> Run:
    names = {"p1": "team-a", NASTY: "team-b"}
    calls, programs = [], []
    for number, (name, tenant) in enumerate(names.items()):
        start = 1.0 * number
        for step in range(3):
            held = 0.5 * pace if arm == "agentsched" and step else None
            calls.append(
                _call(name, step, start + 4 * pace * step, pace, tenant=tenant, held_s=held,
                      label=f"x-{name}" if arm == "agentsched" else "")
            )  # fmt: skip
        programs.append(
            Program(program=name, started_s=start, jct_s=10 * pace, outcome="completed",
                    tenant=tenant)
        )  # fmt: skip
    calls.append(_call("p1", 0, 2.0, pace, conversation="p1/sub", tenant="team-a"))
    run = Run(
        arm=arm, repeat=repeat, seed=repeat, duration_s=12 * pace, is_complete=True, calls=calls,
        programs=programs, readings=[Reading(at_s=1.0, running=1, waiting=2, kv_usage=0.5)],
        preemptions=1.0, busy_share=0.8,
    )  # fmt: skip
    if arm == "agentsched":
        run.pins = [Pinned(program="p1", conversation="p1", from_s=2.0, to_s=3.0, end="resumed")]
        run.decisions = [Decision(at_s=2.0, kind="dispatch", text="held 1.2 s", program=NASTY)]
        run.decisions_total = {"Dispatch": 7, "Pin": 1}
    return run


@pytest.fixture
def comparison() -> CompareResult:
    """The comparison."""
    runs = [
        _run(arm, repeat, pace)
        for repeat in range(2)
        for arm, pace in (("direct", 2.0 + 0.1 * repeat), ("agentsched", 1.0))
    ]
    made = CompareResult(
        schema=results.SCHEMA,
        name="fixed",
        how="live",
        command=["agentsched", "compare", "fixed.toml"],
        started_at="2026-11-21T10:00:00+00:00",
        versions={"agentsched": "0.1.0"},
        machine={"cpus": "2"},
        spec={"engine": {"kind": "sim", "count": 1, "blocks": 101, "block_size": 32}},
        trace=TraceRow(name="t", sha256="abc", programs=2, calls=7, is_synthetic=True),
        arms=[
            ArmRow(name="direct", text="direct", about="the engine alone"),
            ArmRow(name="agentsched", text="agentsched", about="our proxy"),
            ArmRow(name="litellm", text="litellm", missing="not installed"),
        ],
        baseline="direct",
        question="Does it help?",
        expects="Half the time.",
        alone_s={"p1": 8.0, NASTY: 8.0},
        runs=runs,
        notes=["A note."],
        is_complete=True,
    )
    made.summary = summarise(made)
    return made


SHOWN = frozenset(
    {"h1", "h2", "h3", "nav", "section", "th", "td", "option", "li", "p", "summary", "title"}
)
BLOCKS = frozenset({"section", "nav"})


class Outline(HTMLParser):
    """Collects one line for each element that carries meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.addresses: list[str] = []
        self._open: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action") and v]
        if tag in ("script", "style"):
            self._silent += 1
        if tag in BLOCKS:
            self.lines.append(f"<{tag} {given.get('id', '')}>")
        if "data-part" in given:
            self.lines.append(f"[{given['data-part']}]")
        if tag in SHOWN - BLOCKS:
            self._open.append(tag)
            self.lines.append(f"{tag}:")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._silent -= 1
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if text and self._open and not self._silent:
            self.lines[-1] += f" {text}"


@pytest.fixture
def outline() -> Callable[[str], Outline]:
    """Reads the structure of a page: what is compared, without styles, scripts and pictures."""

    def read(page: str) -> Outline:
        found = Outline()
        found.feed(page)
        return found

    return read
