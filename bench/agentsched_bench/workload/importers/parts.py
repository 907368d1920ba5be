"""Messages in Gemini's form, as Gemini CLI and its forks keep them: a role, and parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agentsched_bench.workload.importers.chat import Usage, arguments_text
from agentsched_bench.workload.importers.loose import (
    Json,
    Object,
    as_count,
    as_name,
    as_object,
    as_objects,
    as_text,
    clean,
    first,
)
from agentsched_bench.workload.trace import RecordedToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a tool gave back. `call_id` is empty where the part does not say whose it is."""

    call_id: str
    text: str
    is_error: bool


def said_in(parts: Json) -> str:
    """The spoken text of a message: without thoughts, calls and results."""
    spoken = [
        clean(part["text"])
        for part in as_objects(parts)
        if isinstance(part.get("text"), str) and not part.get("thought")
    ]
    return "\n".join(spoken) if isinstance(parts, list) else as_text(parts)


def calls_in(parts: Json) -> list[RecordedToolCall]:
    return [
        RecordedToolCall(
            id=as_name(call.get("id"), default=f"call_{index}"),
            name=as_name(call.get("name"), default="tool"),
            arguments=arguments_text(call.get("args")),
        )
        for index, call in enumerate(_inner(parts, "functionCall"))
    ]


def results_in(parts: Json) -> list[Result]:
    found: list[Result] = []
    for given in _inner(parts, "functionResponse"):
        response = as_object(given.get("response"))
        error = response.get("error")
        content = first(response.get("output"), error, response.get("result"))
        text = as_text(content) or ("" if content == "" else arguments_text(response))
        call_id = as_name(given.get("id"))
        found.append(Result(call_id=call_id, text=text, is_error=error is not None))
    return found


def _inner(parts: Json, key: str) -> Iterator[Object]:
    for part in as_objects(parts):
        if isinstance(part.get(key), dict):
            yield part[key]


def usage_of(value: Json) -> Usage:
    """A `usageMetadata`. Thoughts are counted beside the answer or within: the total says which."""
    usage = as_object(value)
    prompt = as_count(usage.get("promptTokenCount"))
    answer = as_count(usage.get("candidatesTokenCount"))
    thoughts = as_count(usage.get("thoughtsTokenCount")) or 0
    total = as_count(usage.get("totalTokenCount"))
    is_within = prompt is not None and answer is not None and total == prompt + answer
    return Usage(
        input_tokens=prompt or None,
        output_tokens=answer if answer is None or is_within else answer + thoughts,
        cached_tokens=as_count(usage.get("cachedContentTokenCount")),
        reasoning_tokens=thoughts,
    )
