"""A conversation stays on the engine that has its KV; a new one goes where least is running.

Fails when one engine gathers the long programs: nothing moves until that engine goes away.
"""

from __future__ import annotations

from agentsched_policies.affinity import Affinity


class SessionAffinity(Affinity):
    """Own engine first, then one where the program already is, then the least loaded.

    `speed`: whether what runs on an engine counts by how long its tokens take there, so that a new
    program goes where it will be done first and not where the fewest steps run. Prices are learnt;
    those within a half of the mean of all engines with its model count as alike, since they follow
    the load as well.
    """

    def __init__(self, *, speed: bool = False) -> None:
        if not isinstance(speed, bool):  # the environment's texts are all true
            raise TypeError(f"speed is true or false, not {speed!r}")
        super().__init__(speed=speed)
