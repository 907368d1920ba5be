"""The top level of a JSON body: its fields raw, the items of one list told apart, in one pass.

Bodies of agents are long and nearly all of them is message text, so one pass over the bytes must
do. The common case knows every field by name and reads them together with the items of the list
(`_read_known`); anything unusual, wrong or doubled is read again field by field (`_read_any`),
which is where all errors come from. Both give the same fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw

from agentsched.model import WireError
from agentsched.proxy.spans import SpanMismatch, array_end, walk, walk_fields

# What the decoder raises for bytes that are not what they should be.
BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

# Fields that clients send and engines know. A name that is missing here costs a second pass over
# the body, nothing else. The usual ones come first: the decoder finds neighbours fastest.
_KNOWN_NAMES: Final = (
    "model messages system input instructions prompt tools metadata max_tokens thinking"
    " context_management output_config stream stream_options tool_choice parallel_tool_calls"
    " reasoning store include prompt_cache_key client_metadata temperature top_p top_k min_p n"
    " stop stop_sequences seed max_completion_tokens max_output_tokens max_tool_calls"
    " reasoning_effort response_format frequency_penalty presence_penalty repetition_penalty"
    " logit_bias logprobs top_logprobs user safety_identifier service_tier verbosity modalities"
    " prediction audio web_search_options functions function_call text truncation"
    " previous_response_id conversation background prompt_cache_retention suffix echo best_of"
    " prompt_embeds input_type encoding_format dimensions betas container mcp_servers speed"
    " cache_control safeguards agentsched vllm_xargs nvext program_id job_id is_last_step"
    " session_params session_id user_id litellm_session_id request_id priority cache_salt"
    " kv_transfer_params ec_transfer_params kv_hints documents chat_template"
    " chat_template_kwargs add_generation_prompt continue_final_message add_special_tokens"
    " mm_processor_kwargs media_io_kwargs structured_outputs ignore_eos min_tokens"
    " skip_special_tokens spaces_between_special_tokens stop_token_ids bad_words"
    " allowed_token_ids include_stop_str_in_output include_reasoning thinking_token_budget"
    " use_beam_search length_penalty truncate_prompt_tokens prompt_logprobs return_token_ids"
    " return_tokens_as_token_ids extra_body enable_thinking"
)

_ABSENT: Final = Raw()
_ANY: Final = msgspec.json.Decoder(dict[str, Raw])
_ITEMS: Final = msgspec.json.Decoder(list[Raw])

# An escaped surrogate without its other half, as JavaScript writes a text that it cut in two.
_LONE: Final = re.compile(
    rb"(?<!\\)(?:\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F])"
)
_AT_ESCAPES: Final = ("unexpected end of hex escape", "invalid utf-16", "Input data was truncated")

# Beyond this, a list is counted before its items are told apart, and one pass is not the aim.
_LONG_BYTES: Final = 1024 * 1024


class _Blank(msgspec.Struct, frozen=True, gc=False):
    """An object of which nothing is kept, to count a long list cheaply."""


_BLANKS: Final = msgspec.json.Decoder(list[_Blank])


def _known_decoder(list_field: str) -> msgspec.json.Decoder[Any]:
    # The prefix keeps a key of the client's from ever naming an attribute that is not a field.
    fields = [
        (f"f_{name}", list[Raw] | None, None) if name == list_field else (f"f_{name}", Raw, _ABSENT)
        for name in _KNOWN_NAMES.split()
    ]
    struct = msgspec.defstruct(
        "KnownFields", fields, rename=lambda name: name[2:], forbid_unknown_fields=True, gc=False
    )
    return msgspec.json.Decoder(struct)


_KNOWN: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    name: _known_decoder(name) for name in ("messages", "input", "")
}


def first_byte(raw: Raw) -> int:
    """The byte that tells a JSON value's type."""
    return memoryview(raw)[0]


def read_object(raw: bytes | Raw) -> dict[str, Raw]:
    """The fields of an object of any origin; of a doubled key, the last value.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError: `BROKEN`; it is no object.
    """
    return _ANY.decode(raw)


def read_fields(
    body: bytes, *, list_field: str, fields_max: int, items_max: int
) -> tuple[dict[str, Raw], tuple[Raw, ...] | None]:
    """All top-level fields in the client's order, and the items of `list_field` if it is a list.

    Raises:
        WireError: no JSON object, a key that occurs twice, more fields or items than allowed.
    """
    read = _read_known(body, list_field) if len(body) <= _LONG_BYTES else None
    fields, items = read or _read_any(body, list_field, fields_max, items_max)
    if len(fields) > fields_max:
        raise _too_many_fields(len(fields), fields_max)
    if items is not None and len(items) > items_max:
        raise _too_many_items(list_field, len(items), items_max)
    return fields, None if items is None else tuple(items)


def _read_known(body: bytes, list_field: str) -> tuple[dict[str, Raw], list[Raw] | None] | None:
    """All fields in one pass where each is known by name; None where the long way is needed."""
    try:
        record = _KNOWN[list_field].decode(body)
    except BROKEN:
        return None
    items: list[Raw] | None = getattr(record, f"f_{list_field}", None)
    fields: dict[str, Raw] = {}
    view = memoryview(body)

    def end_of(name: str, position: int) -> int:
        if name == list_field:
            end = None if items is None else array_end(body, items, position)
            if end is None:
                return -1
            fields[name] = Raw(view[position:end])
            return end
        raw = getattr(record, f"f_{name}", _ABSENT)
        if not raw or not body.startswith(raw, position):
            return -1
        fields[name] = raw
        return position + len(raw)

    try:
        walk(body, end_of)
    except SpanMismatch:
        return None
    return fields, items


def _read_any(
    body: bytes, list_field: str, fields_max: int, items_max: int
) -> tuple[dict[str, Raw], list[Raw] | None]:
    fields = _decode_object(body)
    if len(fields) > fields_max:
        raise _too_many_fields(len(fields), fields_max)
    try:
        walk_fields(body, fields)
    except SpanMismatch as mismatch:
        raise WireError(
            f"The field {mismatch.name!r} occurs more than once.",
            code="duplicate_field",
            param=mismatch.name,
        ) from None
    raw = fields.get(list_field)
    if raw is None or first_byte(raw) != ord("["):
        return fields, None
    if len(raw) > _LONG_BYTES:
        _check_count(list_field, raw, items_max)
    return fields, _ITEMS.decode(raw)


def _decode_object(body: bytes) -> dict[str, Raw]:
    try:
        return _ANY.decode(body)
    except msgspec.ValidationError:
        raise WireError("The request body must be a JSON object.", code="invalid_json") from None
    except RecursionError:
        raise WireError("The request body is nested too deeply.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = _reason(body, str(error).removeprefix("JSON is malformed: "))
        raise WireError(
            f"The request body is not valid JSON: {reason}.", code="invalid_json"
        ) from None


def _reason(body: bytes, said: str) -> str:
    """What is wrong with a body, where the decoder does not say it of half a character."""
    lone = _LONE.search(body, 0, _LONG_BYTES) if said.startswith(_AT_ESCAPES) else None
    return said if lone is None else f"half of a character (byte {lone.start()})"


def _check_count(name: str, raw: Raw, items_max: int) -> None:
    # A list of millions of tiny items, told apart, would cost many times its size.
    try:
        count = len(_BLANKS.decode(raw))
    except BROKEN:
        raise WireError(
            f"The items of {name!r} must be objects.", code="invalid_type", param=name
        ) from None
    if count > items_max:
        raise _too_many_items(name, count, items_max)


def _too_many_fields(count: int, fields_max: int) -> WireError:
    return WireError(
        f"The request has {count} fields; {fields_max} are allowed.",
        code="object_above_max_length",
    )


def _too_many_items(name: str, count: int, items_max: int) -> WireError:
    return WireError(
        f"The field {name!r} has {count} items; {items_max} are allowed.",
        code="array_above_max_length",
        param=name,
    )
