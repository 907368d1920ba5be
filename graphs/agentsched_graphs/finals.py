"""How likely a pause is a conversation's last: by the tool it paused for and by its steps so far.

Few agents say goodbye. SWE-agent's last answer calls `submit` and no request ever brings its
result; others stop at a limit of steps. To whoever keeps their memory both look like a tool that
takes its time.

Theory. Of the pauses of one key (agent type, tool, tool with its first command word; agent type and
step count) a share was never seen to end: a Beta estimate, drawn towards the more general key's as
if that had been seen a few times. Of tool and step count the one that makes an end likelier counts:
whoever submits is done however early, and at the limit of steps every tool is the last.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from agentsched.model import ToolName

#: The share of last pauses that is assumed before anything is known, and how often seen.
_PRIOR: Final = 0.05
_PRIOR_WEIGHT: Final = 8.0
#: How often a more general key's share is taken to have been seen in a special one.
_TOOL_WEIGHT: Final = 2.0
_STEPS_WEIGHT: Final = 4.0
#: When a key has been seen so often, its counts are halved: agents change.
_FULL: Final = 512.0
_Key = tuple[str, ...]


class _Counts:
    """Pauses of one key, and those of them that were the last."""

    __slots__ = ("lasts", "total")

    def __init__(self) -> None:
        self.total = 0.0
        self.lasts = 0.0

    def add(self, *, is_last: bool, times: float) -> None:
        self.total = max(0.0, self.total + times)
        if is_last:
            self.lasts = max(0.0, self.lasts + times)
        self.lasts = min(self.lasts, self.total)
        if self.total > _FULL:
            self.total *= 0.5
            self.lasts *= 0.5


class FinalPauses:
    """Learns which pauses are the last. Bounded by `keys_max`; the one unused longest goes."""

    def __init__(self, *, keys_max: int = 4_096) -> None:
        self._keys_max = keys_max
        self._keys: OrderedDict[_Key, _Counts] = OrderedDict()

    def ended(self, *, agent: str, tool: ToolName, steps: int, is_last: bool) -> None:
        """A pause is over: the conversation came back, or is not expected to any more."""
        self._add(agent, tool, steps, is_last=is_last, times=1.0)

    def took_back(self, *, agent: str, tool: ToolName, steps: int) -> None:
        """A conversation came back from a pause that had been counted as its last."""
        self._add(agent, tool, steps, is_last=True, times=-1.0)

    def chance(self, *, agent: str, tool: ToolName, steps: int) -> float:
        """The probability that it never comes back from a pause that begins. Changes nothing.

        `steps`: steps that its program has done.
        """
        own, *tools = _keys(agent, tool)
        base = self._share(own, _PRIOR, _PRIOR_WEIGHT)
        by_tool = base
        for key in tools:
            by_tool = self._share(key, by_tool, _TOOL_WEIGHT)
        return max(by_tool, self._share(_steps_key(agent, steps), base, _STEPS_WEIGHT))

    def _share(self, key: _Key, prior: float, weight: float) -> float:
        counts = self._keys.get(key)
        if counts is None:
            return prior
        return (counts.lasts + weight * prior) / (counts.total + weight)

    def _add(self, agent: str, tool: ToolName, steps: int, *, is_last: bool, times: float) -> None:
        for key in (*_keys(agent, tool), _steps_key(agent, steps)):
            counts = self._keys.get(key)
            if counts is None:
                counts = self._keys[key] = _Counts()
                if len(self._keys) > self._keys_max:
                    self._keys.popitem(last=False)
            else:
                self._keys.move_to_end(key)
            counts.add(is_last=is_last, times=times)


def _keys(agent: str, tool: ToolName) -> tuple[_Key, ...]:
    """An agent type's own key, its tool's, and that of the tool with its first command word."""
    name = tool.partition(" ")[0]
    if tool == name:
        return (agent,), (agent, "tool", name)
    return (agent,), (agent, "tool", name), (agent, "word", tool)


def _steps_key(agent: str, steps: int) -> _Key:
    return (agent, "steps", str(steps))
