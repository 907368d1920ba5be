"""Our plugin as a simulated engine answers for it: it keeps pins, refuses some, forgets in a crash.

Written by docs/plugin.md and shares no code with the real one: what the proxy makes of it is judged
by what is left here at the end.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any, Final

from agentsched_bench.chaos.faults import Faults

PATH: Final = "/v1/agentsched"
#: The longest that it grants; what asks for more is clipped.
_TTL_S_MAX: Final = 30.0


class SimulatedPlugin:
    """Pins of one engine, by id and conversation."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        #: When each ends, on the loop's clock.
        self._ends: dict[tuple[str, str], float] = {}
        #: What was asked, and what came of it.
        self.counts: Counter[str] = Counter()

    def forget(self) -> None:
        """The engine crashed."""
        self._ends.clear()

    @property
    def pins(self) -> list[tuple[str, str]]:
        """Id and conversation of each that is kept now."""
        now = asyncio.get_running_loop().time()
        return [pin for pin, until in self._ends.items() if until > now]

    def state(self) -> bytes:
        """What it says of itself."""
        idle = {"blocks": 4096, "free_blocks": 4096, "pinned_blocks": 0, "reclaimable_blocks": 0}
        engine = {
            "engine": "0",
            "plugin": "1",
            "vllm": "0.32.0",
            "is_active": True,
            "failures": {},
            "block_size": 16,
            "pinned_blocks_max": 2048,
            "running": 0,
            "waiting": 0,
            **idle,
        }
        return json.dumps({"engines": [engine]}).encode()

    def asked(self, operation: str, fields: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body of the answer to a `POST`."""
        self.counts[operation] += 1
        if self._faults.strikes("plugin_error"):
            return 500, b'{"error": {"message": "as asked"}}'
        if operation == "pin":
            return self._pin(fields)
        if operation == "release":
            return self._release(fields)
        return 404, b'{"error": {"message": "nothing here"}}'

    def _pin(self, fields: dict[str, Any]) -> tuple[int, bytes]:
        if self._faults.strikes("pin_refused"):
            self.counts["refused"] += 1
            return 200, b'{"outcome": "refused"}'
        ttl_s = min(float(fields["ttl_s"]), _TTL_S_MAX)
        outcome = "accepted" if ttl_s == fields["ttl_s"] else "clipped"
        now = asyncio.get_running_loop().time()
        self._ends[fields["pin"], fields["conversation"]] = now + ttl_s
        self.counts[outcome] += 1
        granted = {"outcome": outcome, "ttl_s": ttl_s, "tokens": fields.get("tokens") or 0}
        return 200, json.dumps(granted).encode()

    def _release(self, fields: dict[str, Any]) -> tuple[int, bytes]:
        pin = fields["pin"], fields["conversation"]
        released = self._ends.pop(pin, None) is not None
        self.counts["released"] += released
        return 200, json.dumps({"released": int(released)}).encode()
