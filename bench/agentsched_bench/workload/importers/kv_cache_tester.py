"""kv-cache-tester (Weka, AgentX): anonymised Claude Code sessions as requests with prefix blocks.

`requests` are in order: `n` and `s` (streamed) calls, and `subagent` markers with calls of their
own. `think_time` is the client's pause *before* its request, `api_time` what the call took. Calls
inside of a marker are timed from the marker in the tester's own files and from the session's start
in the files that SemiAnalysis published; the times themselves tell which. Block ids of scope
`local` mean nothing outside of their file, so they get a scope of their own here. Requests that run
beside each other in one list are several agents', which their capture did not tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from agentsched_bench.workload.importers.base import ImportOptions
from agentsched_bench.workload.importers.blocks import Numbers, prefix_blocks, runs_of
from agentsched_bench.workload.importers.draft import Imported
from agentsched_bench.workload.importers.files import (
    InputFile,
    Names,
    OnError,
    Value,
    documents,
)
from agentsched_bench.workload.importers.flattened import Request, conversations, is_flattened
from agentsched_bench.workload.importers.loose import (
    Json,
    Object,
    as_count,
    as_list,
    as_name,
    as_object,
    as_objects,
    as_seconds,
    first,
    flat,
)
from agentsched_bench.workload.trace import (
    RecordedStep,
    RecordedTool,
    Recording,
    TraceError,
)

#: What tools did between two calls is known only as a whole.
TOOLS: Final = "(tools)"
_BLOCK: Final = 64


@dataclass(frozen=True, slots=True)
class KvCacheTester:
    """Reads kv-cache-tester traces, one session a file or a line."""

    name: str = "kv-cache-tester"
    title: str = "kv-cache-tester / Weka / AgentX JSON"

    def claims(self, head: Sequence[Any]) -> bool:
        value = as_object(next(iter(flat(head)), None))
        requests = as_objects(value.get("requests"))
        return "requests" in value and (
            "hash_id_scope" in value
            or "block_size" in value
            or any("hash_ids" in r for r in requests)
        )

    def read(
        self, files: Sequence[InputFile], options: ImportOptions, *, on_error: OnError
    ) -> Iterator[Imported]:
        numbers, scopes = Numbers(), Names()
        for file in files:
            for found in documents(file, on_error=on_error):
                value = as_object(found.value)
                yield from _session(
                    value,
                    file,
                    options,
                    on_error=on_error,
                    numbers=numbers,
                    scopes=scopes,
                    found=found,
                )


def _session(
    value: Object,
    file: InputFile,
    options: ImportOptions,
    *,
    on_error: OnError,
    numbers: Numbers,
    scopes: Names,
    found: Value,
) -> Iterator[Imported]:
    name = as_name(value.get("id"), default=file.path.name.split(".")[0])
    requests = as_objects(value.get("requests"))
    calls = [request for request in requests if request.get("type") != "subagent"]
    scope = as_name(value.get("hash_id_scope"), default="local")
    fields: dict[str, Any] = {
        "source": options.source or "kv-cache-tester",
        "workload": "coding",
        "block_size": as_count(value.get("block_size")) or _BLOCK,
        "hash_scope": scopes.of(name) if scope == "local" else None,
        "token_source": {"input": "recorded", "output": "recorded", "result": None},
        "is_cut": found.is_cut,
        "numbers": numbers,
    }
    own, *others = _agents(calls)
    start_s = _start_of(own)
    main = _recording(
        own,
        offset_s=start_s,
        session_id=name,
        agent="claude-code",
        model=_model(value, own),
        tool_tokens=as_count(value.get("tool_tokens")),
        system_tokens=as_count(value.get("system_tokens")),
        **fields,
    )
    if main is None:
        on_error(TraceError(f"{name}: no call with its tokens", path=file.path, line=found.line))
    else:
        yield Imported(recording=main)
    taken = {name}
    yield from _beside(others, owner=name, owner_start_s=start_s, taken=taken, fields=fields)
    for number, marker in enumerate(r for r in requests if r.get("type") == "subagent"):
        yield from _sub_agent(
            marker,
            number=number,
            owner=name,
            owner_start_s=start_s,
            has_owner=main is not None,
            taken=taken,
            fields=fields,
        )


def _sub_agent(
    marker: Object,
    *,
    number: int,
    owner: str,
    owner_start_s: float,
    has_owner: bool,
    taken: set[str],
    fields: dict[str, Any],
) -> Iterator[Imported]:
    calls, *others = _agents(
        [r for r in as_objects(marker.get("requests")) if r.get("type") != "subagent"]
    )
    kind = as_name(marker.get("subagent_type"), default="sub-agent")
    own = as_name(first(marker.get("agent_id"), marker.get("id")), default=f"agent_{number:03d}")
    name = f"{owner}/{own}"
    if name in taken:
        name = f"{name}-{number}"
    taken.add(name)
    started_s = as_seconds(marker.get("t")) or 0.0
    first_s = _start_of(calls)
    # Published files count from the session's start, the tester's own from the marker.
    begun_s = first_s if first_s >= started_s - 1.0 and first_s > 0 else started_s + first_s
    child = _recording(
        calls,
        offset_s=first_s,
        session_id=name,
        agent=f"claude-code/{kind}",
        model=_model(marker, calls),
        tool_tokens=as_count(marker.get("tool_tokens")),
        system_tokens=as_count(marker.get("system_tokens")),
        parent=owner if has_owner else None,
        parent_t_s=round(max(0.0, begun_s - owner_start_s), 6) if has_owner else None,
        **fields,
    )
    if child is not None:
        yield Imported(recording=child)
        owner, owner_start_s, has_owner = name, first_s, True
        yield from _beside(others, owner=name, owner_start_s=first_s, taken=taken, fields=fields)
    # What one without calls has started hangs on the next above.
    for index, inner in enumerate(
        r for r in as_objects(marker.get("requests")) if r.get("type") == "subagent"
    ):
        yield from _sub_agent(
            inner,
            number=index,
            owner=owner,
            owner_start_s=owner_start_s,
            has_owner=has_owner,
            taken=taken,
            fields=fields,
        )


def _agents(calls: Sequence[Object]) -> list[Sequence[Object]]:
    """The calls of each agent, the main one's first: of one, unless some run beside others.

    Who asked once before that may have made a title. Think times are from the request that stands
    before, whosever that is: there times tell the pauses.
    """
    counted = [call for call in calls if _tokens(call) is not None]
    told = [(request, call) for call in counted if (request := _request(call)) is not None]
    told.sort(key=lambda pair: pair[0].begun_s)
    requests = [request for request, _ in told]
    if len(told) < len(counted) or not is_flattened(requests):
        return [calls]
    found = conversations(requests)
    main = next((at for at, places in enumerate(found) if len(places) > 1), 0)
    found.insert(0, found.pop(main))
    return [
        [{k: v for k, v in told[place][1].items() if k != "think_time"} for place in places]
        for places in found
    ]


def _request(call: Object) -> Request | None:
    begun_s = as_seconds(call.get("t"))
    took_s = as_seconds(first(call.get("api_time"), call.get("llm_time")))
    blocks = as_list(call.get("hash_ids"))
    if begun_s is None or took_s is None or not blocks:
        return None
    model = as_name(call.get("model"))
    return Request(begun_s=begun_s, ended_s=begun_s + took_s, blocks=blocks, model=model)


def _beside(
    agents: Sequence[Sequence[Object]],
    *,
    owner: str,
    owner_start_s: float,
    taken: set[str],
    fields: dict[str, Any],
) -> Iterator[Imported]:
    """Agents that were written down as parts of their owner."""
    for number, calls in enumerate(agents, start=1):
        name = f"{owner}/beside-{number}"
        taken.add(name)
        start_s = _start_of(calls)
        recording = _recording(
            calls,
            offset_s=start_s,
            session_id=name,
            agent="claude-code/sub-agent",
            model=_model({}, calls),
            parent=owner,
            parent_t_s=round(max(0.0, start_s - owner_start_s), 6),
            **fields,
        )
        if recording is not None:
            yield Imported(recording=recording)


def _start_of(calls: Sequence[Object]) -> float:
    return next((t for call in calls if (t := as_seconds(call.get("t"))) is not None), 0.0)


def _model(value: Object, calls: Sequence[Object]) -> str | None:
    models = as_list(value.get("models"))
    return (
        as_name(first(calls[0].get("model") if calls else None, models[0] if models else None))
        or None
    )


def _recording(
    calls: Sequence[Object],
    *,
    offset_s: float,
    block_size: int,
    model: str | None,
    numbers: Numbers,
    **fields: Any,
) -> Recording | None:
    rows = [(call, tokens) for call in calls if (tokens := _tokens(call)) is not None]
    if not rows:
        return None
    steps: list[RecordedStep] = []
    seen: list[list[int]] = []
    for index, (call, (prompt, output)) in enumerate(rows):
        following = rows[index + 1][0] if index + 1 < len(rows) else None
        names = map(_block, as_list(call.get("hash_ids")))
        blocks = [numbers.block(name) for name in names if name is not None]
        is_compared = bool(blocks) and any(seen)
        common = max((prefix_blocks(blocks, earlier) for earlier in seen[-16:]), default=0)
        seen.append(blocks)
        before = rows[index - 1][1] if index else None
        t_s = as_seconds(call.get("t"))
        steps.append(
            RecordedStep(
                step=index,
                input_tokens=prompt,
                output_tokens=output,
                t_s=None if t_s is None else round(max(0.0, t_s - offset_s), 6),
                new_input_tokens=_new(prompt, before, common=common, blocks=seen, size=block_size),
                prefix_tokens=min(common * block_size, prompt) if is_compared else None,
                llm_s=as_seconds(first(call.get("api_time"), call.get("llm_time"))),
                ttft_s=as_seconds(call.get("ttft")),
                hash_ids=runs_of(blocks) if blocks else None,
                model=_own_model(call, model),
                **_pause(call, following),
            )
        )
    return Recording(steps=tuple(_clocked(steps)), block_size=block_size, model=model, **fields)


def _block(name: Json) -> int | str | None:
    """A block's name: a small number, or a hash of any kind."""
    if isinstance(name, float) and name.is_integer():
        return int(name)
    is_name = isinstance(name, int | str) and not isinstance(name, bool)
    return name if is_name and name != "" else None


def _tokens(call: Object) -> tuple[int, int] | None:
    prompt = as_count(first(call.get("in"), call.get("input_length"), call.get("input_tokens")))
    output = as_count(first(call.get("out"), call.get("output_length"), call.get("output_tokens")))
    return None if not prompt else (prompt, output or 0)


def _own_model(call: Object, usual: str | None) -> str | None:
    own = as_name(call.get("model")) or None
    return own if own != usual else None


def _new(
    prompt: int,
    before: tuple[int, int] | None,
    *,
    common: int,
    blocks: Sequence[list[int]],
    size: int,
) -> int | None:
    """What came from outside, if all of the prompt before was kept (but for its last block)."""
    if before is None or len(blocks) < 2:
        return None
    is_kept = prefix_blocks(blocks[-1], blocks[-2]) >= len(blocks[-2]) - 1
    if blocks[-2] and not is_kept:
        return None
    new = prompt - before[0] - before[1]
    return new if new >= 0 else None


def _pause(call: Object, following: Object | None) -> dict[str, Any]:
    """The pause after a call is the think time of the next; what filled it is in its input."""
    if following is None:
        return {}
    gap_s = as_seconds(following.get("think_time"))
    inputs = {as_name(kind) for kind in as_list(following.get("input_types"))}
    is_tool = "tool_result" in inputs or call.get("stop") == "tool_use"
    if gap_s is None:
        t_s, next_s = as_seconds(call.get("t")), as_seconds(following.get("t"))
        took = as_seconds(call.get("api_time"))
        if t_s is not None and next_s is not None and took is not None:
            gap_s = max(0.0, round(next_s - t_s - took, 6))
    tools = (RecordedTool(name=TOOLS, duration_s=gap_s),) if is_tool else ()
    kind = "tool" if is_tool else ("user" if inputs else "unknown")
    return {"gap_s": gap_s, "gap_kind": kind, "tools": tools}


def _clocked(steps: Sequence[RecordedStep]) -> Iterator[RecordedStep]:
    """Times that never go back."""
    clock = 0.0
    for step in steps:
        if step.t_s is not None and step.t_s < clock:
            yield msgspec.structs.replace(step, t_s=clock)
            continue
        clock = step.t_s if step.t_s is not None else clock
        yield step
