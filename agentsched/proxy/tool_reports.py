"""What agents and tool runners tell about tools: `POST /agentsched/v1/tools`, the bus likewise.

A report is a hint: it says which tool a conversation waits for, gives the tool's node its exact
times, and lets the next step be warmed the moment its tool ends. How long a tool will still take is
kept for policies that ask (`expected_return`); of the built-in ones none does. One about a program
that is not known here, or not the reporter's own, is counted and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from aiohttp import web

from agentsched.kernel.records import ConversationRecord, ProgramRecord
from agentsched.model import (
    CallId,
    ConversationId,
    Event,
    Nanos,
    ProgramClosed,
    ProgramId,
    TenantId,
    ToolFinished,
    ToolName,
    ToolStarted,
    WireError,
    seconds,
)
from agentsched.proxy.access.principal import principal_of
from agentsched.proxy.access.quota import HintQuota
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.identity.atoms import call_ref
from agentsched.proxy.receive import Received, receive
from agentsched.proxy.refusal import Refusal
from agentsched.proxy.request import Dialect
from agentsched.proxy.tools import clean_name

_REPORTS_MAX: Final = 1_000
_BYTES_MAX: Final = 1 << 20
#: Longer than any tool; what is beyond is a unit that was mistaken.
_SECONDS_MAX: Final = 7 * 86_400.0


class ToolReport(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One thing that happened to a tool call, or to its program.

    `program` is the id that the agent sends, or that `x-agentsched-program` of an answer showed.
    `call_id` is the model's; without it the oldest open call of that tool is meant, in the
    `conversation` of that id (`x-agentsched-conversation`) where one is named. `expected_s` is how
    long the tool will still take, `took_s` how long it took. `closed` ends the program.
    """

    event: Literal["started", "progress", "finished", "closed"]
    program: str
    tool: str = ""
    call_id: str = ""
    conversation: str = ""
    expected_s: float | None = None
    took_s: float | None = None
    is_error: bool = False


class _Batch(msgspec.Struct):
    events: msgspec.Raw = msgspec.Raw()


_BATCH: Final = msgspec.json.Decoder(_Batch)
_LIST: Final = msgspec.json.Decoder(list[ToolReport])
_ONE: Final = msgspec.json.Decoder(ToolReport)


def decode_reports(body: bytes) -> list[ToolReport]:
    """A list of reports, an object with `events`, or one report alone.

    Raises:
        WireError: none of these, or too many.
    """
    if len(body) > _BYTES_MAX:
        raise WireError(f"more than {_BYTES_MAX} bytes of reports", status=413)
    try:
        if body.lstrip()[:1] == b"[":
            reports = _LIST.decode(body)
        else:
            events = _BATCH.decode(body).events
            reports = _LIST.decode(events) if events else [_ONE.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a report of a tool: {error}", code="bad_report") from error
    if len(reports) > _REPORTS_MAX:
        raise WireError(f"more than {_REPORTS_MAX} reports at once", status=413)
    return reports


class ToolReports:
    """Feeds reports to the scheduler, as far as they are about programs of their reporter."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._quota = HintQuota()

    async def post(self, request: web.Request) -> web.Response:
        """`POST tools`: 202 with counts. A wrong body is 400, an unknown program no error."""
        received = await receive(request, self._gateway.config.http)
        reports = decode_reports(received.body)
        tenant = self._gateway.tenant(received.headers, principal_of(request))
        refused = self._over_quota(tenant, len(reports), received)
        if refused is not None:
            return refused
        became = Counter(self.take(report, tenant=tenant) for report in reports)
        body = msgspec.json.encode({"accepted": became.pop("accepted", 0), "ignored": became})
        return web.Response(status=202, body=body, content_type="application/json")

    async def finish_session(self, request: web.Request) -> web.Response:
        """`POST /finish_session?session_id=ID`, by which clients of vllm-router end a session.

        One that is not known, or over already, is no error: the client need not know who is asked.
        """
        received = await receive(request, self._gateway.config.http)
        session = request.query.get("session_id", "")
        if not session:
            text = "The query lacks session_id: which one is over."
            raise WireError(text, code="missing_required_parameter", param="session_id")
        tenant = self._gateway.tenant(received.headers, principal_of(request))
        refused = self._over_quota(tenant, 1, received)
        if refused is not None:
            return refused
        became = self.take(ToolReport(event="closed", program=session), tenant=tenant)
        body = msgspec.json.encode({"finished": became == "accepted"})
        return web.Response(body=body, content_type="application/json")

    def _over_quota(self, tenant: TenantId, count: int, received: Received) -> web.Response | None:
        """The answer to who reports more than may be; None: it counts."""
        rate, now = self._gateway.config.auth.reports_per_s, self._gateway.host.now()
        wait = self._quota.take(tenant, count, rate=rate, now=now)
        if not wait:
            return None
        self._gateway.meters.count_tool_report("over_quota", count)
        text = "You report more tools than your share. Try again later."
        return Refusal(
            status=429, code="report_quota", message=text, retry_after_s=max(1, round(wait))
        ).response(Dialect.OTHER, {"x-request-id": received.request_id})

    def take(self, report: ToolReport, *, tenant: TenantId | None) -> str:
        """Feed one report; says what became of it. `tenant` None trusts the reporter."""
        outcome = self._take(report, tenant)
        self._gateway.meters.count_tool_report(outcome)
        return outcome

    def _take(self, report: ToolReport, tenant: TenantId | None) -> str:
        host = self._gateway.host
        program = self._program(report.program, tenant)
        if program is None:
            return "unknown_program"
        if report.event == "closed":
            host.feed(ProgramClosed(program=program.program, reason="said so"))
            return "accepted"
        event = _event(report, program)
        if event is None:
            return "no_tool"
        host.feed(event)
        return "accepted"

    def _program(self, name: str, tenant: TenantId | None) -> ProgramRecord | None:
        programs = self._gateway.host.scheduler.programs
        if tenant is None:
            return programs.get(ProgramId(name))
        # The name that the agent sends with its calls comes before the id that we showed it.
        index = self._gateway.index
        told = (index.program_id(tenant, index.clean(name)), ProgramId(name))
        found = (programs.get(program) for program in told)
        return next((p for p in found if p is not None and p.tenant == tenant), None)


def _event(report: ToolReport, program: ProgramRecord) -> Event | None:
    call = CallId(call_ref(report.call_id)) if report.call_id else None
    named = ToolName(clean_name(report.tool))
    talks = program.conversations
    talk = talks.get(ConversationId(report.conversation))
    conversation: ConversationId | None
    # An id says by itself which call is meant.
    found = _open_call(talks.values() if call or talk is None else (talk,), call, named)
    if found is None and call is not None:
        found = _answered_call(program, call)
    if found is not None:
        call, tool, conversation = found
    elif named:
        tool, conversation = named, _busy_last(program) if talk is None else talk.conversation
        call = call or _made_up(tool, program, talk)
    else:
        return None
    if report.event == "finished":
        return ToolFinished(
            program=program.program,
            call_id=call,
            tool=tool,
            conversation=conversation,
            took=_span(report.took_s),
            is_error=report.is_error,
        )
    return ToolStarted(
        program=program.program,
        call_id=call,
        tool=tool,
        conversation=conversation,
        expected=_span(report.expected_s),
    )


def _made_up(tool: ToolName, program: ProgramRecord, talk: ConversationRecord | None) -> CallId:
    """The id of a call that came without one and that no answer showed.

    After each answer another one, since a known call begins and ends but once; its start and its
    end get the same.
    """
    whose = f":{talk.conversation}" if talk is not None else ""
    answers = (talk or program).steps_done
    return CallId(f"report:{tool}{whose}" + (f"~{answers}" if answers > 1 else ""))


def _busy_last(program: ProgramRecord) -> ConversationId | None:
    """Whose a call is that nobody named: it paused for it last, or has gone on since it did.

    A quick tool's report is overtaken by its own next step. Who was done before waits for neither.
    """
    talks = program.conversations.values()
    last = max(talks, key=lambda talk: (talk.last_at, talk.conversation), default=None)
    return last.conversation if last is not None else None


def _open_call(
    talks: Iterable[ConversationRecord], call: CallId | None, tool: str
) -> tuple[CallId, ToolName, ConversationId] | None:
    """The call that is meant among those that the program waits for; the model named the tool."""
    for conversation in talks:
        for key, name in conversation.tools.items():
            is_meant = key == call if call else name == tool or name.startswith(tool + " ")
            if is_meant:
                return key, name, conversation.conversation
    return None


def _answered_call(
    program: ProgramRecord, call: CallId
) -> tuple[CallId, ToolName, ConversationId] | None:
    """A call that the program's next step overtook: under its other name it would be another tool
    to whoever learns how long tools take."""
    for conversation in program.conversations.values():
        name = conversation.answered.get(call)
        if name is not None:
            return call, name, conversation.conversation
    return None


def _span(value: float | None) -> Nanos | None:
    if value is None or not 0 <= value <= _SECONDS_MAX:
        return None
    return seconds(value)
