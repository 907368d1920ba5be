"""What an engine gets: the client's bytes with a few top-level fields put in or taken out.

Everything else stays as it was sent, to the byte: white space, the order of keys, how numbers are
spelled. A body in which nothing changes is the very object that came in.

What is taken out before an engine sees it, unless the caller keeps it:

- `agentsched`, our own object, and the fields in which other schedulers' clients tell a program
  (`nvext`, `program_id`, `job_id`, `is_last_step`, `session_params`, `litellm_session_id`). Stock
  vLLM only ignores them, other engines refuse what they do not know, and they have been read by
  then;
- `priority`, which was read likewise: it counts as far as its tenant may set it, and engines are
  told theirs by the proxy alone;
- values in `vllm_xargs` that stock vLLM answers with 400: objects (`agentic_context`), null, and
  lists that hold such or lists;
- names in `vllm_xargs` by which our plugin knows whose a request is and how long to keep it
  (`agentsched_`...): those are the proxy's to say.

`session_id`, `user`, `metadata`, `prompt_cache_key` and whatever we do not know stay: engines use
them, or they are not ours to judge.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

import msgspec
from msgspec import Raw

from agentsched.proxy.fields import BROKEN, first_byte, read_object
from agentsched.proxy.request import ParsedRequest
from agentsched.proxy.spans import walk_fields

#: Fields that are for schedulers, not for engines.
SCHEDULER_FIELDS: Final = (
    "agentsched",
    "nvext",
    "program_id",
    "job_id",
    "is_last_step",
    "session_params",
    "litellm_session_id",
    "priority",
)

#: The plugin's own names in `vllm_xargs`; engines are told them by the proxy alone.
_PLUGIN_PREFIX: Final = "agentsched_"

_ENCODE: Final = msgspec.json.Encoder().encode
_ITEMS: Final = msgspec.json.Decoder(list[Raw])
_EMPTY_OBJECT: Final = re.compile(rb"[ \t\r\n]*\{[ \t\r\n]*\}[ \t\r\n]*")
# The first bytes of an object, a list and null.
_REFUSED_ITEMS: Final = frozenset(b"{[n")
_REFUSED_VALUES: Final = frozenset(b"{n")


def splice(
    request: ParsedRequest, *, put: Mapping[str, object], drop: Collection[str] = ()
) -> bytes:
    """The body with the fields `put` set and the fields `drop` removed, all else byte for byte.

    A field that is there is replaced in its place, a new one goes before the closing brace; what is
    in both `put` and `drop` is put. Values are anything that msgspec encodes, `Raw` as it is. A
    body that is no JSON object comes back as it is.
    """
    fields = request.fields
    encoded = {name: _ENCODE(value) for name, value in put.items()}
    changed = {
        name: value
        for name, value in encoded.items()
        if name not in fields or bytes(fields[name]) != value
    }
    dropped = {name for name in drop if name in fields and name not in encoded}
    if not (changed or dropped) or not _is_object(request):
        return request.body
    body = request.body
    if dropped or not changed.keys().isdisjoint(fields):
        body = _rewrite(request, changed, dropped)
    added = [_ENCODE(name) + b":" + value for name, value in changed.items() if name not in fields]
    if not added:
        return body
    brace = body.rindex(b"}")
    lead = b"," if len(fields) > len(dropped) else b""
    return b"".join((body[:brace], lead, b",".join(added), body[brace:]))


def _is_object(request: ParsedRequest) -> bool:
    return bool(request.fields) or _EMPTY_OBJECT.fullmatch(request.body) is not None


def _rewrite(request: ParsedRequest, changed: Mapping[str, bytes], dropped: set[str]) -> bytes:
    """Replace and remove. A comma goes with the field after it; the first one kept needs none."""
    view = memoryview(request.body)
    spans = walk_fields(request.body, request.fields)
    pieces: list[bytes | memoryview] = [view[: spans[0].start]]
    end = spans[0].start
    is_first = True
    for span in spans:
        if span.name not in dropped:
            if not is_first:
                pieces.append(view[end : span.start])
            is_first = False
            value = changed.get(span.name)
            if value is None:
                pieces.append(view[span.start : span.end])
            else:
                pieces.append(view[span.start : span.value])
                pieces.append(value)
        end = span.end
    pieces.append(view[end:])
    return b"".join(pieces)


def forward_body(
    request: ParsedRequest,
    *,
    fields: Mapping[str, object],
    keep: Collection[str] = (),
    drop: Collection[str] = (),
) -> bytes:
    """The body that an engine gets.

    `fields` are the engine's own (`priority`, `session_id`, `cache_salt`, `vllm_xargs`): they win
    over the client's, and in `vllm_xargs` name by name. A streamed chat or completion is asked for
    its usage where the client did not (then `wants_usage` is false, and the tap must hide it).
    Removed are fields for schedulers (see the module) but for those in `keep`, and those in `drop`.
    """
    put = dict(fields)
    dropped = {*SCHEDULER_FIELDS}.difference(keep).union(drop)
    if not request.wants_usage:
        put["stream_options"] = _usage_options(request)
    arguments = _engine_arguments(request.fields.get("vllm_xargs"), put.pop("vllm_xargs", None))
    if arguments is not None:
        if arguments:
            put["vllm_xargs"] = arguments
        else:
            dropped.add("vllm_xargs")
    return splice(request, put=put, drop=dropped)


def _usage_options(request: ParsedRequest) -> dict[str, object]:
    raw = request.fields.get("stream_options")
    options: dict[str, object] = {}
    if raw is not None and first_byte(raw) == ord("{"):
        options.update(read_object(raw))
    # Only effective together with include_usage, so the client would not have got it.
    options.pop("continuous_usage_stats", None)
    options["include_usage"] = True
    return options


def _engine_arguments(raw: Raw | None, ours: object) -> dict[str, object] | None:
    """The `vllm_xargs` to send in place of the client's; None where they may stay as they are."""
    theirs: dict[str, Raw] = {}
    if raw is not None and first_byte(raw) != ord("n"):
        try:
            theirs = read_object(raw)
        except BROKEN:
            if ours is None:
                return None  # no object: the engine will say so
    kept: dict[str, object] = {
        name: value
        for name, value in theirs.items()
        if not name.startswith(_PLUGIN_PREFIX) and _is_engine_argument(value)
    }
    if isinstance(ours, Mapping):
        kept.update(ours)
    elif len(kept) == len(theirs):
        return None
    return kept


def _is_engine_argument(value: Raw) -> bool:
    kind = first_byte(value)
    if kind in _REFUSED_VALUES:
        return False
    if kind != ord("["):
        return True
    return not any(first_byte(item) in _REFUSED_ITEMS for item in _ITEMS.decode(value))
