"""The routes that generate: chat, completions, responses, messages and embeddings."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
import time
from collections.abc import Callable
from typing import TypeAlias

import msgspec
from aiohttp import web

from agentsched.model.errors import ConfigError, WireError
from agentsched_bench.engine.answers import Answer, compose, embedding
from agentsched_bench.engine.ask import Ask, Dialect
from agentsched_bench.engine.dialect_messages import anthropic_error
from agentsched_bench.engine.dialects import Counts, Writer, error_object
from agentsched_bench.engine.driver import EngineDied, GenerationRefused, Progress
from agentsched_bench.engine.faults import Fault
from agentsched_bench.engine.playback import ScriptedAnswer, read_answer
from agentsched_bench.engine.requests import Generation, Refusal, Scheduling
from agentsched_bench.engine.state import ServerState
from agentsched_bench.engine.tokens import TokenChain
from agentsched_bench.engine.wire import (
    INVALID,
    EmbeddingBody,
    decode,
    parse_chat,
    parse_completion,
    parse_messages,
    parse_responses,
    prompt_list,
)
from agentsched_bench.engine.writers import writer_for

Parse: TypeAlias = Callable[[bytes], Ask]

_DIMENSIONS = 256
_KINDS = {
    400: "BadRequestError",
    404: "NotFoundError",
    429: "TooManyRequestsError",
    503: "ServiceUnavailableError",
}


class GenerateRoutes:
    """Handlers; one per dialect, all through `_answer`."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.completions),
            web.post("/v1/responses", self.responses),
            web.post("/v1/messages", self.messages),
            web.post("/v1/messages/count_tokens", self.count_tokens),
            web.post("/v1/embeddings", self.embeddings),
        ]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._guarded(request, self._openai(parse_chat))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._guarded(request, self._openai(parse_completion))

    async def responses(self, request: web.Request) -> web.StreamResponse:
        return await self._guarded(request, self._openai(parse_responses))

    async def messages(self, request: web.Request) -> web.StreamResponse:
        return await self._guarded(request, parse_messages, shape=anthropic_failure)

    async def count_tokens(self, request: web.Request) -> web.StreamResponse:
        try:
            ask = parse_messages(await request.read(), counting=True)
            self._state.check_model(ask.model)
        except WireError as error:
            return anthropic_failure(error)
        count = len(ask.prompt)
        management = {"original_input_tokens": count}
        return json_response({"input_tokens": count, "context_management": management})

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._embed(request)
        except WireError as error:
            return openai_failure(error)

    def _openai(self, parse: Callable[..., Ask]) -> Parse:
        return lambda body: parse(body, default_model=self._state.models[0])

    async def _guarded(
        self,
        request: web.Request,
        parse: Parse,
        *,
        shape: Callable[[WireError], web.Response] | None = None,
    ) -> web.StreamResponse:
        """Answer one generating request; what is wrong with it becomes an error in its shape."""
        shape = shape or openai_failure
        try:
            fault = self._state.fault_of(request)
            await before(fault)
            if fault.status is not None:
                return faulty(fault, shape)
            ask = parse(await request.read())
            return await self._answer(request, ask, fault)
        except WireError as error:
            return shape(error)

    async def _answer(self, request: web.Request, ask: Ask, fault: Fault) -> web.StreamResponse:
        self._state.check_model(ask.model)
        key = self._state.new_key(request)
        answer = self._compose(request, ask, key=key)
        driver = self._state.driver
        priority = self._priority(request, ask)
        writer = writer_for(ask, key=key, created=int(time.time()))
        await driver.call_overhead()
        progress = self._submit(ask, answer, key=key, priority=priority)
        try:
            if ask.stream:
                response = await self._stream(request, ask, answer, writer, progress, fault)
            else:
                response = await self._whole(request, ask, answer, writer, progress, fault)
            if progress.done:
                driver.measures.finished(answer.finish)
            return response
        except EngineDied as error:
            raise WireError(
                "EngineCore encountered an issue.", status=500, code="InternalServerError"
            ) from error
        finally:
            driver.abort(key)

    def _compose(self, request: web.Request, ask: Ask, *, key: str) -> Answer:
        longest = self._state.driver.config.max_model_len
        room = longest - len(ask.prompt)
        if room < 1 or (ask.max_tokens or 0) > room:
            raise too_long(longest, prompt=len(ask.prompt), output=ask.max_tokens)
        return compose(
            ask, key=key, room=room, seed=self._state.seed, scripted=self._scripted(request, ask)
        )

    def _scripted(self, request: web.Request, ask: Ask) -> ScriptedAnswer | None:
        header = request.headers.get("x-sim-answer")
        if header is None:
            return self._state.playback.answer(
                first_user=ask.first_user, last_user=ask.last_user, answers=ask.answers
            )
        try:
            return read_answer(header)
        except ConfigError as error:
            raise WireError(str(error), param="x-sim-answer") from error

    def _priority(self, request: web.Request, ask: Ask) -> int:
        """The header's priority, else the body's, as vLLM reads it; without effect under FCFS."""
        priority = ask.priority
        with contextlib.suppress(ValueError):
            priority = int(request.headers.get("x-vllm-priority", priority))
        fcfs = self._state.driver.config.scheduling is Scheduling.FCFS
        if priority and fcfs and self._state.refuse_priority:
            raise WireError(
                f"Got priority {priority} but Priority scheduling is not enabled.",
                code="BadRequestError",
                param="priority",
            )
        return priority

    def _submit(self, ask: Ask, answer: Answer, *, key: str, priority: int) -> Progress:
        driver = self._state.driver
        ids = [*ask.prompt, *(token.id for token in answer.tokens)]
        generation = Generation(
            id=key,
            chain=TokenChain(ids, block_size=driver.config.block_size, salt=ask.salt),
            prompt_tokens=len(ask.prompt),
            output_tokens=len(answer.tokens),
            priority=priority,
        )
        try:
            return driver.submit(generation)
        except GenerationRefused as error:
            if error.refusal is Refusal.QUEUE_FULL:
                raise WireError(
                    "The engine's queue is full; try again later.",
                    status=503,
                    code="ServiceUnavailableError",
                ) from error
            raise WireError(str(error), code="BadRequestError") from error

    async def _whole(
        self,
        request: web.Request,
        ask: Ask,
        answer: Answer,
        writer: Writer,
        progress: Progress,
        fault: Fault,
    ) -> web.StreamResponse:
        pace = Pace(progress, slow=fault.slow)
        total = len(answer.tokens)
        while pace.sent < total:
            await pace.more()
        if fault.cut_after is not None or fault.eof_after is not None:
            return break_off(request)
        counts = self._counts(ask, progress, output=total)
        return json_response(writer.whole(answer, counts))

    async def _stream(
        self,
        request: web.Request,
        ask: Ask,
        answer: Answer,
        writer: Writer,
        progress: Progress,
        fault: Fault,
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
            }
        )
        # The client may go while we write; the answer is then of no interest to anybody.
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            try:
                await self._events(request, response, ask, answer, writer, progress, fault)
            except EngineDied as error:
                await response.write(writer.failure(str(error)))
            await response.write_eof()
        return response

    async def _events(
        self,
        request: web.Request,
        response: web.StreamResponse,
        ask: Ask,
        answer: Answer,
        writer: Writer,
        progress: Progress,
        fault: Fault,
    ) -> None:
        pace = Pace(progress, slow=fault.slow)
        total = len(answer.tokens)
        chunks = 0
        counts = self._counts(ask, progress, output=0)
        batch = [writer.announcement()]
        while True:
            for chunk in filter(None, batch):
                if chunks == fault.cut_after:
                    break_off(request)
                    return
                if chunks == fault.eof_after:
                    return
                if chunks == 1 and fault.error_event:
                    await response.write(writer.failure("injected by x-sim-fault"))
                    return
                await response.write(chunk)
                chunks += 1
            if pace.sent >= total:
                break
            start = pace.sent
            await pace.more()
            batch = []
            for index in range(start, pace.sent):
                counts = self._counts(ask, progress, output=index + 1)
                if index == 0:
                    batch.append(writer.opening(counts))
                token = answer.tokens[index]
                last = index + 1 == total
                batch.append(writer.token(token, counts, last=last, answer=answer))
        await response.write(writer.closing(answer, counts))

    def _counts(self, ask: Ask, progress: Progress, *, output: int) -> Counts:
        config = self._state.driver.config
        prompt = len(ask.prompt)
        full = prompt // config.block_size * config.block_size if config.prefix_caching else 0
        cached = progress.cached_tokens
        return Counts(prompt=prompt, output=output, cached=cached, created=max(0, full - cached))

    async def _embed(self, request: web.Request) -> web.StreamResponse:
        fault = self._state.fault_of(request)
        await before(fault)
        if fault.status is not None:
            return faulty(fault, openai_failure)
        body = decode(await request.read(), EmbeddingBody)
        model = body.model or self._state.models[0]
        self._state.check_model(model)
        size = body.dimensions or _DIMENSIONS
        if not 1 <= size <= 8192:
            raise WireError("dimensions must be from 1 to 8192", param="dimensions")
        prompts = prompt_list(body.input)
        driver = self._state.driver
        await driver.call_overhead()
        data = []
        for index, ids in enumerate(prompts):
            ask = Ask(dialect=Dialect.EMBEDDING, model=model, prompt=ids, max_tokens=1)
            vector = embedding(ids, dimensions=size)
            await self._compute(request, ask)
            value = as_base64(vector) if body.encoding_format == "base64" else vector
            data.append({"index": index, "object": "embedding", "embedding": value})
        total = sum(map(len, prompts))
        usage = {"prompt_tokens": total, "total_tokens": total}
        key = f"embd-{self._state.new_key(request)}"
        return json_response(
            {"id": key, "object": "list", "model": model, "data": data, "usage": usage}
        )

    async def _compute(self, request: web.Request, ask: Ask) -> None:
        """Let the engine work through one prompt."""
        key = self._state.new_key(request)
        answer = self._compose(request, ask, key=key)
        progress = self._submit(ask, answer, key=key, priority=self._priority(request, ask))
        try:
            await progress.beyond(0)
        except EngineDied as error:
            raise WireError(str(error), status=500, code="InternalServerError") from error
        finally:
            self._state.driver.abort(key)


class Pace:
    """How many tokens may be sent, with a slow-down on request."""

    def __init__(self, progress: Progress, *, slow: float) -> None:
        self._progress = progress
        self._slow = slow
        self._last_at = progress.arrived_at
        self.sent = 0

    async def more(self) -> None:
        """Wait for at least one more token; `sent` says how many there are then."""
        ready = await self._progress.beyond(self.sent)
        if self._slow <= 1:
            self.sent = ready
            return
        # One at a time, each after `slow` times what the engine took for it.
        clock = asyncio.get_running_loop().time
        taken = (self._progress.last_at - self._progress.arrived_at) / ready
        await asyncio.sleep(max(0.0, self._last_at + taken * self._slow - clock()))
        self._last_at = clock()
        self.sent += 1


async def before(fault: Fault) -> None:
    """What a fault does before anything is read."""
    if fault.delay_s:
        await asyncio.sleep(fault.delay_s)
    if fault.hang:
        await asyncio.Event().wait()


def faulty(fault: Fault, shape: Callable[[WireError], web.Response]) -> web.Response:
    """The error answer that a fault asks for."""
    assert fault.status is not None
    kind = _KINDS.get(fault.status, "InternalServerError")
    response = shape(WireError("injected by x-sim-fault", status=fault.status, code=kind))
    if fault.retry_after is not None:
        response.headers["Retry-After"] = str(fault.retry_after)
    return response


def too_long(longest: int, *, prompt: int, output: int | None) -> WireError:
    """vLLM's refusal of what does not fit the context."""
    if output is not None and output > longest:
        return WireError(
            f"max_tokens={output} cannot be greater than max_model_len={longest}. "
            "Please request fewer output tokens.",
            code="BadRequestError",
            param="max_tokens",
        )
    if prompt >= longest:
        text = (
            f"This model's maximum context length is {longest} tokens. However, your prompt "
            f"contains {prompt} input tokens, which exceeds this limit even without any output "
            "tokens. Please reduce the length of the input prompt."
        )
    else:
        text = (
            f"This model's maximum context length is {longest} tokens. However, you requested "
            f"{output} output tokens and your prompt contains {prompt} input tokens, for a total "
            f"of {prompt + (output or 0)} tokens. Please reduce the length of the input prompt or "
            "the number of requested output tokens."
        )
    return WireError(text, code="BadRequestError", param="input_tokens")


def openai_failure(error: WireError) -> web.Response:
    """An error in vLLM's shape."""
    value = error_object(
        error.message, status=error.status, kind=_kind_of(error), param=error.param
    )
    return json_response(value, status=error.status)


def anthropic_failure(error: WireError) -> web.Response:
    """An error in Anthropic's shape, with vLLM's error types; of a bad body, in OpenAI's."""
    if error.code == INVALID:
        return openai_failure(error)
    return json_response(anthropic_error(error.message, kind=_kind_of(error)), status=error.status)


def json_response(value: object, *, status: int = 200) -> web.Response:
    """`value` as a JSON answer."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json"
    )


def break_off(request: web.Request) -> web.Response:
    """Break a connection without goodbye; the returned answer reaches nobody."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def as_base64(vector: list[float]) -> str:
    """A vector as little-endian 32-bit floats in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _kind_of(error: WireError) -> str:
    if error.code.endswith("Error") or error.code in (INVALID, "invalid_request_error"):
        return error.code
    return _KINDS.get(error.status, "InternalServerError")
