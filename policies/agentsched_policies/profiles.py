"""The built-in profiles."""

from __future__ import annotations

from typing import Final

from agentsched.policy import Choice, Profile

PASSTHROUGH: Final = Profile(
    name="passthrough",
    summary="Everything goes to the engines at once, in turn; nothing is decided.",
)

FCFS: Final = Profile(
    name="fcfs",
    summary="The oldest program first, each conversation on the engine that has its KV.",
    source="program FCFS with session affinity",
    order=Choice(name="program-fcfs"),
    admit=Choice(name="depth"),
    place=Choice(name="session-affinity"),
)
