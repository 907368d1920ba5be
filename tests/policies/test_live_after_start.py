"""The memory that programs want which were begun before a start that forgot them."""

from __future__ import annotations

from typing import Any

from shorthand import answered, arrived, at, prefix

from agentsched.model import ProgramId, StepCancelled, StepClass, StepId
from agentsched_policies.live_programs import LivePrograms


def see(live: LivePrograms, event: Any, time_s: float) -> None:
    live.observe(event, now=at(time_s))
    live.check(now=at(time_s))


def test_who_goes_on_is_counted_from_its_first_word() -> None:
    live = LivePrograms()
    prompt = (prefix("head", 30), prefix("whole", 99))
    see(live, arrived("new", "new", tokens=99, prefixes=prompt), 0)
    see(live, arrived("a", "old", tokens=99, prefixes=prompt, goes_on=True), 0)
    assert live.peak_tokens(now=at(0)) == 99 - 30
    assert ProgramId("old") in live
    assert ProgramId("new") not in live
    aside = arrived("title", "other", goes_on=True, step_class=StepClass.AUXILIARY)
    see(live, aside, 0)
    assert ProgramId("other") not in live, "nobody comes back for a title"
    see(live, answered("a", is_last=False, prompt=990, output=10), 1)
    assert live.peak_tokens(now=at(1)) == 1_000 - 30


def test_one_that_ends_with_its_first_answer_here_is_no_single_question() -> None:
    live = LivePrograms()
    for number in range(9):
        see(live, arrived(f"s{number}", f"p{number}", goes_on=True), number)
        see(live, answered(f"s{number}", is_last=True, prompt=90, output=10), number)
    kind = next(iter(live._over.values())).kind
    assert not live.ends.is_question(kind)


def test_one_that_goes_away_again_is_counted_for_a_minute() -> None:
    live = LivePrograms()
    see(live, arrived("a", "old", tokens=99, goes_on=True), 0)
    see(live, StepCancelled(step=StepId("a"), reason="gone"), 1)
    assert live.peak_tokens(now=at(60)) == 99
    assert not live.peak_tokens(now=at(62))
