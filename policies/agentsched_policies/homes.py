"""Which conversations live where, and how large they are: what each engine has promised to hold."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentsched.model import (
    Command,
    ContinuedElsewhere,
    ConversationId,
    Dispatch,
    EngineId,
    EngineLost,
    Event,
    Instant,
    ProgramClosed,
    ProgramId,
    StepArrived,
    StepFinished,
    StepId,
    after,
    seconds,
)
from agentsched_policies.bounded import Bounded

_SILENT: Final = seconds(60)


@dataclass(slots=True)
class _Home:
    engine: EngineId
    program: ProgramId
    tokens: int
    last_at: Instant


@dataclass(slots=True)
class _Asked:
    """A step: tokens of its prompt without and of its head, and the engine that computes it."""

    program: ProgramId
    conversation: ConversationId
    own: int
    head: int
    engine: EngineId | None = None


class Homes:
    """Tokens of live conversations by engine; each update costs the same however many there are.

    Sizes leave out the head of the prompt, which others share. A conversation leaves with its last
    word, with its program, for another replica, when its engine is lost, or after a minute of
    silence: it is then most probably over without having said so, and counts again when it speaks
    or is answered.
    """

    def __init__(self, *, conversations_max: int = 65_536) -> None:
        self._conversations_max = conversations_max
        #: The one silent for longest first.
        self._homes: OrderedDict[ConversationId, _Home] = OrderedDict()
        self._tokens: dict[EngineId, int] = {}
        self._by_program: dict[ProgramId, dict[ConversationId, None]] = {}
        self._steps: Bounded[StepId, _Asked] = Bounded(size_max=65_536)
        #: Mean tokens of an answer.
        self.output_tokens = 200.0

    def tokens(self, engine: EngineId) -> int:
        """Tokens of the live conversations there, shared heads left out."""
        return self._tokens.get(engine, 0)

    def observe(self, event: Event, *, now: Instant) -> None:
        """Take in an event."""
        match event:
            case StepArrived() if event.step_class.is_work:
                head = event.prefixes[0].tokens if len(event.prefixes) > 1 else 0
                own = max(0, event.prompt_tokens - head)
                asked = _Asked(event.program, event.conversation, own, head)
                self._steps.set(event.step, asked)
            case StepFinished():
                self._finish(event, now=now)
            case ProgramClosed():
                for key in list(self._by_program.get(event.program, ())):
                    self._leave(key)
            case ContinuedElsewhere():
                self._leave(event.conversation)
            case EngineLost():
                for key in [k for k, h in self._homes.items() if h.engine == event.engine]:
                    self._leave(key)
                for _, asked in self._steps.items():
                    if asked.engine == event.engine:
                        asked.engine = None
            case _:
                pass
        while self._homes:
            key, home = next(iter(self._homes.items()))
            if after(home.last_at, _SILENT) > now and len(self._homes) <= self._conversations_max:
                break
            self._leave(key)

    def decided(self, commands: Sequence[Command], *, now: Instant) -> None:
        """Take in what a turn decided."""
        for command in commands:
            step = self._steps.get(command.step) if isinstance(command, Dispatch) else None
            if step is not None and isinstance(command, Dispatch):
                step.engine = command.engine
                self._set(step.conversation, _Home(command.engine, step.program, step.own, now))

    def _finish(self, event: StepFinished, *, now: Instant) -> None:
        self.output_tokens += 0.02 * (event.usage.output_tokens - self.output_tokens)
        step = self._steps.pop(event.step)
        if step is None:
            return
        home = self._homes.get(step.conversation)
        # Where the answer took so long that it left meanwhile, the step knows where it was.
        engine = home.engine if home is not None else step.engine
        if engine is None:
            return
        if event.is_last_word:
            self._leave(step.conversation)
            return
        tokens = max(0, event.usage.prompt_tokens + event.usage.output_tokens - step.head)
        self._set(step.conversation, _Home(engine, step.program, tokens, now))

    def _set(self, key: ConversationId, home: _Home) -> None:
        self._leave(key)
        self._homes[key] = home
        self._by_program.setdefault(home.program, {})[key] = None
        self._tokens[home.engine] = self._tokens.get(home.engine, 0) + home.tokens

    def _leave(self, key: ConversationId) -> None:
        home = self._homes.pop(key, None)
        if home is None:
            return
        left = self.tokens(home.engine) - home.tokens
        if left:
            self._tokens[home.engine] = left
        else:
            self._tokens.pop(home.engine, None)
        siblings = self._by_program[home.program]
        del siblings[key]
        if not siblings:
            del self._by_program[home.program]
