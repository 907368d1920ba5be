"""What of the scheduler's turns is a tenant's own business; the rest does not exist for it.

One turn may be about several tenants: a step of one ends, and with that a step of another begins.
Whose a program is stands in its id, so this holds for programs that are long forgotten, too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final
from urllib.parse import unquote

from agentsched.kernel import JournalEntry, Scheduler
from agentsched.model import StepArrived, TimerFired
from agentsched.proxy.access.principal import Principal
from agentsched.proxy.gateway import ANONYMOUS

#: Steps and pins that are remembered as one's own; the oldest is forgotten, and then not shown.
_OWN_MAX: Final = 20_000


def tenant_of(program: str) -> str:
    """Whose a program is, by its id: all tenants but the default one are part of it."""
    owner, separator, _ = program.partition("/")
    return unquote(owner) if separator else ANONYMOUS


class OwnPart:
    """Cuts turns down to what one principal may see. Turns come in their order."""

    def __init__(self, principal: Principal, scheduler: Scheduler) -> None:
        self._principal = principal
        self._steps: OrderedDict[str, None] = OrderedDict()
        self._pins: OrderedDict[str, None] = OrderedDict()
        if not principal.is_admin:
            for step in scheduler.steps.values():
                if self._is_own_program(step.program):
                    self._steps[step.step] = None

    def of(self, entry: JournalEntry) -> JournalEntry | None:
        """The turn as its viewer may see it; None: it is none of its business.

        Where only commands are the viewer's own, the event reads as a timer's: what led to them is
        somebody else's.
        """
        if self._principal.is_admin:
            return entry
        for part in (entry.event, *entry.commands):
            self._learn(part)
        commands = tuple(c for c in entry.commands if self._is_own(c))
        if self._is_own(entry.event):
            return replace(entry, commands=commands)
        return replace(entry, event=TimerFired(), commands=commands) if commands else None

    def _learn(self, part: Any) -> None:
        """Whose the steps and pins are, which elsewhere stand without their program."""
        if isinstance(part, StepArrived) and self._is_own_program(part.program):
            _remember(self._steps, part.step)
        pin, program = getattr(part, "pin", None), getattr(part, "program", None)
        if pin and program is not None and self._is_own_program(program):
            _remember(self._pins, pin)

    def _is_own(self, part: Any) -> bool:
        program = getattr(part, "program", None)
        if program is not None:
            return self._is_own_program(program)
        step = getattr(part, "step", None)
        if step is not None:
            return step in self._steps
        pin = getattr(part, "pin", None)
        if pin is not None:
            return pin in self._pins
        tenant = getattr(part, "tenant", None)
        return tenant is not None and self._principal.sees(tenant)

    def _is_own_program(self, program: str) -> bool:
        return self._principal.sees(tenant_of(program))


def _remember(known: OrderedDict[str, None], key: str) -> None:
    known[key] = None
    if len(known) > _OWN_MAX:
        known.popitem(last=False)


def own_parts(
    entries: Iterable[JournalEntry], principal: Principal, scheduler: Scheduler
) -> list[JournalEntry]:
    """Several turns, oldest first, as one may see them."""
    own = OwnPart(principal, scheduler)
    shown = (own.of(entry) for entry in entries)
    return [entry for entry in shown if entry is not None]
