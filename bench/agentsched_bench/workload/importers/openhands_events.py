"""OpenHands' events: what one is, and those of the new SDK in the words of the old ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentsched_bench.workload.importers.chat import Usage, read_usage
from agentsched_bench.workload.importers.files import InputFile, values
from agentsched_bench.workload.importers.loose import (
    Json,
    Object,
    as_count,
    as_list,
    as_name,
    as_object,
    as_objects,
    as_seconds,
    as_text,
    first,
)

_NUMBER: Final = re.compile(r"\d+")
_SOURCES: Final = ("agent", "user", "environment", "hook", None)
_KINDS: Final = re.compile(r"(Event|Observation|Condensation|CondensationRequest)\Z")
_COPIES: Final = "event_cache"
_SUB_AGENTS: Final = "subagents"
#: Where the events of a run are, by the program that wrote it down.
_HISTORIES: Final = ("history", "trajectory", "items", "events")


def is_event(value: Json) -> bool:
    """Whether this is one event, of either SDK."""
    event = as_object(value)
    if "source" not in event or event["source"] not in _SOURCES:
        return False
    if "kind" in event:
        return _KINDS.search(as_name(event.get("kind"))) is not None
    return "action" in event or "observation" in event


def history_of(value: Json) -> list[Json] | None:
    """The events of a run, or pairs of them; None if this is no run."""
    if isinstance(value, list):
        return value if any(map(is_event, as_objects(value)[:5])) else None
    record = as_object(value)
    for key in _HISTORIES:
        rows = as_list(record.get(key))
        flat = [part for row in rows[:5] for part in (row if isinstance(row, list) else [row])]
        if any(map(is_event, flat)):
            return rows
    return None


@dataclass(frozen=True, slots=True)
class Group:
    """Files that are read together: one, or a folder that has a file for each event."""

    name: str
    files: tuple[InputFile, ...]

    @property
    def folder(self) -> Path:
        """Where the new SDK keeps this conversation."""
        return self.files[0].path.parent.parent

    @property
    def owner(self) -> Path | None:
        """Where it keeps the conversation that started this one, if one did."""
        above = self.folder.parent
        is_kept = _is_folder_of_events(self.files[0].path)
        return above.parent if is_kept and above.name == _SUB_AGENTS else None

    def state(self) -> Object:
        """What the new SDK keeps beside its folder of events: tokens and latencies."""
        path = self.folder / "base_state.json"
        if not _is_folder_of_events(self.files[0].path) or not path.is_file():
            return {}
        found = next(values(InputFile(path=path), on_error=lambda _: None), None)
        return {} if found is None else as_object(found.value)


def groups_of(files: Sequence[InputFile]) -> Iterator[Group]:
    """Files in the order given; those of one folder of events together, by their numbers.

    The older SDK keeps copies of its events beside them: those are left out.
    """
    folders: dict[Path, list[InputFile]] = {}
    for file in files:
        if file.path.parent.name == _COPIES and not file.is_named:
            continue
        if _is_folder_of_events(file.path):
            folders.setdefault(file.path.parent, []).append(file)
        else:
            yield Group(file.name, (file,))
    for folder, found in folders.items():
        yield Group(folder.parent.name or "events", tuple(sorted(found, key=_place)))


def _is_folder_of_events(path: Path) -> bool:
    return path.parent.name == "events" and _NUMBER.search(path.name) is not None


def _place(file: InputFile) -> tuple[int, str]:
    found = _NUMBER.search(file.path.name)
    return (int(found.group()) if found else 0, file.path.name)


class Metrics:
    """Tokens and latencies by the id of the model's response, from wherever a run has them."""

    def __init__(self, record: Object, events: Sequence[Object]) -> None:
        self.usages: dict[str, Usage] = {}
        self.latencies: dict[str, float | None] = {}
        self._take(record.get("metrics"))
        self._take_stats(record.get("stats"))
        for event in events:
            if event.get("kind") == "ConversationStateUpdateEvent":
                value = as_object(event.get("value"))
                self._take_stats(first(value.get("stats"), value))

    def _take_stats(self, value: Json) -> None:
        stats = as_object(value)
        by_use = first(stats.get("usage_to_metrics"), stats.get("service_to_metrics"))
        for metrics in as_object(by_use).values():
            self._take(metrics)

    def _take(self, value: Json) -> None:
        metrics = as_object(value)
        for row in as_objects(metrics.get("response_latencies")):
            self.latencies[as_name(row.get("response_id"))] = as_seconds(row.get("latency"))
        for row in as_objects(metrics.get("token_usages")):
            self.usages[as_name(row.get("response_id"))] = _usage(row)


def _usage(row: Object) -> Usage:
    read, made = as_count(row.get("cache_read_tokens")), as_count(row.get("cache_write_tokens"))
    told = {"cache_read_input_tokens": read, "cache_creation_input_tokens": made}
    usage = read_usage(told | row)
    return Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=read or None,
        reasoning_tokens=usage.reasoning_tokens or as_count(row.get("reasoning_tokens")) or 0,
    )


def modern(event: Object) -> Object:
    """An event of the new SDK in the words of the old one; others as they are."""
    common = {key: event.get(key) for key in ("id", "timestamp", "source")}
    match as_name(event.get("kind")):
        case "":
            return event
        case "SystemPromptEvent":
            texts = (event.get("system_prompt"), event.get("dynamic_context"))
            prompt = "\n".join(text for text in map(as_text, texts) if text)
            return common | {
                "action": "system",
                "args": {"content": prompt, "tools": event.get("tools")},
            }
        case "MessageEvent":
            return common | _message(event)
        case "ActionEvent":
            return common | _action(event)
        case "ObservationEvent" | "AgentErrorEvent" | "UserRejectObservation":
            return common | _observation(event)
        case "Condensation" | "CondensationEvent":
            keys = ("summary", "forgotten_event_ids")
            args = {key: event.get(key) for key in keys}
            return common | {"action": "condensation", "args": args}
        case _:
            return {}


def _message(event: Object) -> Object:
    message = as_object(event.get("llm_message"))
    source = "user" if message.get("role") == "user" else "agent"
    # What skills and the repository have to say of it goes behind the words themselves.
    texts = (message.get("content"), event.get("extended_content"))
    return {
        "action": "message",
        "source": source,
        "args": {"content": "\n".join(text for text in map(as_text, texts) if text)},
        "llm_response_id": event.get("llm_response_id"),
    }


def _action(event: Object) -> Object:
    call = event.get("tool_call")
    metadata: dict[str, Any] = {
        "function_name": as_name(event.get("tool_name"), default="tool"),
        "tool_call_id": event.get("tool_call_id"),
        "model_response": {"id": event.get("llm_response_id")},
        "tool_call": call if isinstance(call, dict) else None,
    }
    arguments = {k: v for k, v in as_object(event.get("action")).items() if k != "kind"}
    # A tool may be called `delegate` or `message`: that is no action of the old words.
    return {
        "action": "run",
        "args": arguments | {"thought": as_text(event.get("thought"))},
        "tool_call_metadata": metadata,
    }


def _observation(event: Object) -> Object:
    seen = as_object(event.get("observation"))
    text = as_text(first(seen.get("content"), seen.get("output"), event.get("error")))
    # Rules of the path that was touched go behind the result.
    texts = (text or as_text(event.get("rejection_reason")), as_text(event.get("extended_content")))
    code = first(as_object(seen.get("metadata")).get("exit_code"), seen.get("exit_code"))
    is_error = event.get("kind") == "AgentErrorEvent" or seen.get("is_error") is True
    return {
        "observation": "error" if is_error else "run",
        "content": "\n".join(filter(None, texts)),
        "cause": event.get("action_id"),
        "tool_call_metadata": {"tool_call_id": event.get("tool_call_id")},
        "extras": {"metadata": {"exit_code": code}},
    }
