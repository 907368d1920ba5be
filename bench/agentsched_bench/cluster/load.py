"""Agents with the official OpenAI client: what they ask, what they see, and when.

An agent does what its recording did: it asks, runs its tools for as long, and asks again with the
answer in its prompt. The client is the one from the registry with its own retries; below it every
attempt is counted, above it the agent asks a turn again that was cut in the middle, as agents do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import openai

from agentsched_bench.workload.shape import PlannedProgram

_TURNS_TRIED_MAX: Final = 4
#: The client's own default is ten minutes; whoever waits for longer than this here is hung.
HUNG_S: Final = 30.0
_WORD: Final = "lorem "


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One HTTP request of a client. `outcome` is a status, or how the connection failed."""

    at: float
    outcome: str = ""
    took: float = 0.0
    replica: str = ""


@dataclass(slots=True, kw_only=True)
class Call:
    """One turn as the agent saw it. `error` is empty where it has its answer."""

    agent: int
    program: int
    step: int
    tenant: str
    has_ids: bool
    streams: bool
    began: float
    ended: float = 0.0
    error: str = ""
    #: How its streams broke off: `told` by an error event, `broken` connections, `silent` ends.
    cuts: list[str] = field(default_factory=list)
    tries: int = 1
    label: str = ""
    replica: str = ""
    #: Tokens as they are charged: uncached prompt and answer.
    tokens: int = 0


@dataclass(slots=True, kw_only=True)
class Seen:
    """All that agents saw. Times are seconds since the load began."""

    calls: list[Call] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    programs: int = 0
    completed: int = 0


class _Counting(httpx.AsyncBaseTransport):
    """The client's own transport, with a note of each attempt."""

    def __init__(self, seen: Seen, now: Callable[[], float]) -> None:
        self._inner = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None))
        self._seen = seen
        self._now = now

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        attempt = Attempt(at=self._now())
        self._seen.attempts.append(attempt)
        try:
            response = await self._inner.handle_async_request(request)
        except httpx.HTTPError as error:
            attempt.outcome = type(error).__name__
            raise
        except asyncio.CancelledError:
            attempt.outcome = "cancelled"
            raise
        finally:
            attempt.took = self._now() - attempt.at
        attempt.outcome = str(response.status_code)
        attempt.replica = _last(response.headers.get("x-replica", ""))
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """`agents` run at a time, `seconds` long (or what `Load.until` becomes); then each ends the
    program that it is at.
    """

    url: str
    model: str
    agents: int = 12
    seconds: float = 25.0
    pause_s_max: float = 0.6
    #: Recordings are made shorter; streams must be long enough to be cut.
    answer_tokens_min: int = 64
    tenants: Sequence[str] = ("red", "blue")
    #: Of how many agents in a row one sends ids; 0: none does.
    ids_every: int = 2


class Load:
    """Runs agents against one base URL."""

    def __init__(self, plans: Sequence[PlannedProgram], options: LoadOptions) -> None:
        self._plans = plans
        self._options = options
        self._begun = time.monotonic()
        self._next = 0
        self.seen = Seen()
        #: Programs begin until then.
        self.until = options.seconds

    def now(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self._begun

    async def run(self) -> Seen:
        """Until all agents are done."""
        self._begun = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._options.agents):
                tasks.create_task(self._agent(number), name=f"agent {number}")
        return self.seen

    async def _agent(self, number: int) -> None:
        options = self._options
        http: Any = httpx.AsyncClient(transport=_Counting(self.seen, self.now), timeout=HUNG_S)
        client = openai.AsyncOpenAI(
            base_url=options.url + "/v1", api_key="none", http_client=http, timeout=HUNG_S
        )
        await asyncio.sleep(number * 0.05)
        try:
            while self.now() < self.until:
                program, self._next = self._next, self._next + 1
                self.seen.programs += 1
                plan = self._plans[program % len(self._plans)]
                is_done = await self._program(client, number, program, plan)
                self.seen.completed += is_done
        finally:
            await client.close()

    async def _program(
        self, client: openai.AsyncOpenAI, agent: int, program: int, plan: PlannedProgram
    ) -> bool:
        options = self._options
        has_ids = bool(options.ids_every) and agent % options.ids_every == 0
        tenant = options.tenants[agent % len(options.tenants)]
        headers = {"x-agentsched-tenant": tenant}
        if has_ids:
            headers["x-agentsched-program"] = f"run-{program}"
        calls = plan.main.calls
        messages: list[dict[str, str]] = []
        before = 0
        for step, planned in enumerate(calls):
            grown = max(8, planned.prompt_tokens - before)
            before = planned.prompt_tokens + planned.output_tokens
            said = f"task {program}: " if not step else f"result {step} of {program}: "
            messages.append({"role": "user", "content": said + _WORD * grown})
            call = Call(
                agent=agent,
                program=program,
                step=step,
                tenant=tenant,
                has_ids=has_ids,
                streams=agent // 2 % 2 == 0,
                began=self.now(),
            )
            self.seen.calls.append(call)
            tokens = max(options.answer_tokens_min, planned.output_tokens)
            answer = await self._turn(client, call, messages, tokens, headers)
            if answer is None:
                return False
            messages.append({"role": "assistant", "content": answer})
            await asyncio.sleep(min(planned.pause_s, options.pause_s_max))
        return True

    async def _turn(
        self,
        client: openai.AsyncOpenAI,
        call: Call,
        messages: list[dict[str, str]],
        output_tokens: int,
        headers: dict[str, str],
    ) -> str | None:
        """The answer; None where it failed, after the client's retries and the agent's own."""
        body: dict[str, Any] = {
            "model": self._options.model,
            "messages": messages,
            "max_tokens": output_tokens,
            "extra_headers": headers,
        }
        while True:
            try:
                ask = self._streamed if call.streams else self._whole
                answer = await asyncio.wait_for(ask(client, call, body), 2 * HUNG_S)
            except (openai.OpenAIError, httpx.HTTPError, TimeoutError) as error:
                call.error = _name(error)
                if len(call.cuts) == call.tries < _TURNS_TRIED_MAX:
                    call.tries += 1
                    continue
                call.ended = self.now()
                return None
            call.error, call.ended = "", self.now()
            return answer

    async def _whole(self, client: openai.AsyncOpenAI, call: Call, body: dict[str, Any]) -> str:
        raw = await client.chat.completions.with_raw_response.create(**body)
        self._note(call, raw.headers)
        answer = raw.parse()
        self._charge(call, answer.usage)
        return answer.choices[0].message.content or ""

    async def _streamed(self, client: openai.AsyncOpenAI, call: Call, body: dict[str, Any]) -> str:
        options = {"include_usage": True}
        create: Any = client.chat.completions.with_raw_response.create
        raw = await create(**body, stream=True, stream_options=options)
        self._note(call, raw.headers)
        parts: list[str] = []
        finish = None
        try:
            async for chunk in raw.parse():
                self._charge(call, chunk.usage)
                for choice in chunk.choices:
                    parts.append(choice.delta.content or "")
                    finish = choice.finish_reason or finish
        except openai.APIStatusError:
            raise
        except openai.APIError as error:
            is_told = not isinstance(error, openai.APIConnectionError)
            call.cuts.append("told" if is_told else "broken")
            raise
        except httpx.HTTPError:
            call.cuts.append("broken")
            raise
        if finish is None:
            call.cuts.append("silent")
            asked: Any = httpx.Request("POST", "/")
            raise openai.APIError("the stream ended early", asked, body=None)
        return "".join(parts)

    def _note(self, call: Call, headers: Any) -> None:
        call.label = headers.get("x-agentsched-program", "")
        call.replica = _last(headers.get("x-replica", ""))

    def _charge(self, call: Call, usage: Any) -> None:
        if usage is None:
            return
        details = usage.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details is not None else 0
        call.tokens = usage.prompt_tokens - cached + usage.completion_tokens


def _last(upstreams: str) -> str:
    """nginx names all that it tried; the last one answered."""
    return upstreams.rpartition(",")[2].strip()


def _name(error: BaseException) -> str:
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code}"
    if isinstance(error, openai.APIConnectionError) and error.__cause__ is not None:
        return type(error.__cause__).__name__
    return type(error).__name__
