"""Fill the engines: of the steps that wait, which go where now."""

from __future__ import annotations

from functools import partial

from agentsched.kernel.books import Books
from agentsched.kernel.charging import charge_sent
from agentsched.kernel.guard import GuardedPolicies
from agentsched.kernel.records import EngineRecord, StepRecord
from agentsched.kernel.retention import Retention
from agentsched.kernel.silence import begins
from agentsched.kernel.slow_start import has_turn, is_easing
from agentsched.kernel.transitions import next_state
from agentsched.kernel.yielding import make_way
from agentsched.model import (
    Command,
    ConversationId,
    Dispatch,
    EngineId,
    Instant,
    Nanos,
    Reject,
    RejectReason,
    StepClass,
    StepId,
    StepState,
    UnpinReason,
    seconds,
)
from agentsched.policy import Admission, Admitted, Held, TurnedAway


class Filler:
    """Asks the order, place and admit policies, under the guard that bounds every wait."""

    def __init__(self, *, books: Books, policies: GuardedPolicies, retention: Retention) -> None:
        self._books = books
        self._policies = policies
        self._retention = retention
        #: When an admission policy wants to be asked again though nothing happens.
        self._ask_again: Instant | None = None
        #: Engines that work other than batch is held for, found once a turn.
        self._wanted: set[EngineId] = set()
        #: Engines that are up, and those of them that serve a model, found once a turn with steps.
        self._up: list[EngineRecord] = []
        self._fit: dict[str, list[EngineRecord]] = {}
        #: Whether an engine came back lately, found once a turn.
        self._is_easing = False

    def fill(self, *, now: Instant) -> list[Command]:
        """Dispatch or turn away whatever can be decided now; background work makes way."""
        self._wanted.clear()
        commands = self._fill(now=now)
        if self._wanted:
            commands += make_way(self._books, self._wanted, now=now)
        return commands

    def _fill(self, *, now: Instant) -> list[Command]:
        self._ask_again = None
        self._fit.clear()
        if not len(self._books.ready):
            return []
        self._look_around(now=now)
        passing: set[StepId] = set()
        commands = self._force_due(passing, now=now)
        up = self._up
        full = self._books.limits.running_steps_per_engine_max
        has_room = self._policies.has_room if self._policies.tells_room else None
        blocked = {
            e.engine
            for e in up
            if len(e.running) >= full or (has_room and not has_room(e, now=now))
        }
        if not len(self._books.ready) or (up and len(blocked) == len(up)):
            self._wanted |= blocked
            return commands + self._tell_stranded(now=now)
        newcomers = self._books.ready.newcomers
        shut = self._shut_out(now=now)
        some = len(shut) < len(newcomers.models)
        in_turn = partial(self._policies.in_turn, now=now, newcomers=some)
        for step in in_turn() if up else list(self._books.ready):
            if up and len(blocked) == len(up):
                commands += self._tell_stranded(now=now)
                break
            if step.state is not StepState.WAITING:
                continue  # it became due meanwhile
            if step.model in shut and step.step in newcomers:
                step.held_for = shut[step.model]
                continue
            dispatched = self._try(step, blocked, now=now)
            # It may have been sent meanwhile, which the type checker cannot know.
            is_held = step.step in self._books.ready
            if is_held and step.step_class is not StepClass.BATCH:
                self._wanted |= blocked
            commands += dispatched
            if dispatched:
                commands += self._force_due(passing, now=now)
        return commands

    def _look_around(self, *, now: Instant) -> None:
        """Which engines are up, and whether one came back lately; neither changes in a turn."""
        engines = self._books.engines.values()
        # As `is_up` has it: a fleet of hundreds is gone through at every turn with waiting steps.
        self._up = [e for e in engines if e.is_alive and not e.is_draining]
        returned = [e for e in self._up if e.returned_at is not None]
        self._is_easing = any(is_easing(e, self._books.limits, now=now) for e in returned)

    def _shut_out(self, *, now: Instant) -> dict[str, str]:
        """Models of which no newcomer can be sent in this turn whatever else is, and why: so that
        none of these is asked for.

        With background work about, which engines somebody waits for must be known step by step.
        """
        ready = self._books.ready
        newcomers = ready.newcomers
        if ready.batch_steps or any(e.background_steps for e in self._up):
            newcomers.ask_each()
            return {}
        shut: dict[str, str] = {}
        for model in newcomers.models:
            fit = self._fitting(model)
            held = self._policies.shuts_out(fit, now=now) if fit else None
            if held is not None:
                shut[model] = held.reason
        if shut and len(shut) == len(newcomers.models):
            newcomers.tell(shut)
        else:
            newcomers.ask_each()
        return shut

    def next_deadline(self) -> Instant | None:
        """When `fill` should run though nothing happened."""
        instants = [i for i in (self._books.ready.earliest(), self._ask_again) if i is not None]
        return min(instants, default=None)

    def _try(self, step: StepRecord, blocked: set[EngineId], *, now: Instant) -> list[Command]:
        engine = self._choose(step, now=now)
        if engine is None:
            return self._without_engine(step, now=now)
        if engine.engine in blocked:
            step.held_for = "behind others"
            return []
        if self._is_full(engine):
            step.held_for = "engine full"
            blocked.add(engine.engine)
            return []
        admission = self._policies.admit(step, engine, now=now)
        return self._apply(admission, step, engine, blocked, now=now)

    def _apply(
        self,
        admission: Admission,
        step: StepRecord,
        engine: EngineRecord,
        blocked: set[EngineId],
        *,
        now: Instant,
    ) -> list[Command]:
        match admission:
            case Admitted(releases=releases):
                ended = [c for key in releases for c in self._let_go(key)]
                return [*ended, *self._dispatch(step, engine, now=now)]
            case Held(reason=reason, until=until, blocks_others=blocks_others):
                step.held_for = reason
                if until is not None and until > now:
                    self._ask_again = min(until, self._ask_again or until)
                if blocks_others:
                    blocked.add(engine.engine)
                return []
            case TurnedAway(reason=reason, retry_after=retry_after):
                return self._reject(step, RejectReason.REFUSED, retry_after, reason, now=now)

    def _let_go(self, key: ConversationId) -> list[Command]:
        """Stop counting a paused conversation's KV as resident."""
        conversation = self._books.conversations.get(key)
        if conversation is None or conversation.active_steps:
            return []
        self._books.evict(conversation)
        return self._retention.release(key, UnpinReason.RELEASED)

    def _choose(self, step: StepRecord, *, now: Instant) -> EngineRecord | None:
        fit = self._fitting(step.model)
        if step.failed_on:
            fit = [e for e in fit if e.engine not in step.failed_on] or fit
        if self._is_easing:
            fit = [e for e in fit if has_turn(e, fit, self._books.limits, now=now)] or fit
        if len(fit) <= 1:
            return fit[0] if fit else None
        return self._policies.best(step, fit, now=now)

    def _fitting(self, model: str) -> list[EngineRecord]:
        """Engines that are up and serve a model; silent ones only where there are no others."""
        fit = self._fit.get(model)
        if fit is None:
            fit = self._up if not model else [e for e in self._up if e.serves(model)]
            fit = self._fit[model] = [e for e in fit if e.silent_since is None] or fit
        return fit

    def _force_due(self, passing: set[StepId], *, now: Instant) -> list[Command]:
        """Serve the steps whose bound is reached; those that must wait on are added to `passing`.

        One at a time, since each that goes may bring an older one to its bypass bound.
        """
        commands: list[Command] = []
        while (step := self._books.ready.next_due(now=now, passing=passing)) is not None:
            commands += self._force(step, now=now)
            if step.state is StepState.WAITING:
                # No engine that it could use has room, or there is none: that holds for its model.
                passing.add(step.step)
                self._books.ready.tell_overtaken(step.model, step.held_for)
        return commands

    def _force(self, step: StepRecord, *, now: Instant) -> list[Command]:
        """A bound is reached: the step goes now. If its time is up, it goes or is told no."""
        engine = self._choose(step, now=now)
        if engine is None:
            return self._without_engine(step, now=now)
        if self._is_full(engine):
            # The engine chosen by affinity is full; promises come before affinity.
            room = [e for e in self._fitting(step.model) if not self._is_full(e)]
            if not room:
                return self._without_room(step, now=now)
            room = [e for e in room if e.engine not in step.failed_on] or room
            engine = min(room, key=lambda e: (e.running_steps, e.engine))
        # The admission policy can no longer hold it. It may say who makes room, or turn it away.
        admission = self._policies.admit(step, engine, now=now)
        if isinstance(admission, TurnedAway):
            reason, after = RejectReason.WAIT_BOUND, admission.retry_after
            return self._reject(step, reason, after, admission.reason, now=now)
        releases = admission.releases if isinstance(admission, Admitted) else ()
        ended = [c for key in releases for c in self._let_go(key)]
        return [*ended, *self._dispatch(step, engine, now=now, order="bound")]

    def _without_room(self, step: StepRecord, *, now: Instant) -> list[Command]:
        if self._books.ready.is_late(step, now=now):
            detail = "every engine is full"
            return self._reject(step, RejectReason.WAIT_BOUND, seconds(5), detail, now=now)
        # Nobody passes it while it waits on: whatever it could use is full for others as well.
        step.held_for = "engine full"
        return []

    def _is_full(self, engine: EngineRecord) -> bool:
        return len(engine.running) >= self._books.limits.running_steps_per_engine_max

    def _without_engine(self, step: StepRecord, *, now: Instant) -> list[Command]:
        known = self._books.engines.values()
        if any(e.is_up for e in known) and not any(e.serves(step.model) for e in known):
            return self._reject(step, RejectReason.UNKNOWN_MODEL, None, step.model, now=now)
        give_up_at = self._books.gives_up_at(step)
        if give_up_at <= now:
            detail = "no engine is up"
            return self._reject(step, RejectReason.NO_ENGINE, seconds(5), detail, now=now)
        step.held_for = "no engine"
        self._ask_again = min(give_up_at, self._ask_again or give_up_at)
        return []

    def _tell_stranded(self, *, now: Instant) -> list[Command]:
        """Whoever's model no engine has that is up: that the others are full is no matter to it."""
        models = {model for model in self._books.ready.models if not self._fitting(model)}
        stranded = [step for step in self._books.ready if step.model in models] if models else ()
        return [c for step in stranded for c in self._without_engine(step, now=now)]

    def _dispatch(
        self, step: StepRecord, engine: EngineRecord, *, now: Instant, order: str = ""
    ) -> list[Command]:
        books = self._books
        conversation = books.conversation(step)
        pin = books.pins.of_conversation(step.conversation)
        previous = conversation.engine
        command = Dispatch(
            step=step.step,
            engine=engine.engine,
            priority=self._policies.priority(step, now=now),
            order=order or self._policies.names["order"],
            place="new" if previous is None else "stay" if previous == engine.engine else "move",
            pin="none" if pin is None else "hit" if pin.engine == engine.engine else "elsewhere",
            bypassed=step.bypassed,
        )
        books.ready.count_bypasses(step, engine)
        books.end_wait(step)
        state = next_state(step.state, Dispatch)
        assert state is StepState.DISPATCHED
        step.state = state
        step.engine = engine.engine
        step.dispatched_at = now
        step.attempts += 1
        step.held_for = ""
        books.settle(step, engine, now=now)
        charge_sent(books.shares, step)
        books.pace.sent(is_backlogged=len(books.ready) > 0, now=now)
        stopped = self._retention.dispatched(step, engine, now=now)
        begins(engine, now=now)
        engine.take(step)
        return [*stopped, command]

    def _reject(
        self,
        step: StepRecord,
        reason: RejectReason,
        retry_after: Nanos | None,
        detail: str,
        *,
        now: Instant,
    ) -> list[Command]:
        state = next_state(step.state, Reject)
        assert state is StepState.REJECTED
        step.state = state
        self._books.end_wait(step)
        self._books.end_step(step, now=now)
        return [Reject(step=step.step, reason=reason, retry_after=retry_after, detail=detail)]
