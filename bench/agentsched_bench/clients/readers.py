"""Reads recorded client requests and says whose each request really was."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from agentsched.model import StepClass, WireError
from agentsched.proxy.answer import Answer, AnsweredCall
from agentsched.proxy.request import Dialect, ParsedRequest
from agentsched.proxy.wire import parse_request
from agentsched_bench.clients.stripping import is_harmless, without_ids

_DIALECTS: Final = {
    "/v1/chat/completions": Dialect.CHAT,
    "/v1/completions": Dialect.COMPLETIONS,
    "/v1/responses": Dialect.RESPONSES,
    "/v1/messages": Dialect.MESSAGES,
    "/v1/messages/count_tokens": Dialect.COUNT_TOKENS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Whose a request really was. `conversation` is one agent's line in the program."""

    program: str
    conversation: str
    step_class: StepClass


@dataclass(slots=True, kw_only=True)
class Recorded:
    """One recorded request and its outcome; `answer` is None where none was recorded."""

    client: str
    case: str
    number: int
    at: float
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    truth: Truth
    answer: Answer | None = None
    is_abandoned: bool = False
    handed_out: tuple[str, ...] = ()
    label: tuple[str, ...] = field(default=())

    def parsed(self, *, with_ids: bool) -> ParsedRequest:
        """The request as the data plane would parse it."""
        body = self.body if with_ids else without_ids(self.body)
        return parse(self.path, json.dumps(body, ensure_ascii=False).encode())

    def sent_headers(self, *, with_ids: bool) -> dict[str, str]:
        if with_ids:
            return self.headers
        return {k: v for k, v in self.headers.items() if is_harmless(k)}


def parse(path: str, body: bytes) -> ParsedRequest:
    """Parse a body as the data plane does; what it would refuse has no fields."""
    dialect = _DIALECTS.get(path.partition("?")[0], Dialect.OTHER)
    try:
        return parse_request(dialect, body)
    except WireError:
        return ParsedRequest(dialect=dialect, body=body)


def read_client(path: Path) -> list[Recorded]:
    """All requests of one client's file, cases in the order in which they must have happened."""
    cases: dict[str, list[Recorded]] = {}
    outcomes: dict[tuple[str, int], list[dict[str, Any]]] = {}
    client = path.name.removesuffix(".gz").removesuffix(".jsonl")
    for record in _records(path):
        case = str(record.get("case", ""))
        if "resp_to" in record:
            outcomes.setdefault((case, int(record["resp_to"])), []).append(record)
        else:
            cases.setdefault(case, []).append(_recorded(client, case, record))
    for case, requests in cases.items():
        for request in requests:
            _conclude(request, outcomes.get((case, request.number), []))
    judge(cases)
    return [request for case in _in_order(cases) for request in cases[case]]


def _records(path: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _recorded(client: str, case: str, record: Mapping[str, Any]) -> Recorded:
    body = record.get("body")
    if not isinstance(body, dict):
        body = {}
        raw = record.get("body_raw")
        if isinstance(raw, str) and raw.startswith("{"):
            body = json.loads(raw)
    return Recorded(
        client=client,
        case=case,
        number=int(record["i"]),
        at=float(record.get("t", 0.0)),
        method=str(record.get("method", "POST")),
        path=str(record.get("path", "")),
        headers={str(k).lower(): str(v) for k, v in record.get("headers", [])},
        body=body,
        truth=Truth(program=case, conversation="", step_class=StepClass.STEP),
    )


def _conclude(request: Recorded, outcomes: Sequence[Mapping[str, Any]]) -> None:
    """What became of a request: its answer, or that it was cut, refused or given up."""
    broken = any({"cut", "client_gone", "gone_after", "stall"} & o.keys() for o in outcomes)
    for outcome in outcomes:
        if outcome.get("status") != 200 or "text" not in outcome:
            continue
        ids = [str(c) for c in outcome.get("call_ids") or ()]
        calls = [
            AnsweredCall(call_id=call_id, name=str(name), arguments=str(arguments))
            for call_id, (name, arguments) in zip(ids, outcome.get("calls") or (), strict=False)
        ]
        request.label = tuple(str(part) for part in outcome.get("lab") or ())
        request.handed_out = () if broken else tuple(ids)
        request.answer = Answer(
            response_id=str(outcome.get("rid") or ""),
            text="" if broken else str(outcome.get("text") or ""),
            calls=() if broken else tuple(calls),
            is_complete=not broken,
        )
    request.is_abandoned = broken or (request.answer is None and bool(outcomes))


# -- truth -----------------------------------------------------------------------------------------


def judge(cases: Mapping[str, Sequence[Recorded]]) -> None:
    """Set the truth of every request, by its client's ids and by what only a judge may read."""
    for requests in cases.values():
        starts: dict[str, tuple[int, dict[str, Any]]] = {}
        for request in requests:
            truth = _truth(request)
            if truth.conversation.startswith("sub:"):
                count, first = starts.get(truth.conversation, (0, {}))
                if not any(_call_ids(request.body)) and request.body != first:
                    count, first = count + 1, request.body
                elif not any(_call_ids(request.body)) and count and not _was_cut(requests, request):
                    count += 1  # the same sub-agent is called for again
                starts[truth.conversation] = (count, first)
                truth = replace(truth, conversation=f"{truth.conversation}:{count}")
            request.truth = truth
    roots = _roots([r for requests in cases.values() for r in requests])
    for requests in cases.values():
        for request in requests:
            program = request.truth.program
            while program in roots and roots[program] != program:
                program = roots[program]
            request.truth = Truth(
                program=program,
                conversation=request.truth.conversation,
                step_class=request.truth.step_class,
            )


def _was_cut(requests: Sequence[Recorded], request: Recorded) -> bool:
    """Whether an earlier request with this body failed, so that this one is a retry."""
    return any(
        r.body == request.body and r.is_abandoned for r in requests if r.number < request.number
    )


def _truth(request: Recorded) -> Truth:
    headers, body = request.headers, request.body
    main = "sub:" + ":".join(request.label) if request.label[:1] == ("SUB",) else "main"
    program, conversation = request.case, main
    is_subagent = main != "main"
    if session := headers.get("x-claude-code-session-id"):
        agent = headers.get("x-claude-code-agent-id")
        program, conversation, is_subagent = session, agent or "main", bool(agent)
    elif thread := headers.get("thread-id"):
        program, conversation = headers.get("session-id", thread), thread
        is_subagent = "x-openai-subagent" in headers
    elif session := headers.get("x-session-id"):
        program, conversation = session, session
        is_subagent = "x-parent-session-id" in headers
    elif session := headers.get("x-litellm-session-id"):
        program, conversation = session, session
        is_subagent = body.get("prompt_cache_key", session) != session
    elif key := body.get("prompt_cache_key"):
        program, conversation = key, key
    step_class = _class(request, is_subagent=is_subagent)
    if step_class is StepClass.AUXILIARY:
        conversation = "auxiliary"
    return Truth(program=program, conversation=conversation, step_class=step_class)


def _class(request: Recorded, *, is_subagent: bool) -> StepClass:
    """The class, by signs that identification does not rest on alone."""
    headers, body = request.headers, request.body
    path = request.path.partition("?")[0]
    if path.endswith("count_tokens"):
        return StepClass.TOKEN_COUNT
    if path not in _DIALECTS:
        return StepClass.PROBE
    text = json.dumps(body)
    if "CONTEXT CHECKPOINT COMPACTION" in text[-8_000:] and not body.get("tools"):
        return StepClass.COMPACTION
    if headers.get("x-claude-code-request-class") == "compaction" or any(
        sign in text[-12_000:] for sign in ("<analysis> block followed by",)
    ):
        return StepClass.COMPACTION
    if not body.get("tools"):
        for sign in ("context-aware state summary", "context summarization agent"):
            if sign in text:
                return StepClass.COMPACTION
        if str(body.get("model", "")).endswith(("-small", "-weak")):
            return StepClass.AUXILIARY
        if '"title"' in text and "json_schema" in text:
            return StepClass.AUXILIARY
    return StepClass.SUBAGENT if is_subagent else StepClass.STEP


def _roots(requests: Sequence[Recorded]) -> dict[str, str]:
    """A sub-agent's own id -> its parent's."""
    roots: dict[str, str] = {}
    for request in requests:
        own = request.headers.get("x-session-id") or request.headers.get("x-litellm-session-id")
        parent = request.headers.get("x-parent-session-id")
        if own and not parent and "x-litellm-session-id" in request.headers:
            parent = request.body.get("prompt_cache_key")
        if own and parent and parent != own:
            roots[own] = parent
    return roots


def families(requests: Sequence[Recorded]) -> dict[str, str]:
    """Programs that share a history, each by the name of the first: forks and resumed transcripts.

    Without ids nothing tells a fork from its origin's next step: both begin with what the origin
    was told and answered.
    """
    owner: dict[str, str] = {}
    family: dict[str, str] = {}
    for request in requests:
        program = request.truth.program
        family.setdefault(program, program)
        for call_id in _call_ids(request.body):
            if call_id in owner and family[program] == program:
                family[program] = family[owner[call_id]]
        for text in _long_assistant_texts(request.body):
            known = owner.get(text)
            if known is not None and family[program] == program:
                family[program] = family[known]
        for call_id in request.handed_out:
            owner.setdefault(call_id, program)
        if request.answer is not None and not request.handed_out:
            text = request.answer.text.strip()
            if len(text) >= 48:
                owner.setdefault(text, program)
    return family


def _call_ids(body: Mapping[str, Any]) -> Iterator[str]:
    for item in body.get("messages") or body.get("input") or ():
        if not isinstance(item, dict):
            continue
        for call in item.get("tool_calls") or ():
            yield str(call.get("id"))
        if item.get("type") == "function_call":
            yield str(item.get("call_id"))
        content = item.get("content")
        for block in content if isinstance(content, list) else ():
            if isinstance(block, dict) and block.get("type") == "tool_use":
                yield str(block.get("id"))


def _long_assistant_texts(body: Mapping[str, Any]) -> Iterator[str]:
    for item in body.get("messages") or ():
        if isinstance(item, dict) and item.get("role") == "assistant":
            content = item.get("content")
            if isinstance(content, str) and len(content.strip()) >= 48:
                yield content.strip()


def _in_order(cases: Mapping[str, Sequence[Recorded]]) -> list[str]:
    """Cases so that a call id is handed out before it is used; `x-after` follows every `x-…`."""
    owner = {c: case for case, requests in cases.items() for r in requests for c in r.handed_out}
    before: dict[str, set[str]] = {case: set() for case in cases}
    for case, requests in cases.items():
        for request in requests:
            for call_id in _call_ids(request.body):
                if owner.get(call_id, case) != case:
                    before[case].add(owner[call_id])
        if case.endswith("-after"):
            stem = case.removesuffix("-after")
            before[case] |= {c for c in cases if c.startswith(stem) and c != case}
    done: list[str] = []
    waiting = list(cases)
    while waiting:
        ready = next((c for c in waiting if before[c] <= set(done)), waiting[0])
        waiting.remove(ready)
        done.append(ready)
    return done
