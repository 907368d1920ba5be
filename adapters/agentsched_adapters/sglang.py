"""SGLang: OpenAI's API with priorities of the other polarity, and a radix cache.

What its HTTP surface tells, as documented for 0.5 (read, not tried: it needs a GPU):

- `/server_info` (older: `/get_server_info`) has the server's arguments and `max_total_num_tokens`,
  the size of its KV pool: that of the first data parallel rank, of which there are `dp_size`.
  Running calls are bounded for each rank, too, unless `enable_dp_attention` has them share one
  bound. One that answers neither route is no SGLang.
- `priority` in a body counts only with `--enable-priority-scheduling`; *greater* is sooner, unless
  `--schedule-low-priority-values-first` says otherwise. Ours is smaller is sooner, so it is turned
  round. Without that flag a priority may be an error, so none is sent. With it, a request that
  names none is the last of all (`_set_or_validate_priority` in its scheduler), below warm-ups; so
  each names one, 0 as well.
- Gauges (`sglang:num_running_reqs` and so on) are there with `--enable-metrics` only, cached tokens
  in the usage with `--enable-cache-report` only.
- It keeps what it computed by least recent use, and pins nothing: warm-ups are ordinary requests.
- `session_id` in a body, of chats, completions and responses, is a request's identity (its pull
  requests 27058 and 29436, of June 2026). With `--enable-session-radix-cache` what a session left
  in the cache bears its name, and there it is sent. `session_params` is another thing: prompts that
  a server puts together from what came before, and ours are whole.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

import msgspec

from agentsched.model import Capabilities, EngineError, EngineLoad, EngineRefused
from agentsched_adapters.openai_compatible import PROBE_TIMEOUT_S, OpenAiCompatibleEngine, decoded
from agentsched_adapters.openai_http import OpenAiHttp
from agentsched_adapters.prometheus import samples, total

_log = logging.getLogger(__name__)

_INFO: Final = ("/server_info", "/get_server_info")
_RUNNING: Final = "sglang:num_running_reqs"
_WAITING: Final = "sglang:num_queue_reqs"
_KV_USAGE: Final = "sglang:token_usage"


class ServerInfo(msgspec.Struct):
    """What is read of the server's arguments. All may be missing in some version."""

    version: str = ""
    max_total_num_tokens: int | None = None
    page_size: int | None = None
    context_length: int | None = None
    max_running_requests: int | None = None
    dp_size: int | None = None
    enable_dp_attention: bool | None = None
    disable_radix_cache: bool | None = None
    enable_priority_scheduling: bool = False
    schedule_low_priority_values_first: bool = False
    enable_session_radix_cache: bool = False
    enable_cache_report: bool = False
    enable_metrics: bool = False


async def server_info(http: OpenAiHttp) -> ServerInfo | None:
    """What an SGLang server says of itself; None for another make.

    Raises:
        EngineError: nothing answers there.
    """
    for target in _INFO:
        status, body = await http.fetch("GET", target, timeout_s=PROBE_TIMEOUT_S)
        if status != 200:
            continue
        try:
            info = decoded(body, ServerInfo, where=f"{http.url}{target}")
        except EngineError:
            continue
        if info.max_total_num_tokens is not None:
            return info
    return None


class SglangEngine(OpenAiCompatibleEngine):
    """One SGLang server. Implements `agentsched.ports.Engine`."""

    _info = ServerInfo()

    @property
    def version(self) -> str:
        """As the engine said when last probed; empty before."""
        return self._info.version

    async def probe(self) -> Capabilities:
        """Ask for models and the server's arguments.

        Raises:
            EngineRefused: what answers is no SGLang.
        """
        info = await server_info(self._http)
        if info is None:
            raise EngineRefused(f"{self.url} does not answer as SGLang does", status=404)
        self._info = info
        models, context_max = await self._models()
        ranks = max(1, info.dp_size or 1)
        pool, running_max = info.max_total_num_tokens, info.max_running_requests
        if running_max is not None and not info.enable_dp_attention:
            running_max *= ranks
        self._capabilities = Capabilities(
            prefix_cache=not info.disable_radix_cache,
            priority=info.enable_priority_scheduling,
            session_id=info.enable_session_radix_cache,
            cached_tokens=info.enable_cache_report,
            block_size=info.page_size,
            kv_tokens=None if pool is None else pool * ranks,
            running_max=running_max,
            context_max=context_max or info.context_length,
            models=models,
        )
        return self._capabilities

    async def load(self) -> EngineLoad:
        """Its models, and its gauges where it exports them."""
        await self._follow_models()
        if not self._info.enable_metrics:
            return EngineLoad()
        page = await self._get("/metrics")
        running, waiting = total(page, _RUNNING), total(page, _WAITING)
        # One line for each data parallel rank: counts add up, shares do not.
        shares = [sample.value for sample in samples(page, _KV_USAGE)]
        usage = sum(shares) / len(shares) if shares else None
        return EngineLoad(
            running=None if running is None else round(running),
            waiting=None if waiting is None else round(waiting),
            kv_usage=None if usage is None else min(1.0, max(0.0, usage)),
        )

    def admission_fields(
        self,
        *,
        priority: int,
        session: str,
        program: str = "",
        tenant: str = "",
        is_kept: bool = True,
    ) -> Mapping[str, object]:
        fields: dict[str, object] = {}
        if self._info.enable_priority_scheduling:
            is_ours = self._info.schedule_low_priority_values_first
            fields["priority"] = priority if is_ours else -priority
        if session and self._info.enable_session_radix_cache:
            fields["session_id"] = session
        return fields
