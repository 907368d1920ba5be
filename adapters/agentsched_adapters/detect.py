"""From a URL to the right adapter, by asking what answers there."""

from __future__ import annotations

import msgspec

from agentsched.model import EngineError, EngineId, EngineRefused, EngineUnreachable
from agentsched_adapters.openai_compatible import PROBE_TIMEOUT_S, OpenAiCompatibleEngine
from agentsched_adapters.openai_http import HttpLimits, OpenAiHttp
from agentsched_adapters.sglang import SglangEngine
from agentsched_adapters.vllm import VllmEngine


async def detect(
    id: EngineId,
    url: str,
    *,
    limits: HttpLimits | None = None,
    api_key: str | None = None,
    priority: bool | None = None,
    kv_events: str | None = None,
) -> OpenAiCompatibleEngine:
    """The adapter for the engine at `url`, not yet probed.

    vLLM is what exports metrics under vLLM's names, the embedded engine included; SGLang is what
    says that it owns its models; anything else that lists its models is OpenAI-compatible.
    `priority` and `kv_events` are as in `VllmEngine`, and for no other make.

    Raises:
        ConfigError: not a URL.
        EngineError: nothing there answers as an engine does.
    """
    http = OpenAiHttp(url, limits=limits, api_key=api_key)
    try:
        if await _has_vllm_metrics(http):
            return VllmEngine(
                id, url, limits=limits, api_key=api_key, priority=priority, kv_events=kv_events
            )
        status, body = await http.fetch("GET", "/v1/models", timeout_s=PROBE_TIMEOUT_S)
    finally:
        await http.aclose()
    if status != 200:
        raise EngineRefused(f"{http.url}/v1/models answered {status}", status=status)
    if not _is_object(body):
        raise EngineError(f"{http.url}/v1/models: not an OpenAI-compatible answer")
    if _owner(body) == "sglang":
        return SglangEngine(id, url, limits=limits, api_key=api_key)
    return OpenAiCompatibleEngine(id, url, limits=limits, api_key=api_key)


async def _has_vllm_metrics(http: OpenAiHttp) -> bool:
    try:
        status, body = await http.fetch("GET", "/metrics", timeout_s=PROBE_TIMEOUT_S)
    except EngineUnreachable:
        raise
    except EngineError:
        return False
    return status == 200 and b"\nvllm:" in body


class _Owned(msgspec.Struct):
    owned_by: str = ""


class _Models(msgspec.Struct):
    data: list[_Owned] = []


def _owner(body: bytes) -> str:
    """Whose model the first one is said to be: servers put their own name there."""
    try:
        found = msgspec.json.decode(body, type=_Models).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return found[0].owned_by if found else ""


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(body), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
