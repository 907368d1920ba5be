"""What a request is for: work, a sub-agent's work, a title, a compaction, a probe, a count."""

from __future__ import annotations

from typing import Final

import msgspec

from agentsched.model import StepClass
from agentsched.proxy.identity.native import Claim
from agentsched.proxy.identity.prompt import Prompt
from agentsched.proxy.identity.signs import Sign
from agentsched.proxy.request import Dialect, ParsedRequest

_FORMAT_FIELDS: Final = ("response_format", "output_config", "text", "output_format")
_TITLE_KEY: Final = b'"title"'
_PROBE_BYTES: Final = 256


def classify(request: ParsedRequest, prompt: Prompt, claim: Claim | None) -> StepClass:
    """The class that client, dialect and signs give; STEP where nothing says otherwise.

    Whether a step is a sub-agent's may also follow from its lineage: the index decides that.
    """
    if request.dialect is Dialect.COUNT_TOKENS:
        return StepClass.TOKEN_COUNT
    if not request.dialect.is_generation:
        return StepClass.AUXILIARY if request.dialect is Dialect.EMBEDDINGS else StepClass.PROBE
    if claim is not None and claim.step_class is not None:
        return claim.step_class
    if (prompt.last_signs | prompt.system_signs) & Sign.COMPACTION:
        return StepClass.COMPACTION
    if prompt.last_signs & Sign.GUESS and not prompt.is_first:
        return StepClass.AUXILIARY
    if not prompt.tools and _is_auxiliary(request, prompt):
        return StepClass.AUXILIARY
    if _is_probe(request, prompt):
        return StepClass.PROBE
    if claim is not None and claim.is_subagent:
        return StepClass.SUBAGENT
    return StepClass.SUBAGENT if prompt.system_signs & Sign.SUBAGENT else StepClass.STEP


def _is_auxiliary(request: ParsedRequest, prompt: Prompt) -> bool:
    if prompt.system_signs & Sign.AUXILIARY or prompt.last_signs & Sign.ASIDE:
        return True
    return prompt.is_first and any(_asks_title(request, name) for name in _FORMAT_FIELDS)


def _asks_title(request: ParsedRequest, name: str) -> bool:
    """Whether the answer must be an object that holds a title and nothing else."""
    raw = request.fields.get(name)
    if raw is None or len(raw) > 2_048 or _TITLE_KEY not in bytes(raw):
        return False
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return _properties(value) == ["title"]


def _properties(value: object) -> list[str]:
    """The property names of the JSON schema somewhere inside `value`."""
    if not isinstance(value, dict):
        return []
    properties = value.get("properties")
    if isinstance(properties, dict):
        return list(properties)
    for inner in value.values():
        found = _properties(inner)
        if found:
            return found
    return []


def _is_probe(request: ParsedRequest, prompt: Prompt) -> bool:
    """One token asked of a few words: somebody looks whether we are there."""
    return (
        request.output_tokens_max == 1
        and not prompt.tools
        and prompt.is_first
        and prompt.size <= _PROBE_BYTES
    )
