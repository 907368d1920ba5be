"""The scheduler: one state machine over four ledgers, and its journal. Pure."""

from __future__ import annotations

from agentsched.kernel.books import GraphBuilder
from agentsched.kernel.journal import JournalEntry, JournalError, decode, encode
from agentsched.kernel.scheduler import Scheduler, SchedulerStatistics

__all__ = [
    "GraphBuilder",
    "JournalEntry",
    "JournalError",
    "Scheduler",
    "SchedulerStatistics",
    "decode",
    "encode",
]
