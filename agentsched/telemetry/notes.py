"""What belongs to a request beside its step: its id, and the trace that it is part of.

The scheduler decides without either, so the journal does not have them. Handlers note them before
the step arrives and take them back when it has ended, so there are never more than live requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from agentsched.model import ProgramId, StepId
from agentsched.telemetry.context import TraceContext, read_traceparent

TRACEPARENT: Final = "traceparent"


@dataclass(slots=True, kw_only=True)
class Note:
    """One request. `ours` is the span that an engine's spans belong under, where we make one."""

    step: StepId
    program: ProgramId
    request_id: str
    theirs: TraceContext | None = None
    ours: TraceContext | None = None


#: The request that the running task serves, for the log.
CURRENT: Final[ContextVar[Note | None]] = ContextVar("agentsched_request", default=None)


class Notes:
    """The notes of all live requests, by step."""

    def __init__(self) -> None:
        self._notes: dict[StepId, Note] = {}

    def __len__(self) -> int:
        return len(self._notes)

    def add(
        self, step: StepId, program: ProgramId, *, request_id: str, headers: Mapping[str, str]
    ) -> None:
        """Note a request of this task; `headers` by lower-case name."""
        note = Note(
            step=step,
            program=program,
            request_id=request_id,
            theirs=read_traceparent(headers.get(TRACEPARENT)),
        )
        self._notes[step] = note
        CURRENT.set(note)

    def of(self, step: StepId) -> Note | None:
        """The note of a live step."""
        return self._notes.get(step)

    def drop(self, step: StepId) -> None:
        """The request has ended."""
        if self._notes.pop(step, None) is not None:
            CURRENT.set(None)

    def sign(self, step: StepId, headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Headers to an engine: with our span where we make one, else as the client sent them."""
        note = self._notes.get(step)
        if note is None or note.ours is None:
            return list(headers)
        kept = [pair for pair in headers if pair[0].lower() != TRACEPARENT]
        return [*kept, (TRACEPARENT, note.ours.header())]
