"""Which process groups a process and all that it started are in, as Linux tells it.

A server that starts its workers in groups of their own (vLLM under `agentsched engine vllm` is one)
is neither stopped nor killed by a signal to its own group.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


def groups_of(pid: int, *, proc: Path = _PROC) -> list[int]:
    """The groups, that of the process itself first. Only that one where nobody tells."""
    children: dict[int, list[int]] = {}
    group: dict[int, int] = {}
    for stat in proc.glob("[0-9]*/stat"):
        try:
            text = stat.read_text(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        # Its name stands in brackets and may hold anything; state, parent and group follow.
        _, parent, own = text.rpartition(")")[2].split()[:3]
        number = int(stat.parent.name)
        children.setdefault(int(parent), []).append(number)
        group[number] = int(own)
    found = {group.get(pid, pid): None}
    left = [pid]
    while left:
        for child in children.get(left.pop(), ()):
            found[group[child]] = None
            left.append(child)
    return list(found)
