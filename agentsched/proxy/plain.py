"""Requests that are relayed unscheduled: models, embeddings, token counts, stored responses."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from agentsched.model import (
    EngineError,
    EngineUnreachable,
    Reject,
    RejectReason,
    StepId,
    WireError,
    in_seconds,
)
from agentsched.ports import Engine, EngineAnswer, EngineRequest
from agentsched.proxy import headers as header_rules
from agentsched.proxy import refusal
from agentsched.proxy.access.ownership import (
    ENGINE_REFUSES_US,
    check_body,
    check_response,
    is_about_our_key,
)
from agentsched.proxy.access.principal import principal_of
from agentsched.proxy.fields import BROKEN
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.host import Interrupted
from agentsched.proxy.receive import Received, receive, request_id
from agentsched.proxy.request import Dialect
from agentsched.proxy.sending import hang_up, send
from agentsched_adapters.unpacking import coding_of, unpacked

#: They stand where ids of responses do, and may go on from one that their body names.
GOING_ON: Final = ("/v1/responses/compact", "/v1/responses/input_tokens")
#: Below it, a path names a model.
MODELS: Final = "/v1/models/"

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: They do nothing in an engine.
_LOOKS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class _OnlyModel(msgspec.Struct):
    model: str = ""


_MODEL: Final = msgspec.json.Decoder(_OnlyModel)
#: The field of a form that names the model, how its part begins, and how long its head may be.
_FORM_FIELD: Final = b'name="model"'
_FORM_PART: Final = b"content-disposition: form-data"
_FORM_HEAD_BYTES_MAX: Final = 512
#: What is uploaded beside it may hold those words, too.
_FORM_TRIES: Final = 8
_NAME_BYTES_MAX: Final = 256
_NO_WEBSOCKETS: Final = "WebSockets are not relayed. Ask over HTTP, or the engine itself."


class PlainRelay:
    """Relays to any engine that is up and has the model; the next one if it cannot be reached."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._turn = itertools.count()

    async def serve(self, request: web.Request, dialect: Dialect) -> web.StreamResponse:
        """Relay one request, whole body to whole body or stream to stream.

        Raises:
            WireError: it breaks a limit, or is no request but the beginning of a WebSocket.
        """
        if request.method not in _METHODS:
            raise web.HTTPMethodNotAllowed(request.method, _METHODS)
        if "Sec-WebSocket-Key" in request.headers:
            # As a plain request it would only get some 404 or 405 of an engine's.
            raise WireError(_NO_WEBSOCKETS, status=501, code="no_websockets")
        ids = {"x-request-id": request_id(request)}
        received = None if self._gateway.is_draining else await self._gateway.receive(request)
        if received is None:
            return refusal.DRAINING.response(dialect, ids)
        about = self._about(request, received)
        try:
            with self._gateway.relaying(request):
                return await self._serve(request, received, dialect, ids, about=about)
        except Interrupted as error:
            if request.writer.output_size:
                hang_up(request)
                raise ConnectionResetError(str(error)) from None
            return refusal.of_interruption(error).response(dialect, ids)

    def _about(self, request: web.Request, received: Received) -> str:
        """The stored response that a request is about, or goes on from; empty: none.

        Raises:
            WireError: it is somebody else's.
        """
        named = request.match_info.get("response", "")
        if not (named or request.path in GOING_ON):
            return ""
        tenant = self._gateway.tenant(received.headers, principal_of(request))
        if not named:
            return check_body(self._gateway, received.body, tenant)
        check_response(self._gateway, named, tenant)
        return named

    async def _serve(
        self,
        request: web.Request,
        received: Received,
        dialect: Dialect,
        ids: dict[str, str],
        *,
        about: str,
    ) -> web.StreamResponse:
        engines = self._candidates(request, received, about)
        if not engines:
            no = refusal.of_reject(Reject(step=StepId(""), reason=RejectReason.NO_ENGINE))
            return no.response(dialect, ids)
        failure: EngineError = EngineUnreachable("no engine")
        for engine in engines[: self._tries_max(request)]:
            if not self._gateway.fleet.has(engine):
                continue  # it was removed, or replaced, while another one was asked
            with self._gateway.fleet.using(engine):
                try:
                    answer = await engine.send(self._outgoing(request, received, engine))
                except EngineUnreachable as error:
                    self._gateway.fleet.suspect(engine.id, str(error), asked=engine)
                    failure = error
                    continue
                except EngineError as error:
                    failure = error
                    break
                if answer.status < 500:
                    # Of an engine that is asked for nothing else, failures long ago would add up.
                    self._gateway.fleet.health.succeeded(engine.id)
                if is_about_our_key(self._gateway, engine.id, answer.status):
                    await answer.aclose()
                    return ENGINE_REFUSES_US.response(dialect, ids)
                return await self._relay(request, answer, engine, ids)
        return refusal.of_engine_error(failure).response(dialect, ids)

    def _tries_max(self, request: web.Request) -> int | None:
        """How many engines may be asked; None: all that are up.

        What is more than a look may be what brings them down, one after the other.
        """
        if request.method in _LOOKS:
            return None
        return 1 + self._gateway.host.scheduler.limits.retries_max

    async def models(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models`: one engine's list as it is, or the union where lists differ."""
        up = self._gateway.fleet.up()
        is_one_list = len({engine.capabilities.models for engine in up}) <= 1
        if is_one_list or self._gateway.is_draining:
            return await self.serve(request, Dialect.OTHER)
        received = await receive(request, self._gateway.config.http)
        lists = await asyncio.gather(*(self._list(e, request, received) for e in up))
        merged: dict[str, Any] = {}
        for entry in itertools.chain.from_iterable(lists):
            merged.setdefault(str(entry.get("id")), entry)
        if not merged:
            # Nobody gave a list: one of them may as well say why.
            return await self.serve(request, Dialect.OTHER)
        body = msgspec.json.encode({"object": "list", "data": list(merged.values())})
        return web.Response(body=body, content_type="application/json")

    async def _list(
        self, engine: Engine, request: web.Request, received: Received
    ) -> Sequence[dict[str, Any]]:
        patience = in_seconds(self._gateway.config.upstream.probe_timeout)
        try:
            async with asyncio.timeout(patience):
                answer = await engine.send(self._outgoing(request, received, engine))
                try:
                    said = await unpacked(answer, coding_of(answer)).read()
                    listed: dict[str, Any] = msgspec.json.decode(said, type=dict)
                finally:
                    await answer.aclose()
        except (EngineError, TimeoutError, *BROKEN):
            return []  # the others' lists are no worse for it
        data = listed.get("data")
        return (
            [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
        )

    def _candidates(self, request: web.Request, received: Received, about: str) -> list[Engine]:
        home = self._gateway.homes.of(about)
        if home is not None:
            # To look at an answer, or to end it, is no new work: also where it is drained.
            engine = self._gateway.fleet.alive(home)
            return [] if engine is None else [engine]
        up = self._gateway.fleet.up()
        model = _named(request) or _model(received)
        records = self._gateway.host.scheduler.engines
        serving = [e for e in up if records[e.id].serves(model)]
        # With an unknown model any engine will do: it knows best how to say no.
        candidates = (serving if model else up) or up
        turn = next(self._turn) % len(candidates) if candidates else 0
        return candidates[turn:] + candidates[:turn]

    def _outgoing(self, request: web.Request, received: Received, engine: Engine) -> EngineRequest:
        headers = header_rules.to_engine(
            received.pairs,
            request_id=received.engine_request_id,
            with_credentials=self._gateway.forwards_credentials(engine.id, principal_of(request)),
            own_key=self._gateway.own_key,
        )
        return EngineRequest(
            method=request.method, target=received.target, headers=headers, body=received.body
        )

    async def _relay(
        self, request: web.Request, answer: EngineAnswer, engine: Engine, ids: dict[str, str]
    ) -> web.StreamResponse:
        theirs = header_rules.to_client(answer.headers, status=answer.status, engine_url=engine.url)
        headers = [*theirs, *ids.items()]
        headers.append(("x-agentsched-engine", str(engine.id)))
        response = web.StreamResponse(status=answer.status, headers=headers)
        # The body is relayed byte for byte, so its length is still what the engine said.
        response.content_length = _length(answer)
        try:
            await response.prepare(request)
            async for chunk in answer.chunks():
                await send(request, response, chunk, self._gateway.config.http)
        except EngineError:
            hang_up(request)  # the status is out
        finally:
            await answer.aclose()
        return response  # its end is sent by `finish`, bounded in time


def _length(answer: EngineAnswer) -> int | None:
    for name, value in answer.headers:
        if name.lower() == "content-length" and value.isdecimal():
            return int(value)
    return None


def _named(request: web.Request) -> str:
    """The model that the path is about."""
    path = request.path
    return path.removeprefix(MODELS) if path.startswith(MODELS) else ""


def _model(received: Received) -> str:
    if received.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return _model_of_form(received.body)
    try:
        return _MODEL.decode(received.body).model
    except BROKEN:
        return ""


def _model_of_form(body: bytes) -> str:
    """The model that a form names beside what it uploads: a recording, a picture."""
    at = -1
    for _ in range(_FORM_TRIES):
        at = body.find(_FORM_FIELD, at + 1)
        if at < 0:
            break
        line = body.rfind(b"\r\n", max(0, at - _FORM_HEAD_BYTES_MAX), at) + 2
        begin = body.find(b"\r\n\r\n", at, at + _FORM_HEAD_BYTES_MAX) + 4
        end = body.find(b"\r\n", begin, begin + _NAME_BYTES_MAX)
        if begin > 4 and end > begin and body[line:at].lower().startswith(_FORM_PART):
            return body[begin:end].decode(errors="replace")
    return ""
