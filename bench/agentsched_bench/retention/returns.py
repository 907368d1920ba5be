"""What conversations that came back found in the cache, from proxies' journals: prints JSON.

    python -m agentsched_bench.retention.returns JOURNAL [JOURNAL ...]

It says whose loss it was. `kept` are returns that the proxy sent on at once: it took their KV to be
there. Those of them that are cold lost it to the engine's eviction, which is what pins could have
prevented. `held` are returns that had to wait for room: their KV was given up on purpose.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from agentsched.kernel import JournalEntry
from agentsched.model import (
    ConversationId,
    Dispatch,
    Instant,
    Nanos,
    StepArrived,
    StepFinished,
    StepId,
    between,
)
from agentsched_bench.replay.journal_file import open_journal

#: Who waits for longer was held; the rest is the proxy's own time.
_HELD: Final = Nanos(50_000_000)
#: Fewer tokens computed again are a block's end, or an answer that was tokenised otherwise.
_COLD_TOKENS: Final = 132


@dataclass(slots=True, kw_only=True)
class Sum:
    """Returns of one kind; `again_tokens` are those computed again by the cold ones."""

    returns: int = 0
    cold: int = 0
    again_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class Returns:
    """What a journal tells. First requests of a conversation are no returns."""

    kept: Sum = field(default_factory=Sum)
    held: Sum = field(default_factory=Sum)


def count_returns(entries: Iterable[JournalEntry]) -> Returns:
    """Go through a journal. Steps without a count of cached tokens are left out."""
    found = Returns()
    arrived: dict[StepId, tuple[ConversationId, Instant]] = {}
    waited: dict[StepId, Nanos] = {}
    known: dict[ConversationId, int] = {}
    for entry in entries:
        event = entry.event
        if isinstance(event, StepArrived) and event.step_class.is_work:
            arrived[event.step] = (event.conversation, entry.now)
        for command in entry.commands:
            if isinstance(command, Dispatch) and command.step in arrived:
                waited[command.step] = between(arrived[command.step][1], entry.now)
        if not isinstance(event, StepFinished) or event.step not in arrived:
            continue
        conversation, _ = arrived.pop(event.step)
        usage, wait = event.usage, waited.pop(event.step, Nanos(0))
        before = known.get(conversation)
        known[conversation] = usage.prompt_tokens + usage.output_tokens
        if before is None or usage.cached_tokens is None:
            continue
        again = min(before, usage.prompt_tokens) - usage.cached_tokens
        kind = found.held if wait > _HELD else found.kept
        kind.returns += 1
        if again > _COLD_TOKENS:
            kind.cold += 1
            kind.again_tokens += again
    return found


def main() -> None:
    told = {}
    for name in sys.argv[1:]:
        with open_journal(Path(name)) as entries:
            told[Path(name).name] = count_returns(entries)
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(told), indent=2).decode() + "\n")


if __name__ == "__main__":
    main()
