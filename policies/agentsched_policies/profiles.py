"""The built-in profiles."""

from __future__ import annotations

from typing import Final

from agentsched.policy import Choice, Profile

PASSTHROUGH: Final = Profile(
    name="passthrough",
    summary="Everything goes to the engines at once, in turn; nothing is decided.",
)

AGENTSCHED: Final = Profile(
    name="agentsched",
    summary="Programs are let in while their working set fits; least remaining work goes first.",
    source="docs/policies.md",
    order=Choice(name="remaining-work"),
    admit=Choice(name="working-set"),
    place=Choice(name="session-affinity"),
)

FCFS: Final = Profile(
    name="fcfs",
    summary="The oldest program first, each conversation on the engine that has its KV.",
    source="program FCFS with session affinity",
    order=Choice(name="program-fcfs"),
    admit=Choice(name="depth"),
    place=Choice(name="session-affinity"),
)
