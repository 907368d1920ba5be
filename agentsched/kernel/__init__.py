"""The scheduler: one state machine over four ledgers, and its journal. Pure."""

from __future__ import annotations

from agentsched.kernel.books import GraphBuilder
from agentsched.kernel.journal import (
    JournalEntry,
    JournalError,
    JournalHeader,
    decode,
    decode_header,
    encode,
    encode_header,
)
from agentsched.kernel.scheduler import Scheduler, SchedulerStatistics

__all__ = [
    "GraphBuilder",
    "JournalEntry",
    "JournalError",
    "JournalHeader",
    "Scheduler",
    "SchedulerStatistics",
    "decode",
    "decode_header",
    "encode",
    "encode_header",
]
