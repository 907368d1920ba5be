"""Journals become calls, programs, pins and decisions, with times from the first arrival."""

from __future__ import annotations

from pathlib import Path

import pytest
from shorthand import arrived, finished, pin, tool_call, unpin

from agentsched.compose import SchedulerConfig, journal_header
from agentsched.kernel import JournalEntry
from agentsched.model import (
    Command,
    Dispatch,
    EngineId,
    Event,
    Instant,
    Reject,
    RejectReason,
    StepArrived,
    StepFailed,
    StepFinished,
    StepId,
    StepStarted,
    TimerFired,
    UnpinReason,
    seconds,
)
from agentsched_bench.compare.journals import tell
from agentsched_bench.compare.measure import read_journal, rescale
from agentsched_bench.compare.results import Call, Run
from agentsched_bench.compare.stages import Endpoint
from agentsched_bench.replay.journal_file import JournalWriter

ENGINE = EngineId("e0")


class Book:
    """Writes entries, one after the other."""

    def __init__(self) -> None:
        self.entries: list[JournalEntry] = []

    def at(self, second: float, event: Event, *commands: Command) -> None:
        now = Instant(seconds(100 + second))
        self.entries.append(
            JournalEntry(seq=len(self.entries), now=now, event=event, commands=commands)
        )


def asked(step: str) -> StepArrived:
    return arrived(step, tenant="team", tokens=90)


def ended(step: str, *, cached: int, tool: str = "") -> StepFinished:
    calls = (tool_call("c", tool),) if tool else ()
    return finished(step, *calls, prompt=100, cached=cached, output=20)


def dispatch(step: str) -> Dispatch:
    return Dispatch(step=StepId(step), engine=ENGINE, order="work", bypassed=2)


def test_a_step_is_told_from_arrival_to_end() -> None:
    book = Book()
    book.at(0, asked("s1"))
    book.at(2, TimerFired(), dispatch("s1"))
    book.at(3, StepStarted(step=StepId("s1")))
    book.at(5, ended("s1", cached=0, tool="bash"))
    book.at(8, asked("s2"), dispatch("s2"))
    book.at(9, ended("s2", cached=64))

    told = tell(book.entries)

    first, second = told.calls
    assert (first.sent_s, first.held_s, first.ttft_s, first.latency_s) == (0, 2, 3, 5)
    assert (first.prompt_tokens, first.cached_tokens, first.output_tokens) == (100, 0, 20)
    assert first.tools == ("bash",)
    assert first.bypassed == 2
    # Prompt and answer of the first were known, as far as the second's prompt reaches.
    assert second.known_tokens == 100
    assert second.step == 1
    (program,) = told.programs
    assert (program.started_s, program.jct_s, program.outcome) == (0, 9, "completed")
    assert program.tenant == "team"
    assert told.totals == {"Dispatch": 2}
    assert "held 2.0 s" in told.decisions[0].text


def test_a_call_that_is_turned_away_and_tried_again_is_one_call() -> None:
    book = Book()
    book.at(0, asked("s1"), Reject(step=StepId("s1"), reason=RejectReason.WAIT_BOUND))
    book.at(4, asked("s2"))
    book.at(5, TimerFired(), dispatch("s2"))
    book.at(6, ended("s2", cached=0))

    (call,) = tell(book.entries).calls

    assert (call.attempts, call.error) == (2, "")
    assert (call.sent_s, call.latency_s, call.refused_s, call.held_s) == (0, 6, 4, 1)


def test_failures_are_kept_as_what_they_are() -> None:
    book = Book()
    book.at(0, asked("s1"), dispatch("s1"))
    book.at(1, StepFailed(step=StepId("s1"), reason="engine gone"))

    told = tell(book.entries)

    assert told.calls[0].error == "engine gone"
    assert told.programs[0].outcome == "failed"
    assert told.programs[0].jct_s is None


def test_what_the_journal_has_no_end_of_did_not_complete() -> None:
    """A proxy that still runs, or was killed: its last calls are not answers in no time at all."""
    book = Book()
    book.at(0, asked("s1"), dispatch("s1"))
    book.at(2, ended("s1", cached=0, tool="bash"))
    book.at(5, asked("s2"), dispatch("s2"))
    book.at(9, StepStarted(step=StepId("s2")))

    told = tell(book.entries)

    assert [(call.error, call.latency_s) for call in told.calls] == [("", 2), ("interrupted", 4)]
    (program,) = told.programs
    assert (program.outcome, program.jct_s) == ("interrupted", None)


@pytest.mark.parametrize("is_sent_again", [True, False])
def test_a_step_that_its_engine_lost_is_open_still(is_sent_again: bool) -> None:
    book = Book()
    book.at(0, asked("s1"), dispatch("s1"))
    book.at(1, StepFailed(step=StepId("s1"), reason="engine gone", is_retryable=True))
    book.at(2, TimerFired(), *([dispatch("s1")] if is_sent_again else ()))
    book.at(5, TimerFired())

    told = tell(book.entries)

    assert [(call.error, call.latency_s) for call in told.calls] == [("interrupted", 5)]
    assert told.programs[0].outcome == "interrupted"
    refused = Reject(step=StepId("s1"), reason=RejectReason.ENGINE_FAILED)
    book.at(6, StepFailed(step=StepId("s1"), reason="gone", is_retryable=True), refused)
    (call,) = tell(book.entries).calls
    assert (call.error, call.latency_s) == ("rejected: engine_failed", 6)


def test_pins_last_until_they_are_ended_or_the_journal_is() -> None:
    book = Book()
    book.at(0, asked("s1"), dispatch("s1"))
    book.at(1, ended("s1", cached=0), pin("a"), pin("b"))
    book.at(4, TimerFired(), unpin("a", reason=UnpinReason.EXPIRED))
    book.at(7, TimerFired())

    told = tell(book.entries)

    assert [(p.from_s, p.to_s, p.end) for p in told.pins] == [(1, 4, "expired"), (1, 7, "open")]
    assert [d.kind for d in told.decisions] == ["unpin"]


def test_an_empty_journal_tells_nothing() -> None:
    told = tell([])

    assert (told.calls, told.programs, told.length_s) == ([], [], 0.0)


def test_times_count_from_a_given_origin() -> None:
    book = Book()
    book.at(3, asked("s1"), dispatch("s1"))

    (call,) = tell(book.entries, origin=Instant(seconds(100))).calls

    assert call.sent_s == pytest.approx(3)


def test_times_in_texts_are_the_engines_too(tmp_path: Path) -> None:
    """Of an engine three times as fast as real, in whose time everything of a run is told."""
    book = Book()
    book.at(0, asked("s1"))
    book.at(2, TimerFired(), dispatch("s1"))
    book.at(2.5, asked("s2"))
    book.at(3, TimerFired(), dispatch("s2"), pin("a"))
    book.at(4, TimerFired(), unpin("a", reason=UnpinReason.EXPIRED))
    path = tmp_path / "j.gz"
    with JournalWriter(path, journal_header(SchedulerConfig(profile="fcfs"))) as writer:
        for entry in book.entries:
            writer.write(entry)
    call = Call(program="p", conversation="p", step=0, sent_s=1.0, latency_s=2.0, held_s=2.0)
    run = Run(arm="ours", repeat=0, seed=0, calls=[call])

    read_journal(run, Endpoint(url="", journal=path), speed=3.0)
    rescale(run, speed=3.0)

    assert call.held_s == 6.0
    held = [(d.at_s, d.text.partition(",")[0]) for d in run.decisions if d.kind == "dispatch"]
    # The second one was held for less than a second of the clock, and for more of the engine's.
    assert held == [(3.0 + 6.0, "held 6.0 s"), (3.0 + 9.0, "held 1.5 s")]
    assert [(p.from_s, p.to_s) for p in run.pins] == [(3.0 + 9.0, 3.0 + 12.0)]
