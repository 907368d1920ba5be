"""Journals replayed: the same events through a fresh scheduler, compared command for command."""

from __future__ import annotations

from agentsched_bench.replay.host import Divergence, ReplayHost, replay, replay_file
from agentsched_bench.replay.journal_file import JournalReader, JournalWriter, open_journal

__all__ = [
    "Divergence",
    "JournalReader",
    "JournalWriter",
    "ReplayHost",
    "open_journal",
    "replay",
    "replay_file",
]
