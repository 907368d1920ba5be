"""Shares in a simulated run: its journal gives the scheduler again, and at every turn the gap of
two tenants who both wait is held against the bound of docs/fairness.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentsched.compose import journal_header
from agentsched.config import Config
from agentsched.kernel import JournalEntry
from agentsched.model import TenantId
from agentsched.store.fold import fresh
from agentsched_bench.cluster.share_gap import SHARE, Journal, ShareGap

__all__ = ["SHARE", "shares_told"]


def shares_told(
    entries: Sequence[JournalEntry], config: Config, tenants: Sequence[str]
) -> dict[str, Any]:
    """What `ShareGap` tells of a run whose share policy was `SHARE` from its first turn on."""
    header = journal_header(config.scheduler())
    journal = Journal(
        replica="simulated",
        scheduler=fresh(header),
        choice=header.choices["share"],
        entries=[(entry.now, entry) for entry in entries],
        lives=[(0, entries[-1].now + 1)],
    )
    told = ShareGap(journals=[journal], tenants=[TenantId(t) for t in tenants]).run()
    return told.told(since=0)
