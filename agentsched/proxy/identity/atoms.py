"""Normalisation: a message in any dialect becomes atoms that stay equal when clients reshape it.

Clients re-serialise call arguments, turn `"text"` into `[{"type": "text"}]` and back, move
`cache_control`, drop reasoning and trim ends. Atoms keep only what survives all of that: who spoke,
the trimmed text, the calls (id, name, arguments as a value) and the results (id, text).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgspec
import xxhash

from agentsched.proxy.identity.signs import signs_of


class Kind(IntEnum):
    """Who speaks in an atom."""

    SYSTEM = 0
    USER = 1
    ASSISTANT = 2
    CALL = 3
    RESULT = 4


class Atom(NamedTuple):
    """One smallest unit of a prompt.

    `ref` is the tool-call id that it names; prose may name several, then blanks part them. Many
    atoms are held for long: one string is cheaper than a tuple.
    """

    kind: int
    digest: bytes
    ref: str = ""


class Message(NamedTuple):
    """A normalised message: its atoms, and the tell-tale phrases that its texts hold.

    `joined` has a bit for each atom that holds the text of the one before it, and stands for both.
    `media` are the pictures and files in it, `spare` the bytes of it that are no text for all that:
    what they hold, less what each of them counts for.
    """

    atoms: tuple[Atom, ...]
    signs: int = 0
    joined: int = 0
    media: int = 0
    spare: int = 0


_VOLATILE: Final = frozenset(
    {
        "cache_control",
        "annotations",
        "logprobs",
        "status",
        "provider_specific_fields",
        "output_config",
        "signature",
        "id",
        "caller",
    }
)
_IGNORED: Final = frozenset(
    {"thinking", "redacted_thinking", "reasoning", "reasoning_text", "summary_text"}
)
_SERVER_TOOLS: Final = ("server_tool_use", "mcp_tool_use")
_TEXT: Final = frozenset({"text", "input_text", "output_text", "refusal"})
_THINKING: Final = re.compile(r"^\s*(?:<think>.*?)?</think>", re.DOTALL)
_PROSE_CALLS: Final = "Calling tools:"
_PROSE_CALL_ID: Final = re.compile(r"['\"]id['\"]:\s*['\"]([^'\"]{1,128})['\"]")
_REF_CHARS_MAX: Final = 128
_ODD_IN_ID: Final = re.compile(r"[^0-9A-Za-z_-]")
_ROLES: Final = {
    "system": Kind.SYSTEM,
    "developer": Kind.SYSTEM,
    "user": Kind.USER,
    "assistant": Kind.ASSISTANT,
    "model": Kind.ASSISTANT,
}
_MEDIA: Final = frozenset(
    {
        "audio",
        "audio_url",
        "computer_screenshot",
        "document",
        "file",
        "image",
        "image_url",
        "input_audio",
        "input_file",
        "input_image",
        "video",
        "video_url",
    }
)
#: What a picture or a file counts for: to most models it is about a thousand tokens.
_MEDIUM_BYTES: Final = 4_000
#: Blocks that are hashed together; a bound, for block n costs the text of all before it.
_JOINED_MAX: Final = 32
_EMPTY_ARGUMENTS: Final = frozenset({"", "{}", "null"})


def canonical(value: object) -> bytes:
    """`value` as JSON that does not depend on key order, spacing or `1` against `1.0`."""
    return msgspec.json.encode(_without_noise(value), order="sorted")


def _without_noise(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_noise(v) for k, v in value.items() if k != "cache_control"}
    if isinstance(value, list):
        return [_without_noise(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def canonical_arguments(arguments: object) -> bytes:
    """Call arguments as a value: JSON text and objects that mean the same are equal."""
    if isinstance(arguments, str):
        text = arguments.strip()
        if text in _EMPTY_ARGUMENTS:
            return b""
        try:
            value = msgspec.json.decode(text)
            return b"" if value is None or value == {} else canonical(value)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return text.encode("utf-8", "surrogatepass")
    return b"" if arguments is None or arguments == {} else canonical(arguments)


def call_ref(call_id: str) -> str:
    """A tool call's id as we keep it: ids come from outside, and one of a megabyte is hashed.

    Some clients keep only letters, digits, `-` and `_` of one, and write `_` for all others
    (`functions.bash:0` comes back as `functions_bash_0`): here, too.
    """
    if len(call_id) <= _REF_CHARS_MAX:
        return _ODD_IN_ID.sub("_", call_id)
    return "h-" + xxhash.xxh3_128_hexdigest(_encoded(call_id))


def spoken(text: str) -> str:
    """An assistant's text without the thinking that some clients strip, trimmed.

    Some clients write line ends anew.
    """
    if "</think>" in text:
        text = _THINKING.sub("", text, count=1)
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return text.strip()


class Normaliser:
    """Turns raw messages into atoms. `seed` keys every hash, so that none can be crafted."""

    def __init__(self, *, seed: int) -> None:
        self._seed = seed
        self._tags = tuple(bytes((kind,)) for kind in Kind)

    def digest(self, kind: Kind, *parts: bytes) -> bytes:
        """The keyed hash of an atom's content."""
        return xxhash.xxh3_128_digest(self._tags[kind] + b"\0".join(parts), seed=self._seed)

    def text(self, kind: Kind, text: str) -> Atom:
        """A text atom; `text` must be trimmed already.

        Some clients write their calls into the text as prose: the ids are named, the prose is
        left out, so that the text equals what was answered.
        """
        ref = ""
        if kind is Kind.ASSISTANT and _PROSE_CALLS in text:
            ref = " ".join(map(call_ref, _PROSE_CALL_ID.findall(text[:65_536])))
            text = text.partition(_PROSE_CALLS)[0].strip() or text
        return Atom(int(kind), self.digest(kind, _encoded(text)), ref)

    def call(self, call_id: str, name: str, arguments: object) -> Atom:
        """A tool call's atom."""
        call_id = call_ref(call_id)
        data = canonical_arguments(arguments)
        digest = self.digest(Kind.CALL, _encoded(call_id), _encoded(name), data)
        return Atom(int(Kind.CALL), digest, sys.intern(call_id))

    def result(self, call_id: str, content: object) -> Atom:
        """A tool result's atom."""
        call_id = call_ref(call_id)
        data = _encoded(_flat(content).strip())
        digest = self.digest(Kind.RESULT, _encoded(call_id), data)
        return Atom(int(Kind.RESULT), digest, sys.intern(call_id))

    def message(self, raw: msgspec.Raw | bytes) -> Message:
        """Normalise one message or item of any dialect. Never raises: odd input is hashed as is."""
        try:
            value = msgspec.json.decode(raw)
            if isinstance(value, str):
                return self._texts(Kind.USER, [value])
            if isinstance(value, dict):
                media, spare = _media_of(value)
                message = self._message(value)
                return message._replace(media=media, spare=spare) if media else message
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            pass
        return Message((Atom(int(Kind.USER), self.digest(Kind.USER, bytes(raw))),))

    def _message(self, item: Mapping[str, Any]) -> Message:
        role = item.get("role")
        kind = item.get("type")
        if role in ("tool", "function"):
            call_id = item.get("tool_call_id") or item.get("name") or ""
            return Message((self.result(str(call_id), item.get("content")),))
        if isinstance(role, str):
            return self._spoken(_ROLES.get(role, Kind.USER), item)
        if isinstance(kind, str):
            return self._item(kind, item)
        return Message((Atom(int(Kind.USER), self.digest(Kind.USER, canonical(dict(item)))),))

    def _spoken(self, kind: Kind, item: Mapping[str, Any]) -> Message:
        content = item.get("content")
        parts = content if isinstance(content, list) else [content]
        atoms, signs, joined, *_ = self._texts(kind, parts)
        calls = item.get("tool_calls")
        if isinstance(calls, list):
            atoms += tuple(self._chat_call(c) for c in calls if isinstance(c, dict))
        legacy = item.get("function_call")
        if isinstance(legacy, dict):
            atoms += (self.call("", str(legacy.get("name", "")), legacy.get("arguments")),)
        if kind is Kind.ASSISTANT and len(atoms) > 1:
            # Text beside calls does not count (see `prompt`), so it need not be remembered.
            said = tuple(atom for atom in atoms if atom.kind != Kind.ASSISTANT)
            atoms = said or atoms
        return Message(atoms, signs, joined)

    def _chat_call(self, call: Mapping[str, Any]) -> Atom:
        detail = call.get("function") or call.get("custom") or {}
        if not isinstance(detail, dict):
            detail = {}
        arguments = detail.get("arguments", detail.get("input"))
        return self.call(str(call.get("id") or ""), str(detail.get("name", "")), arguments)

    def _item(self, kind: str, item: Mapping[str, Any]) -> Message:
        call_id = str(item.get("call_id") or item.get("id") or "")
        if kind in _IGNORED or kind == "item_reference":
            return Message(())
        if kind.endswith("_output"):
            return Message((self.result(call_id, item.get("output")),))
        if kind.endswith("_call"):
            if "call_id" not in item:
                return Message(())  # a tool that ran inside the engine: part of no client's history
            arguments = item.get("arguments", item.get("input", item.get("action")))
            return Message((self.call(call_id, str(item.get("name", kind)), arguments),))
        return self._texts(Kind.USER, [item])

    def _texts(self, kind: Kind, parts: Iterable[object]) -> Message:
        """Text blocks are taken together, yet each end of a block is a place to match.

        A client may append a block to a message that it sent before, or join two blocks to one:
        so block n hashes the text of blocks 1 to n, and stands for all of them.
        """
        atoms: list[Atom] = []
        text, signs, blocks, joined = "", 0, 0, 0
        is_begun = False
        for part in parts:
            if isinstance(part, str):
                block: str | None = part
            elif isinstance(part, dict):
                block = part.get("text", part.get("refusal")) if _is_text(part) else None
            else:
                continue
            if isinstance(block, str):
                if kind is not Kind.ASSISTANT:
                    signs |= signs_of(block)
                text += block
                trimmed = spoken(text) if kind is Kind.ASSISTANT else text.strip()
                if block.strip() and trimmed:
                    joined |= is_begun << len(atoms)
                    is_begun = True
                    atoms.append(self.text(kind, trimmed))
                blocks += 1
                if blocks == _JOINED_MAX:
                    text, blocks, is_begun = "", 0, False
            elif isinstance(part, dict):
                atom = self._block(kind, part)
                if atom is not None:
                    atoms.append(atom)
                    text, is_begun = "", False
        if kind is Kind.ASSISTANT:
            atoms, joined = _last_text(atoms), 0
        return Message(tuple(atoms), signs, joined)

    def _block(self, kind: Kind, block: Mapping[str, Any]) -> Atom | None:
        name = block.get("type")
        if name == "tool_use":
            return self.call(
                str(block.get("id") or ""), str(block.get("name", "")), block.get("input")
            )
        if isinstance(name, str) and name.endswith("tool_result"):
            return self.result(str(block.get("tool_use_id") or ""), block.get("content"))
        if isinstance(name, str) and (name in _IGNORED or name in _SERVER_TOOLS):
            return None
        rest = {k: v for k, v in block.items() if k not in _VOLATILE}
        return Atom(int(kind), self.digest(kind, b"\1", canonical(rest)))


def _media_of(item: Mapping[str, Any]) -> tuple[int, int]:
    """How many pictures and files an item holds, and `Message.spare`."""
    media, spare = 0, 0
    left = [item.get("content"), item.get("output")]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left.extend(value)
        elif isinstance(value, dict):
            kind = value.get("type")
            source = value.get("source")
            is_read = isinstance(source, dict) and source.get("type") in ("text", "content")
            if isinstance(kind, str) and kind in _MEDIA and not is_read:
                media += 1
                spare += _characters(value) - _MEDIUM_BYTES
            else:
                left.append(value.get("content"))
    return media, spare


def _characters(value: object) -> int:
    """How long the texts in a value are."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_characters, value)) if isinstance(value, list) else 0


def _is_text(part: Mapping[str, Any]) -> bool:
    kind = part.get("type", "text")
    return isinstance(kind, str) and kind in _TEXT


def _last_text(atoms: list[Atom]) -> list[Atom]:
    """Of an assistant's growing text only the whole counts: nobody appends to an answer."""
    return [
        atom
        for at, atom in enumerate(atoms)
        if atom.kind != Kind.ASSISTANT
        or at + 1 == len(atoms)
        or atoms[at + 1].kind != Kind.ASSISTANT
    ]


def _flat(content: object) -> str:
    """A result's content as text: blocks joined, other things as canonical JSON."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(_flat_block(block) for block in content)
    return canonical(content).decode("utf-8", "replace")


def _flat_block(block: object) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, dict) and _is_text(block) and isinstance(block.get("text"), str):
        return str(block["text"])
    if isinstance(block, dict):
        block = {k: v for k, v in block.items() if k not in _VOLATILE}
    return canonical(block).decode("utf-8", "replace")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
