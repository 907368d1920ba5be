"""The steps from an empty database to today's tables, oldest first; Alembic runs them."""

from __future__ import annotations

from typing import Final

#: One file each, beside this one. What was released is never changed: a new step is added.
STEPS: Final = ("step_0001_journal.py", "step_0002_projections.py", "step_0003_api_keys.py")
REVISIONS: Final = tuple(name.split("_")[1] for name in STEPS)
