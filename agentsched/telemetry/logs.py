"""The log: lines for people or JSON objects, with the ids of the request that they are about.

What is logged of a step is projected from the journal, which has no texts of prompts or answers and
no keys. What an engine says in an error is left out, for it may repeat what it was asked.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from agentsched.kernel import JournalEntry
from agentsched.model import (
    Dispatch,
    EngineDrained,
    EngineId,
    EngineLost,
    EngineReported,
    Instant,
    ProgramId,
    Reject,
    StepArrived,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    between,
    in_seconds,
)
from agentsched.telemetry.beside import BesideHandler, to_stderr
from agentsched.telemetry.notes import CURRENT, Notes
from agentsched.telemetry.spans import error_type

log = logging.getLogger("agentsched.steps")

#: The attribute of a record that has its fields.
FIELDS: Final = "agentsched_fields"
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class TextFormatter(logging.Formatter):
    """A line for people; ids and fields come last, as `name=value`."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        line = super().format(record)
        if not fields:
            return line
        head, separator, rest = line.partition("\n")  # a traceback stays below
        more = " ".join(f"{name}={value}" for name, value in fields.items())
        return f"{head} [{more}]{separator}{rest}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        shown: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        shown |= _fields(record)
        if record.exc_info:
            shown["exception"] = self.formatException(record.exc_info)
        return json.dumps(shown, default=str)  # takes any text, half a surrogate too


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    own = getattr(record, FIELDS, None)
    if own is not None:
        fields: Mapping[str, Any] = own
        return fields
    note = CURRENT.get()
    if note is None:
        return {}
    return {"request_id": note.request_id, "program": note.program, "step": note.step}


def set_up_logging(*, level: str, style: str) -> None:
    """Log to standard error as `style` (`text` or `json`) says, from this level on.

    Nobody waits for whoever reads there: see `BesideHandler`.
    """
    handler = BesideHandler(to_stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class LogSink:
    """An `EventSink` that logs engines that come and go, and steps that go wrong.

    With `all_steps` also those that go well, one line for each.
    """

    def __init__(self, notes: Notes, *, all_steps: bool) -> None:
        self._notes = notes
        self._all_steps = all_steps
        self._up: dict[EngineId, bool] = {}
        #: Live steps: program, arrival, dispatch, engine.
        self._steps: dict[StepId, tuple[ProgramId, Instant, Instant | None, str]] = {}

    def write(self, entry: JournalEntry) -> None:
        """Take in one turn of the scheduler."""
        event, now = entry.event, entry.now
        match event:
            case StepArrived():
                self._steps.setdefault(event.step, (event.program, now, None, ""))
            case StepFinished():
                usage = event.usage
                self._end(
                    event.step,
                    now,
                    "finished",
                    logging.INFO,
                    prompt_tokens=usage.prompt_tokens,
                    cached_tokens=usage.cached_tokens,
                    output_tokens=usage.output_tokens,
                )
            case StepFailed() if not event.is_retryable:
                self._end(event.step, now, "failed", logging.WARNING, error=error_type(event))
            case StepCancelled():
                self._end(event.step, now, "cancelled", logging.INFO)
            case EngineReported() | EngineLost() | EngineDrained():
                self._engine(event)
            case _:
                pass
        for command in entry.commands:
            match command:
                case Dispatch():
                    self._dispatch(command, now)
                case Reject():
                    reason = command.reason.value
                    self._end(command.step, now, "rejected", logging.WARNING, reason=reason)
                case _:
                    pass

    def _dispatch(self, command: Dispatch, now: Instant) -> None:
        step = self._steps.get(command.step)
        if step is not None:
            self._steps[command.step] = (step[0], step[1], now, str(command.engine))

    def _end(
        self, key: StepId, now: Instant, outcome: str, level: int, **more: int | str | None
    ) -> None:
        step = self._steps.pop(key, None)
        if step is None or (level == logging.INFO and not self._all_steps):
            return
        program, arrived, dispatched, engine = step
        note = self._notes.of(key)
        fields: dict[str, Any] = {
            "request_id": note.request_id if note is not None else "",
            "program": program,
            "step": key,
            "outcome": outcome,
            "engine": engine,
            "took_s": round(in_seconds(between(arrived, now)), 4),
        }
        if dispatched is not None:
            fields["wait_s"] = round(in_seconds(between(arrived, dispatched)), 4)
        fields |= {name: value for name, value in more.items() if value is not None}
        log.log(level, "a step %s", outcome, extra={FIELDS: fields})

    def _engine(self, event: EngineReported | EngineLost | EngineDrained) -> None:
        match event:
            case EngineReported():
                if self._up.get(event.engine) is not True:
                    self._up[event.engine] = True
                    self._say(logging.INFO, "engine %s is up", event.engine)
            case EngineLost():
                if self._up.get(event.engine) is not False:
                    self._up[event.engine] = False
                    self._say(logging.WARNING, "engine %s was lost", event.engine)
            case EngineDrained():
                text = "engine %s is drained" if event.is_draining else "engine %s takes work again"
                self._say(logging.INFO, text, event.engine)

    def _say(self, level: int, text: str, engine: EngineId) -> None:
        log.log(level, text, engine, extra={FIELDS: {"engine": engine}})
