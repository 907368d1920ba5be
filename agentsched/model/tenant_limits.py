"""What one tenant may have at once, and what it may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from agentsched.model.errors import ConfigError
from agentsched.model.time import Nanos


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """Ceilings of one tenant; None leaves it to those that hold for all.

    `priority_min` and `priority_max` are the soonest and the latest that it may set for its steps
    (smaller is sooner); what is beyond is taken as the nearer one. A tenant may put its steps back
    as far as it likes and forward not at all, unless these say otherwise. `deadline_ns` is given to
    programs that name no deadline.
    """

    held_steps_max: int | None = None  # Reject(TENANT_QUEUE)
    programs_max: int | None = None  # a further one that no other began: Reject(TENANT_PROGRAMS)
    pins_max: int | None = None  # no further pin
    pinned_tokens_max: int | None = None  # likewise
    warm_max: int | None = None  # conversations kept warm by requests: no further one
    priority_min: int = 0
    priority_max: int = 2**31 - 1
    deadline_ns: Nanos | None = None

    def check(self) -> None:
        """Raise `ConfigError` where a value makes no sense."""
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and value < 0 and not name.startswith("priority"):
                raise ConfigError(f"{name} is at least 0, not {value}")
        if self.priority_min > self.priority_max:
            raise ConfigError("priority_min is at most priority_max")

    def priority(self, asked: int) -> int:
        """The priority that a step gets."""
        return max(self.priority_min, min(asked, self.priority_max))
