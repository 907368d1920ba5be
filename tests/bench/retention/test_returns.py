from __future__ import annotations

from agentsched.kernel import JournalEntry
from agentsched.model import (
    SECOND,
    Command,
    ConversationId,
    Dispatch,
    EngineId,
    Event,
    Instant,
    ProgramId,
    StepArrived,
    StepFinished,
    StepId,
    TenantId,
    Usage,
)
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
        arrived = StepArrived(
            step=step,
            program=ProgramId("p"),
            conversation=ConversationId(talk),
            tenant=TenantId("t"),
            prompt_tokens=prompt,
            prefixes=(),
        )
        sent = Dispatch(step=step, engine=EngineId("e"))
        if held_s:
            self.tell(arrived)
            self.now = Instant(self.now + round(held_s * SECOND))
            usage = Usage(prompt_tokens=1, cached_tokens=None, output_tokens=1)
            self.tell(StepFinished(step=StepId("another's"), usage=usage), sent)
        else:
            self.tell(arrived, sent)
        usage = Usage(prompt_tokens=prompt, cached_tokens=cached, output_tokens=100)
        self.tell(StepFinished(step=step, usage=usage))


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
