"""vLLM, stock or with our plugin: what it can do is found out by asking, since flags decide.

What its HTTP surface tells, as tried with 0.32:

- A field that the API does not know is ignored, a known one of a wrong type is a 400. So a wrong
  type asks, without generating anything, whether `session_id` is known.
- Whether waiting requests are ordered by `priority` is not told. Older versions refuse a non-zero
  priority under another policy; newer ones take and ignore it. Only the development route
  `/server_info` says it outright. So three answers are kept: refused (never sent), taken (sent,
  not relied on) and confirmed (sent; `Capabilities.priority`), and the operator may confirm it.
- Our plugin answers at routes of its own (`vllm_plugin.endpoints`). Where it does, requests carry
  whose they are in `vllm_xargs`, and pins are performed.
- Gauges were renamed between versions; both names are read, and an old one is warned of once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

import msgspec

from agentsched.model import (
    Capabilities,
    ConversationId,
    EngineError,
    EngineId,
    EngineLoad,
    EngineTimeout,
    EngineUnreachable,
    HintOutcome,
    Pin,
    Prefetch,
    Unpin,
)
from agentsched_adapters.kv_events import KvEvents
from agentsched_adapters.openai_compatible import (
    PROBE_TIMEOUT_S,
    OpenAiCompatibleEngine,
    decoded,
)
from agentsched_adapters.openai_http import HttpLimits
from agentsched_adapters.prometheus import samples, total
from agentsched_adapters.vllm_plugin.hints import PluginHints, engine_arguments
from agentsched_adapters.vllm_plugin.wire import EngineState, State

_log = logging.getLogger(__name__)

#: An ordinary token in every vocabulary: not among the special first ones, and below the smallest.
_TOKEN: Final = 100
#: Beyond this block size the cached-token request would no longer be tiny.
_BLOCK_SIZE_MAX: Final = 2_048
# Collecting its environment makes the first answer of this route slow.
_SERVER_INFO_TIMEOUT_S: Final = 30.0

_PRIORITY_HEADER: Final = "X-Vllm-Priority"

#: The plugin is asked no more often than this what is in the cache, and waited for no longer.
_STATE_EVERY_S: Final = 2.0
_STATE_TIMEOUT_S: Final = 2.0

#: Conversations that were in a cache when the plugin told of them last; it tells of some at a time.
_CACHED_MAX: Final = 20_000

#: The list of models is not worth the failure of a look.
_MODELS_TIMEOUT_S: Final = 2.0

#: Present name first, then older ones.
_KV_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_RUNNING: Final = ("vllm:num_requests_running",)
_WAITING: Final = ("vllm:num_requests_waiting",)
_BY_SOURCE: Final = ("vllm:prompt_tokens_by_source_total", "vllm:prompt_tokens_by_source")
_FROM_BELOW: Final = "external_kv_transfer"
_COMPUTED: Final = (
    ("vllm:prompt_tokens_total", "vllm:prompt_tokens"),
    ("vllm:generation_tokens_total", "vllm:generation_tokens"),
)
_PREEMPTIONS: Final = ("vllm:num_preemptions_total", "vllm:num_preemptions")
#: When its process began, in seconds.
_BEGAN: Final = "process_start_time_seconds"

_GAVE_UP: Final = "is there but gave up: this engine runs as stock"


class PriorityAnswer(StrEnum):
    """What is known of an engine's priority field."""

    UNKNOWN = "unknown"
    REFUSED = "refused"
    TAKEN = "taken"  # accepted, perhaps ignored
    CONFIRMED = "confirmed"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trials:
    """What the tiny requests showed. `is_complete` when none of them timed out."""

    priority: PriorityAnswer = PriorityAnswer.UNKNOWN
    session_id: bool = False
    cached_tokens: bool = False
    is_complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _CacheInfo:
    prefix_cache: bool = False
    block_size: int | None = None
    kv_tokens: int | None = None


class _Version(msgspec.Struct):
    version: str


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens_details: _PromptDetails | None = None


class _Completion(msgspec.Struct):
    usage: _Usage | None = None


class _SchedulerConfig(msgspec.Struct):
    policy: str = ""
    max_num_seqs: int | None = None


class _VllmConfig(msgspec.Struct):
    scheduler_config: _SchedulerConfig = msgspec.field(default_factory=_SchedulerConfig)


class _ServerInfo(msgspec.Struct):
    vllm_config: _VllmConfig


class VllmEngine(OpenAiCompatibleEngine):
    """One vLLM server. Implements `agentsched.ports.Engine` and `HintSink`.

    `priority`: the operator's word on `--scheduling-policy`; None asks the engine. `kv_events`: the
    address at which it publishes what enters and leaves its cache, as `tcp://host:5557`.
    """

    def __init__(
        self,
        id: EngineId,
        url: str,
        *,
        limits: HttpLimits | None = None,
        api_key: str | None = None,
        priority: bool | None = None,
        kv_events: str | None = None,
    ) -> None:
        super().__init__(id, url, limits=limits, api_key=api_key)
        self._events = None if kv_events is None else KvEvents(id, kv_events)
        self._declared_priority = priority
        self._version = ""
        self._trials = _Trials()
        self._server = _SchedulerConfig()
        #: The process that `_trials` and `_server` are true of; None: nothing to rely on.
        self._process: tuple[str, float] | None = None
        #: When the process began that answered the looks so far; None: nothing to compare with.
        self._began: float | None = None
        self._warned: set[str] = set()
        self._plugin = PluginHints(self._http)
        self._has_plugin = False
        #: Whether the engine said so or the opposite, when it was probed.
        self._is_plugin_known = True
        #: Conversations that were in the cache when the plugin told of them last, which is longest
        #: ago for the first; and when it was asked.
        self._cached: dict[str, None] = {}
        self._asked_at: float | None = None

    @property
    def version(self) -> str:
        """As the engine said when last probed; empty before."""
        return self._version

    @property
    def priority_answer(self) -> PriorityAnswer:
        """What is known of its `priority` field: for people; `capabilities` is for policies."""
        match self._declared_priority, self._server.policy:
            case (True, _) | (None, "priority"):
                return PriorityAnswer.CONFIRMED
            case False, _:
                return PriorityAnswer.REFUSED
            case _:
                return self._trials.priority

    @property
    def is_unsure(self) -> bool:
        """Whether the engine left something open that it was probed for: worth another probe."""
        return not (self._trials.is_complete and self._is_plugin_known)

    @property
    def hears_events(self) -> bool:
        """Whether its KV events come in."""
        return self._events is not None and self._events.is_heard

    @property
    def _takes_priority(self) -> bool:
        return self.priority_answer in (PriorityAnswer.TAKEN, PriorityAnswer.CONFIRMED)

    async def probe(self) -> Capabilities:
        """Ask for version, models and KV pool; try the rest once per engine process."""
        where = f"{self.url}/version"
        self._version = decoded(await self._get("/version"), _Version, where=where).version
        models, context_max = await self._models()
        page = await self._get("/metrics")
        cache = self._cache_info(page)
        process = self._process_of(page)
        is_same = process is not None and process == self._process
        if models and not (is_same and self._trials.is_complete):
            self._server = await self._ask_server_info()
            self._trials = await self._try(models[0], cache)
            self._process = process
        self._has_plugin = await self._find_plugin(was_there=is_same and self._has_plugin)
        if self._events is not None:
            self._events.start()
        self._capabilities = Capabilities(
            prefix_cache=cache.prefix_cache,
            pins=self._has_plugin,
            priority=self.priority_answer is PriorityAnswer.CONFIRMED,
            session_id=self._trials.session_id,
            cache_salt=True,
            cached_tokens=self._trials.cached_tokens,
            tier=self._has_tier(page),
            block_size=cache.block_size,
            kv_tokens=cache.kv_tokens,
            running_max=self._server.max_num_seqs,
            context_max=context_max,
            models=models,
        )
        return self._capabilities

    async def load(self) -> EngineLoad:
        """Its gauges, and its models.

        Raises:
            EngineUnreachable: also where another process answers than at the looks before.
        """
        page = await self._look()
        self._capabilities = replace(self._capabilities, tier=self._has_tier(page))
        # It has answered: without this list the one before stands.
        with suppress(EngineError):
            await self._follow_models(timeout_s=_MODELS_TIMEOUT_S)
        usage = self._named(page, *_KV_USAGE)
        # Several engine processes behind one server report one line each: counts add up, shares do
        # not. Of two names of the gauge the first one is read.
        lines = next((n for name in _KV_USAGE if (n := len(samples(page, name)))), 1)
        return EngineLoad(
            running=_count(self._named(page, *_RUNNING)),
            waiting=_count(self._named(page, *_WAITING)),
            kv_usage=None if usage is None else min(1.0, max(0.0, usage / lines)),
            preemptions=_count(self._named(page, *_PREEMPTIONS)),
            computed_tokens=_computed(page),
            gone=await self._gone() + (self._events.take_gone() if self._events else ()),
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
        if priority and self._takes_priority:
            fields["priority"] = priority
        if session and self._trials.session_id:
            fields["session_id"] = session
        if session and self._has_plugin:
            fields["vllm_xargs"] = engine_arguments(
                program=program, conversation=session, tenant=tenant, is_kept=is_kept
            )
        return fields

    def admission_headers(self, *, priority: int) -> Sequence[tuple[str, str]]:
        # Its Messages API knows no such field. Where it knows the header, that is what it believes.
        return ((_PRIORITY_HEADER, str(priority)),) if priority and self._takes_priority else ()

    async def hint(self, hint: Pin | Unpin | Prefetch) -> HintOutcome:
        """Retain for real where our plugin is in the engine; else UNSUPPORTED."""
        if not self._has_plugin:
            return HintOutcome.UNSUPPORTED
        return await self._plugin.hint(hint)

    def take_over(self, older: object) -> None:
        """Go on for an adapter of this engine that it replaces: pins that one sent end by name."""
        if isinstance(older, VllmEngine):
            self._plugin.take_over(older._plugin)
            self._cached = older._cached

    async def retained(self) -> State | None:
        """What the plugin says of blocks, pins and what is cached; None where there is none.

        Raises:
            EngineError: the engine did not answer.
        """
        return await self._plugin.state() if self._has_plugin else None

    async def aclose(self) -> None:
        if self._events is not None:
            await self._events.aclose()
        await super().aclose()

    async def _look(self) -> bytes:
        """The page of gauges, of the process that gave the one before."""
        try:
            page = await self._get("/metrics")
        except EngineUnreachable:
            # Whoever looks takes it for gone, and probes what comes back.
            self._began = None
            raise
        began, before = total(page, _BEGAN), self._began
        if began is not None:
            # Where several servers share an address, each is news once: only a later one counts.
            self._began = began if before is None else max(began, before)
            if before is not None and began > before:
                raise EngineUnreachable(f"{self.url} is another process than it was")
        return page

    async def _gone(self) -> tuple[ConversationId, ...]:
        """Conversations that left the cache since the plugin was asked last; the first time none.

        Asked every `_STATE_EVERY_S` at most, and an engine without an answer has only said nothing.
        """
        now = time.monotonic()
        if not self._has_plugin:
            return ()
        if self._asked_at is not None and now - self._asked_at < _STATE_EVERY_S:
            return ()
        self._asked_at = now
        try:
            state = await self._plugin.cached(timeout_s=_STATE_TIMEOUT_S)
        except EngineError as error:
            _log.info("engine %s: no word from its plugin (%s)", self.id, error)
            return ()
        if state is None:
            return ()
        if not all(one.is_active for one in state.engines):
            return self._give_up_plugin()
        listed = [each for one in state.engines for each in _whether_cached(one)]
        told = {name for name, _ in listed}
        # One that several processes know is there as long as one of them has it.
        cached = {name: None for name, is_there in listed if is_there}
        gone = sorted(told & self._cached.keys() - cached.keys())
        # Of those that it does not list nothing is said: they are as they were.
        untold = {name: None for name in self._cached if name not in told}
        self._cached = untold | cached
        for name in list(self._cached)[:-_CACHED_MAX]:
            del self._cached[name]
        return tuple(ConversationId(name) for name in gone)

    def _give_up_plugin(self) -> tuple[ConversationId, ...]:
        """It gave everything back, and tells of nothing any more: all that it told of is gone."""
        self._warn_once("agentsched plugin", _GAVE_UP)
        self._has_plugin = False
        self._capabilities = replace(self._capabilities, pins=False)
        gone, self._cached = sorted(self._cached), {}
        return tuple(ConversationId(name) for name in gone)

    async def _find_plugin(self, *, was_there: bool) -> bool:
        """Whether our plugin is in the engine, and works in each of its processes.

        `was_there` says that it was found in this process before, which a silence does not change.
        """
        try:
            state = await self._plugin.state(is_brief=True)
        except EngineError as error:
            _log.info("engine %s: no word from a plugin (%s)", self.id, error)
            self._is_plugin_known = was_there
            return was_there
        self._is_plugin_known = True
        is_active = state is not None and all(one.is_active for one in state.engines)
        if state is not None and not is_active:
            self._warn_once("agentsched plugin", _GAVE_UP)
        return is_active

    def _process_of(self, page: bytes) -> tuple[str, float] | None:
        started = total(page, _BEGAN)
        return None if started is None else (self._version, started)

    def _cache_info(self, page: bytes) -> _CacheInfo:
        found = samples(page, "vllm:cache_config_info")
        if not found:
            self._warn_once("vllm:cache_config_info", "is missing: its KV pool is unknown")
            return _CacheInfo()
        block_size = _number(found[0].labels.get("block_size"))
        pools = [_pool_tokens(sample.labels) for sample in found]
        return _CacheInfo(
            prefix_cache=found[0].labels.get("enable_prefix_caching") == "True",
            block_size=block_size,
            kv_tokens=sum(pool for pool in pools if pool) or None,
        )

    def _has_tier(self, page: bytes) -> bool:
        """Whether prompt tokens ever came from below the cache: host memory, disk, another host."""
        return any(
            sample.value > 0 and sample.labels.get("source") == _FROM_BELOW
            for name in _BY_SOURCE
            for sample in samples(page, name)
        )

    def _named(self, page: bytes, *names: str) -> float | None:
        value = total(page, *names)
        if value is None:
            self._warn_once(names[0], "is missing: this gauge is unknown")
        elif total(page, names[0]) is None:
            self._warn_once(names[0], "has an older name here, which is read instead")
        return value

    def _warn_once(self, metric: str, text: str) -> None:
        if metric not in self._warned:
            self._warned.add(metric)
            _log.warning("engine %s: metric %s %s", self.id, metric, text)

    async def _ask_server_info(self) -> _SchedulerConfig:
        """The scheduler's settings where the development routes are on; else empty."""
        target = "/server_info?config_format=json"
        try:
            status, body = await self._http.fetch("GET", target, timeout_s=_SERVER_INFO_TIMEOUT_S)
            if status == 200:
                info = decoded(body, _ServerInfo, where=f"{self.url}{target}")
                return info.vllm_config.scheduler_config
        except EngineError as error:
            _log.info("engine %s: no server info (%s)", self.id, error)
        return _SchedulerConfig()

    async def _try(self, model: str, cache: _CacheInfo) -> _Trials:
        """Tiny requests. A busy engine may let them time out; the next probe then tries again."""
        trials = _Trials()
        # Two whole blocks: the last block of a prompt is never taken from the cache.
        size = cache.block_size if (cache.block_size or 0) <= _BLOCK_SIZE_MAX else None
        prompt = [_TOKEN] * (2 * (size or 16) + 1)
        fields: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": 1}
        try:
            # A wrong type: known fields are checked, unknown ones ignored. Generates nothing.
            known, _ = await self._complete(fields | {"session_id": {}})
            plain, _ = await self._complete(fields)
            again, details = await self._complete(fields | {"priority": 1})
            if again != 200 and plain == 200:
                _, details = await self._complete(fields)
        except EngineTimeout:
            return replace(trials, is_complete=False)
        if plain != 200:
            # Not a completions engine, or not now: nothing can be concluded from refusals.
            return replace(trials, is_complete=plain < 500)
        meaning = {200: PriorityAnswer.TAKEN, 400: PriorityAnswer.REFUSED}
        return _Trials(
            session_id=known == 400,
            priority=meaning.get(again, PriorityAnswer.UNKNOWN),
            cached_tokens=details is not None and details.cached_tokens is not None,
            is_complete=again in (200, 400),
        )

    async def _complete(self, fields: dict[str, Any]) -> tuple[int, _PromptDetails | None]:
        status, body = await self._http.fetch(
            "POST",
            "/v1/completions",
            body=msgspec.json.encode(fields),
            timeout_s=PROBE_TIMEOUT_S,
        )
        if status != 200:
            return status, None
        usage = decoded(body, _Completion, where=f"{self.url}/v1/completions").usage
        return status, usage.prompt_tokens_details if usage else None


def _whether_cached(engine: EngineState) -> Iterator[tuple[str, bool]]:
    """Conversations that an engine process tells of; older plugins tell of all tokens."""
    yield from engine.cached.items()
    for program in engine.programs:
        for name, tokens in program.conversations.items():
            yield name, bool(tokens)


def _pool_tokens(labels: Mapping[str, str]) -> int | None:
    """Tokens that one engine process's KV pool holds."""
    if whole := _number(labels.get("kv_cache_size_tokens")):
        return whole
    blocks, size = _number(labels.get("num_gpu_blocks")), _number(labels.get("block_size"))
    return blocks * size if blocks and size else None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _computed(page: bytes) -> int | None:
    counts = [total(page, *names) for names in _COMPUTED]
    return round(sum(c or 0.0 for c in counts)) if any(c is not None for c in counts) else None


def _count(value: float | None) -> int | None:
    return None if value is None else int(value)
