from __future__ import annotations

from shorthand import arrived, finished

from agentsched.kernel import JournalEntry
from agentsched.model import SECOND, Command, Dispatch, EngineId, Event, Instant, StepId
from agentsched_bench.retention.returns import Sum, count_returns


class Story:
    """Entries of a journal, one step after the other."""

    def __init__(self) -> None:
        self.entries: list[JournalEntry] = []
        self.now = Instant(0)

    def tell(self, event: Event, *commands: Command) -> None:
        seq = len(self.entries)
        self.entries.append(JournalEntry(seq=seq, now=self.now, event=event, commands=commands))

    def step(self, talk: str, *, prompt: int, cached: int | None, held_s: float = 0.0) -> None:
        step = StepId(f"s{len(self.entries)}")
        asked = arrived(step, conversation=talk, tokens=prompt)
        sent = Dispatch(step=step, engine=EngineId("e"))
        if held_s:
            self.tell(asked)
            self.now = Instant(self.now + round(held_s * SECOND))
            self.tell(finished("another's", prompt=1, output=1), sent)
        else:
            self.tell(asked, sent)
        self.tell(finished(step, prompt=prompt, cached=cached, output=100))


def test_losses_are_told_by_whose_they_were() -> None:
    story = Story()
    story.step("a", prompt=5_000, cached=0)  # its first: no return
    story.step("a", prompt=5_200, cached=5_088)  # found: 5,100 less a block's end
    story.step("a", prompt=5_400, cached=2_000)  # sent at once, and evicted
    story.step("a", prompt=5_600, cached=2_000, held_s=3.0)  # given up
    story.step("a", prompt=5_800, cached=5_600, held_s=0.2)  # held, and there all the same
    story.step("a", prompt=6_000, cached=None)  # not told
    story.step("a", prompt=900, cached=900)  # compacted
    found = count_returns(story.entries)
    assert found.kept == Sum(returns=3, cold=1, again_tokens=3_300)
    assert found.held == Sum(returns=2, cold=1, again_tokens=3_500)
