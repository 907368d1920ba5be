"""One scheduled request, from its bytes to the last byte of its answer.

The numbers in the comments are those of docs/architecture.md, "One request". Whatever happens here,
each step that was submitted ends in exactly one event: finished, failed or cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import replace
from functools import partial
from typing import Final

from aiohttp import web

from agentsched.model import (
    Dispatch,
    EngineError,
    EngineId,
    EngineUnreachable,
    Instant,
    Reject,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepId,
    StepStarted,
    between,
)
from agentsched.ports import Engine, EngineAnswer, EngineRequest
from agentsched.proxy import headers as header_rules
from agentsched.proxy import refusal
from agentsched.proxy.access.ownership import (
    ENGINE_REFUSES_US,
    check_previous,
    is_about_our_key,
)
from agentsched.proxy.access.principal import principal_of
from agentsched.proxy.access.redact import redact
from agentsched.proxy.answer import Answer
from agentsched.proxy.answers import read_answer
from agentsched.proxy.call_ids import CallIdMarker
from agentsched.proxy.clients import client_of
from agentsched.proxy.early import EarlyStream, bounded, keep_alive_after
from agentsched.proxy.engine_answer import (
    beginning,
    is_event_stream,
    readable,
    strict_json,
)
from agentsched.proxy.errors import stream_error
from agentsched.proxy.explaining import explanation, with_ours
from agentsched.proxy.families import family_of
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.host import Interrupted, Stop, Ticket
from agentsched.proxy.identity import Evidence, Identity
from agentsched.proxy.outgoing import outgoing
from agentsched.proxy.receive import Received, request_id
from agentsched.proxy.request import Dialect, ParsedRequest
from agentsched.proxy.resends import Sent
from agentsched.proxy.sending import send
from agentsched.proxy.sse import SseTap
from agentsched.proxy.tools import finished_step, finished_tools
from agentsched.proxy.wire import parse_request
from agentsched_adapters.whole import read_whole

#: What a response in the background says first.
_ACCEPTED: Final = frozenset({"queued", "in_progress"})

#: An engine that says so is starting, stopping or behind something that cannot reach it.
_NOT_ME: Final = frozenset({502, 503, 504})
#: Says that there is too much to do, which is neither sickness nor health.
_ABOUT_LOAD: Final = frozenset({408, 429})

log = logging.getLogger(__name__)


async def serve_generation(
    gateway: Gateway, request: web.Request, dialect: Dialect
) -> web.StreamResponse:
    """Handle one request of a generating endpoint.

    Raises:
        WireError: it cannot be understood, or breaks a limit.
    """
    received = None if gateway.is_draining else await gateway.receive(request)  # 1. arrive
    if received is None:
        return refusal.DRAINING.response(dialect, {"x-request-id": request_id(request)})
    parsed = parse_request(dialect, received.body, gateway.wire_limits)
    gateway.clients[family_of(received.headers)] += 1
    tenant = gateway.tenant(received.headers, principal_of(request))
    check_previous(gateway, parsed, tenant)

    async def work(asked: web.Request) -> tuple[web.StreamResponse, bool]:
        await gateway.lists.look_for(parsed.model)
        now = gateway.host.now()
        ratio = gateway.ratios.of(parsed.model)
        if gateway.sharing is not None:
            await gateway.sharing.settle(parsed, received.headers, tenant=tenant)
        gateway.gate.check(principal_of(asked))  # from here to its ticket nothing waits
        identity = gateway.index.identify(  # 2. identify
            parsed, received.headers, tenant=tenant, now=now, bytes_per_token=ratio
        )
        generation = Generation(gateway, asked, received, parsed, identity, now=now, ratio=ratio)
        return await generation.serve(), generation.is_answered

    key = gateway.shared.key(received, tenant, principal_of(request).key)
    if key is None:
        return (await work(request))[0]
    return await gateway.shared.serve(key, request, received, work, gateway.config.http)


class Generation:
    """One step on its way through the proxy."""

    def __init__(
        self,
        gateway: Gateway,
        request: web.Request,
        received: Received,
        parsed: ParsedRequest,
        identity: Identity,
        *,
        now: Instant,
        ratio: float,
    ) -> None:
        self._gateway = gateway
        self._ratio = ratio
        self._host = gateway.host
        self._request = request
        self._received = received
        self._parsed = parsed
        self._identity = identity
        self._arrived_at = self._sent_at = now
        self._step = StepId(secrets.token_hex(16))
        self._has_started = False
        self._has_ended = False
        #: Its answer is whole.
        self.is_answered = False
        self._ticket: Ticket | None = None
        #: By what its engine was asked, and what it was sent.
        self._asked: Engine | None = None
        self._sent: EngineRequest | None = None
        self._response: web.StreamResponse | None = None
        self._tap: SseTap | None = None
        #: An engine's bytes are on their way to the client: no other engine can take over.
        self._is_committed = False
        self._early: EarlyStream | None = None
        is_on = gateway.config.identity.unique_call_ids
        self._call_ids = CallIdMarker(parsed.dialect, self._step, is_on=is_on)

    async def serve(self) -> web.StreamResponse:
        """Carry the step out. The step has ended when this returns or raises."""
        reason = "client went away"
        try:
            return await self._submit()
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            reason = "a defect"
            if await self._opened() is None:
                raise
            # The status is out, so nobody above can tell the client any more.
            log.exception("a defect in the middle of an answer to %s", self._request.path)
            return await self._close_with_error(refusal.DEFECT)
        finally:
            if self._early is not None:
                self._early.close()
            if not self._has_ended:
                self._leave(reason)
            self._gateway.notes.drop(self._step)

    async def _submit(self) -> web.StreamResponse:
        for event in finished_tools(self._identity):
            self._host.feed(event)
        resends, turn = self._gateway.resends, self._identity.turn
        old = resends.take(self._identity.retries)
        arrived = self._gateway.arrival(
            self._step,
            self._identity,
            self._parsed,
            now=self._arrived_at,
            retries=old.step if old is not None else None,
        )
        if self._identity.step_class.is_work:
            self._gateway.warm_bodies.forget(self._identity.conversation)
        self._gateway.notes.add(
            self._step,
            self._identity.program,
            request_id=self._received.request_id,
            headers=self._received.headers,
        )
        key = principal_of(self._request).key
        self._ticket = self._host.submit(arrived, key=key)  # 3. submit
        self._take_over()
        resends.begin(turn, self._step, self._give_way)
        if old is not None:
            self._replace(old)
        self._early = self._early_stream()
        return await self._carry_out(self._ticket)

    def _take_over(self) -> None:
        """The conversation is ours now, wherever it was. Not where the step was turned away at the
        door: whoever asks again needs to know where it is.
        """
        sharing = self._gateway.sharing
        if sharing is not None and self._step in self._host.scheduler.steps:
            sharing.home(self._identity.conversation)

    def _replace(self, old: Sent) -> None:
        """This step is a retry of an older one, which may still be alive."""
        is_certain = old.give_way is not None and self._is_certain_retry()
        outcome = "gave_way" if is_certain else "went_on" if old.give_way else "ended"
        self._gateway.resends.retried[outcome] += 1
        if is_certain and old.give_way is not None:
            # Only now, so that the place on the engine that this frees goes to whoever is next.
            old.give_way()

    def _is_certain_retry(self) -> bool:
        """Whether nobody can wait for the answer to the request that this one repeats.

        Known agents ask one thing at a time in a thread; others may want several answers.
        """
        count = self._received.headers.get("x-stainless-retry-count", "0")
        return self._identity.evidence is Evidence.NATIVE or count not in ("0", "")

    def _give_way(self) -> None:
        """The client asks again: end this step, and whatever is still done for it."""
        if not self._has_ended and self._ticket is not None and self._host.is_live(self._step):
            reason = "its client asked again"
            self._end(StepCancelled(step=self._step, reason=reason))
            self._ticket.stop(Interrupted(Stop.CANCELLED, reason))

    async def _carry_out(self, ticket: Ticket) -> web.StreamResponse:
        verdict: Dispatch | None = None
        while True:
            was_sent = False
            try:
                word = await self._word(ticket)
                if isinstance(word, Reject):
                    self._has_ended = True
                    self._abandon()
                    return await self._refuse(refusal.of_reject(word), None)
                verdict, was_sent = word, True
                self._sent_at = self._host.now()
                with ticket.attempt():
                    return await self._attempt(verdict)  # 7. forward
            except Interrupted as error:
                no, reason = refusal.of_interruption(error), str(error)
                can_retry = error.stop in (Stop.ENGINE_LOST, Stop.YIELDED)
            except EngineError as error:
                assert verdict is not None
                self._gateway.fleet.suspect(verdict.engine, str(error), asked=self._asked)
                no, reason = refusal.of_engine_error(error), str(error)
                can_retry = isinstance(error, EngineUnreachable) and self._may_retry()
            if can_retry and was_sent and not (self._is_committed or self._has_ended):
                # No byte of an answer has reached the client: another engine may do.
                self._has_started = False
                self._host.feed(StepFailed(step=self._step, reason=reason[:256], is_retryable=True))
                continue
            end = StepFailed if was_sent else StepCancelled
            self._end(end(step=self._step, reason=reason[:256]))
            return await self._refuse(no, verdict)

    def _may_retry(self) -> bool:
        """Take a retry from the budget; a step that cannot use it leaves it there."""
        is_over = self._is_committed or self._has_ended
        return not is_over and self._gateway.retries.take()

    def _passes_on(self, status: int) -> bool:
        """Whether an engine's no is about itself, and another may say yes."""
        scheduler = self._host.scheduler
        step = scheduler.steps.get(self._step)
        return (
            status in _NOT_ME
            and step is not None
            # Its tries as the scheduler counts them: without those that made way for other work.
            and step.attempts <= scheduler.limits.retries_max
            and self._gateway.fleet.serving(self._parsed.model) > 1
            and self._gateway.retries.would_grant()
        )

    async def _word(self, ticket: Ticket) -> Dispatch | Reject:
        """The scheduler's word, or an interruption shortly before the client would hang up."""
        if self._early is not None or not ticket.is_held:
            return await ticket.verdict()
        waited = between(self._arrived_at, self._host.now())
        with bounded(ticket, self._received.headers, waited=waited):
            return await ticket.verdict()

    def _early_stream(self) -> EarlyStream | None:
        config = self._gateway.config.http
        delay = keep_alive_after(self._parsed, self._received.headers, config)
        if delay is None:
            return None
        headers = [*self._explanation(None), *header_rules.EARLY]
        return EarlyStream(self._request, self._parsed, headers=headers, config=config, delay=delay)

    async def _opened(self) -> web.StreamResponse | None:
        """The stream to the client, where its status is out."""
        if self._response is None and self._early is not None:
            self._response = await self._early.take()
        return self._response

    async def _attempt(self, verdict: Dispatch) -> web.StreamResponse:
        engine = self._asked = self._gateway.fleet.engine(verdict.engine)
        if self._sent is None:
            self._gateway.retries.request()
        member = self._gateway.fleet.members.get(verdict.engine)
        answer = readable(await engine.send(self._outgoing(engine, verdict)), member)
        try:
            if self._passes_on(answer.status):
                raise EngineUnreachable(f"it answered with status {answer.status}")
            if not 200 <= answer.status < 300:
                return await self._pass_error(answer, verdict)
            if is_event_stream(answer):
                return await self._stream(answer, verdict)
            return await self._whole(answer, verdict)
        finally:
            await answer.aclose()

    def _outgoing(self, engine: Engine, verdict: Dispatch) -> EngineRequest:
        self._sent = outgoing(
            self._gateway,
            engine,
            verdict,
            received=self._received,
            parsed=self._parsed,
            identity=self._identity,
            principal=principal_of(self._request),
            call_ids=self._call_ids,
        )
        return self._sent

    async def _whole(self, answer: EngineAnswer, verdict: Dispatch) -> web.StreamResponse:
        if await self._opened() is not None:
            raise EngineError(refusal.NOT_STREAMED)
        body = await read_whole(answer.chunks())
        seen = read_answer(self._parsed.dialect, body)
        if seen.is_given_up:
            raise EngineUnreachable(refusal.GIVEN_UP)
        if not (seen.is_complete or seen.error):
            strict = strict_json(body)
            if strict is None:
                # SDKs fail on it with their parser's error, which nobody takes for worth a retry.
                raise EngineUnreachable("the answer is not whole JSON")
            seen = read_answer(self._parsed.dialect, strict)
            # Work in the background: this was all of the answer, and its engine has the rest.
            is_accepted = seen.finish_reason in _ACCEPTED
            seen = replace(seen, is_complete=seen.is_complete or is_accepted)
        self._finish(seen, verdict.engine)
        body = self._call_ids.whole(body)
        return web.Response(status=answer.status, body=body, headers=self._headers(answer, verdict))

    async def _stream(self, answer: EngineAnswer, verdict: Dispatch) -> web.StreamResponse:
        hides = not self._parsed.wants_usage
        tap = SseTap(self._parsed.dialect, hide_usage=hides)
        chunks = answer.chunks()
        # Nothing goes to the client before its answer begins: until then the step can still be
        # sent elsewhere, and an error can still be a status.
        first = await beginning(
            chunks,
            tap,
            heard=partial(self._gateway.fleet.heard, verdict.engine),
            is_background=self._parsed.is_background,
        )
        response = await self._opened()
        self._tap, self._is_committed = tap, True
        if self._ticket is not None:
            self._ticket.is_firm = True
        self._settle_home(tap.response_id, verdict.engine)
        if response is None:
            response = self._response = web.StreamResponse(
                status=answer.status, headers=self._headers(answer, verdict)
            )
            await response.prepare(self._request)
        try:
            await self._relay(tap, first, verdict.engine)
            async for chunk in chunks:  # 9. stream back
                self._gateway.fleet.heard(verdict.engine)
                await self._relay(tap, tap.feed(chunk), verdict.engine)
        except EngineError:
            if not self._has_ended:
                raise
        rest = tap.close()
        seen = tap.answer()
        if not self._has_ended:
            self._finish(seen, verdict.engine)
        if not seen.is_complete and not seen.error:
            # Most clients take an early end for a short answer and carry on with half of it. What
            # the tap still holds is half an event, which an error could not follow.
            return await self._close_with_error(refusal.CUT_SHORT)
        if rest:
            await self._write(rest)
        return response  # its end is sent by `finish`, bounded in time

    async def _close_with_error(self, no: refusal.Refusal) -> web.StreamResponse:
        assert self._response is not None
        if self._is_committed and client_of(self._received.headers).resends_after_end:
            return self._response
        last = stream_error(
            self._parsed.dialect,
            status=no.status,
            message=no.message,
            code=no.code,
            retry_after_s=no.retry_after_s,
            response_id=self._tap.answer().response_id if self._tap is not None else "",
            model=self._parsed.model,
            request_id=self._received.request_id,
        )
        await self._write(last)
        return self._response

    async def _relay(self, tap: SseTap, out: bytes, engine: EngineId) -> None:
        """Send on what a tap gave for the bytes that it was fed."""
        if tap.first_token_seen:
            self._start()
        if tap.is_over and not self._has_ended:
            # Before the client sees the end: its next turn may be here before we are called again.
            seen = tap.answer()
            if seen.is_complete:
                self._finish(seen, engine)  # 10. finish
        if out:
            await self._write(out)

    async def _write(self, data: bytes) -> None:
        assert self._response is not None
        data = self._call_ids.events(data)
        await send(self._request, self._response, data, self._gateway.config.http)

    async def _pass_error(self, answer: EngineAnswer, verdict: Dispatch) -> web.StreamResponse:
        is_open = await self._opened() is not None
        body = await read_whole(answer.chunks())
        reason = f"status {answer.status}"
        self._judge(verdict.engine, answer.status, reason)
        self._end(StepFailed(step=self._step, reason=reason))
        if is_about_our_key(self._gateway, verdict.engine, answer.status):
            return await self._refuse(ENGINE_REFUSES_US, verdict)
        headers = self._headers(answer, verdict)
        if is_open:
            said = read_answer(self._parsed.dialect, body).error
            wait = header_rules.lower(headers).get("retry-after")
            return await self._close_with_error(refusal.of_engine_status(answer.status, said, wait))
        return web.Response(status=answer.status, body=body, headers=headers)

    def _judge(self, engine: EngineId, status: int, reason: str) -> None:
        """Say what an error says of its engine; in a stream it comes with status 200."""
        if status >= 500:
            self._gateway.fleet.suspect(engine, reason)
        elif status not in _ABOUT_LOAD:
            # A refusal is an answer: this engine is well, the request was not.
            self._gateway.fleet.health.succeeded(engine)

    def _start(self) -> None:
        if not self._has_started and not self._has_ended:
            self._has_started = True
            self._host.feed(StepStarted(step=self._step))

    def _finish(self, answer: Answer, engine: EngineId) -> None:
        in_engine, answer = answer, self._call_ids.answer(answer)
        if answer.error:
            # Engines close also a stream that ended in an error with the usual last event.
            answer = replace(answer, is_complete=False)
        # Also one that was cut short: what the client saw of it may come back in its next prompt.
        prefix = self._gateway.index.answered(
            self._identity,
            answer,
            now=self._host.now(),
            bytes_per_token=self._ratio,
            can_be_named=self._parsed.dialect is Dialect.RESPONSES,
        )
        if not answer.is_complete:
            kind = _kind_of(answer)
            self._judge(engine, answer.error_status or 502, kind)
            self._end(StepFailed(step=self._step, reason=kind))
            return
        self.is_answered = True
        self._gateway.fleet.health.succeeded(engine)
        ended = finished_step(self._step, self._identity, answer, prefix=prefix)
        if self._identity.is_told:
            self._gateway.ratios.learn(
                self._parsed.model,
                used=self._ratio,
                estimated=self._identity.prompt_tokens,
                actual=ended.usage.prompt_tokens,
            )
        self._keep_for_warming(in_engine, is_last_word=ended.is_last_word)
        self._end(ended)
        self._settle_home(answer.response_id, engine)

    def _settle_home(self, response_id: str, engine: EngineId) -> None:
        if self._parsed.dialect is Dialect.RESPONSES and response_id:
            self._gateway.homes.remember(response_id, engine, self._identity.tenant)

    def _keep_for_warming(self, answer: Answer, *, is_last_word: bool) -> None:
        """Its conversation will probably come back for what it was sent and answered."""
        identity = self._identity
        if self._sent is not None and identity.step_class.is_work:
            self._gateway.warm_bodies.keep(
                identity.conversation,
                self._sent,
                answer,
                dialect=self._parsed.dialect,
                program=str(identity.program),
                tenant=str(identity.tenant),
                is_last_word=is_last_word,
            )

    def _end(self, event: StepFinished | StepFailed | StepCancelled) -> None:
        if self._has_ended:
            return  # its client asked again meanwhile
        self._has_ended = True
        if isinstance(event, StepFailed):
            # Engines put what they were sent into their errors, and stories are kept.
            event = replace(event, reason=redact(event.reason))
        self._host.feed(event)
        if isinstance(event, StepFinished):
            self._gateway.resends.answered(self._identity.turn)
        else:
            self._abandon()

    def _leave(self, reason: str) -> None:
        """Nobody carries it out any more."""
        if self._ticket is None or self._host.is_live(self._step):
            self._end(StepCancelled(step=self._step, reason=reason))
            return
        # The scheduler's no came while its client left: it has ended there.
        self._has_ended = True
        self._abandon()

    def _abandon(self) -> None:
        self._gateway.resends.failed(self._identity.turn)
        self._gateway.index.abandoned(self._identity, now=self._host.now())

    def _headers(self, answer: EngineAnswer, verdict: Dispatch) -> list[tuple[str, str]]:
        ours = self._explanation(verdict)
        return with_ours(self._gateway, answer, ours, engine=verdict.engine)

    def _explanation(self, verdict: Dispatch | None) -> list[tuple[str, str]]:
        return explanation(
            self._gateway,
            self._identity,
            verdict,
            received=self._received,
            waited=between(self._arrived_at, self._sent_at),
        )

    async def _refuse(self, no: refusal.Refusal, verdict: Dispatch | None) -> web.StreamResponse:
        if await self._opened() is not None:
            # The status is out; all that is left is an event that clients understand.
            return await self._close_with_error(no)
        return no.response(self._parsed.dialect, dict(self._explanation(verdict)))


def _kind_of(answer: Answer) -> str:
    """What is wrong with it, in our words: the engine's own words may repeat what it was asked."""
    if answer.error_status:
        return f"status {answer.error_status}"
    return "the engine reported an error" if answer.error else "the answer was cut short"
