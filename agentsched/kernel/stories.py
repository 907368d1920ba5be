"""Programs' stories: each turn is told to those that it is about, and outlives them for a while.

A live program's story is in its record. When it is over people ask for it first of all, so the
stories of those that closed last are kept, as their graphs are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agentsched.kernel.books import Books
from agentsched.kernel.journal import JournalEntry
from agentsched.kernel.records import ProgramRecord
from agentsched.kernel.story import pack, unpack
from agentsched.model import Event, Instant, ProgramId, StepId, TenantId

#: As many as graphs of closed programs; the one closed first is forgotten.
CLOSED_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedProgram:
    """What is kept of a program that is over: whose it was, and its story, packed."""

    tenant: TenantId
    closed_at: Instant
    story: list[bytes]


class Stories:
    """Those of live programs, told on with each turn, and of some that closed lately."""

    def __init__(self, books: Books) -> None:
        self._books = books
        #: The one closed first first.
        self._closed: OrderedDict[ProgramId, ClosedProgram] = OrderedDict()
        #: Those that were closed in this turn, which ends their stories.
        self._closing: dict[ProgramId, ProgramRecord] = {}

    @property
    def closed(self) -> Mapping[ProgramId, ClosedProgram]:
        """Programs that closed lately. Read only."""
        return self._closed

    def close(self, program: ProgramRecord) -> None:
        """A program was forgotten in this turn."""
        self._closing[program.program] = program

    def of(self, key: ProgramId | StepId) -> tuple[JournalEntry, ...]:
        """A program's story, or that of a live step's program; oldest first."""
        step = self._books.steps.get(StepId(key))
        name = step.program if step is not None else ProgramId(key)
        program = self._books.programs.get(name) or self._closed.get(name)
        return tuple(unpack(packed) for packed in program.story) if program is not None else ()

    def subject(self, event: Event) -> ProgramId | None:
        """The program that an event is about: to be asked before it is applied."""
        program: ProgramId | None = getattr(event, "program", None)
        if program is not None:
            return program
        return self._books.program_of(getattr(event, "step", StepId("")))

    def tell(self, entry: JournalEntry, subject: ProgramId | None) -> None:
        """Add the entry to the story of each program that it is about, and end a few."""
        packed = b""
        for key in self._about(entry, subject):
            record = self._books.programs.get(key) or self._closing.get(key)
            if record is not None:
                packed = packed or pack(entry)
                record.tell(packed, entries_max=self._books.limits.story_entries_max)
        for key, record in self._closing.items():
            self._closed.pop(key, None)
            self._closed[key] = ClosedProgram(
                tenant=record.tenant, closed_at=entry.now, story=record.story
            )
            if len(self._closed) > CLOSED_MAX:
                self._closed.popitem(last=False)
        self._closing.clear()

    def check(self) -> None:
        """Assert what must hold between two turns."""
        assert len(self._closed) <= CLOSED_MAX
        assert not self._closing

    def _about(self, entry: JournalEntry, subject: ProgramId | None) -> list[ProgramId]:
        about = [subject] if subject is not None else []
        for command in entry.commands:
            step = getattr(command, "step", None)
            if step is not None:
                program = self._books.program_of(step)
            else:
                program = getattr(command, "program", None)
            if program is not None and program not in about:
                about.append(program)
        return about
