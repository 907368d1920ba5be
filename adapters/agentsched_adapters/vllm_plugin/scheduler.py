"""The class that `--scheduler-cls` names: vLLM's own scheduler, with a host of ours listening."""

# mypy: disable-error-code="import-not-found, misc, no-any-return"
from __future__ import annotations

import logging
import os
from typing import Any

from vllm import __version__
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import Request, RequestStatus

from agentsched.model import Capabilities
from agentsched_adapters.vllm_plugin import ENABLE_VARIABLE, LOGGER, layout
from agentsched_adapters.vllm_plugin.blocks import BlockPins
from agentsched_adapters.vllm_plugin.host import EngineHost
from agentsched_adapters.vllm_plugin.settings import from_environ
from agentsched_adapters.vllm_plugin.versions import refusal

log = logging.getLogger(LOGGER)

_WHOLE_NAMES = ("FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED", "FINISHED_REPETITION")
# By name: another version may lack one, and has to run as stock.
_WHOLE = frozenset(
    RequestStatus[name] for name in _WHOLE_NAMES if name in RequestStatus.__members__
)


class ProgramScheduler(AsyncScheduler):
    """vLLM's scheduler that tells an `EngineHost` what happens. Decides nothing itself.

    It is an `AsyncScheduler` where the engine's async scheduling is on, and else does as the plain
    `Scheduler` does: by the former's books a request may run again before its last token is known,
    which only a worker that schedules asynchronously can follow.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: None where the plugin is off: then this class is its parent.
        self.agentsched: EngineHost | None = _host_of(self)
        if self.agentsched is not None and self.agentsched.queue is not None:
            self.waiting = self.agentsched.queue

    def add_request(self, request: Request) -> None:
        if self.agentsched is not None and request.request_id not in self.requests:
            self.agentsched.arrived(request)
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        if self.agentsched is None:
            return super().schedule(*args, **kwargs)
        self.agentsched.step_begins()
        output = super().schedule(*args, **kwargs)
        if output.scheduled_new_reqs:
            self.agentsched.scheduled([new.req_id for new in output.scheduled_new_reqs])
        return output

    def _update_after_schedule(self, *args: Any, **kwargs: Any) -> None:
        self._stock._update_after_schedule(*args, **kwargs)

    def _update_request_with_output(self, *args: Any, **kwargs: Any) -> Any:
        return self._stock._update_request_with_output(*args, **kwargs)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        # The one place through which every request ends, and it still has its blocks.
        if self.agentsched is not None:
            self.agentsched.ends(request, is_whole=_is_whole(request))
        return super()._free_request(request, *args, **kwargs)

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        if self.agentsched is not None:
            self.agentsched.cache_is_emptied()
        return super().reset_prefix_cache(*args, **kwargs)

    @property
    def _stock(self) -> Any:
        """The class that this engine would have without us, for what `AsyncScheduler` changes."""
        is_async = self.scheduler_config.async_scheduling
        return super() if is_async else super(AsyncScheduler, self)


def _is_whole(request: Request) -> bool:
    """Whether a request that ended gave its answer.

    Stop strings are found by vLLM's front end, which then aborts the request here. So an abort of
    a request that has them counts as the end of its answer once that had begun. A client that hung
    up looks the same: it may come back to what is cached as well, and its pin is as soft and as
    short as any.
    """
    if request.status in _WHOLE:
        return True
    params = request.sampling_params
    has_strings = params is not None and bool(params.stop)
    is_aborted = request.status == RequestStatus.FINISHED_ABORTED
    return is_aborted and has_strings and request.num_output_tokens > 0


def _host_of(scheduler: Any) -> EngineHost | None:
    """The host of an engine that is being made; None, with a word why, where it runs as stock."""
    if os.environ.get(ENABLE_VARIABLE, "") == "0":
        log.warning("agentsched: %s=0, the engine runs as stock", ENABLE_VARIABLE)
        return None
    reason = refusal()
    if reason is not None:
        log.error("%s", reason)
        return None
    if not scheduler.cache_config.enable_prefix_caching:
        log.error("agentsched: prefix caching is off, so there is nothing to keep: runs as stock")
        return None
    try:
        reason = layout.refusal(scheduler.kv_cache_manager)
        if reason is not None:
            log.error("%s", reason)
            return None
        return _make_host(scheduler)
    except Exception:
        log.exception("agentsched could not start: the engine runs as stock")
        return None


def _make_host(scheduler: Any) -> EngineHost:
    from agentsched_adapters.vllm_plugin.control import attach

    settings = from_environ()
    pins = BlockPins(
        scheduler.kv_cache_manager,
        block_size=scheduler.block_size,
        budget=settings.budget,
        tenant_budget=settings.tenant_budget,
        ttl_max=settings.ttl_max,
        pins_max=settings.pins_max,
    )
    core = None
    if settings.order or settings.pin:
        from agentsched_adapters.vllm_plugin.core import Core

        capabilities = Capabilities(
            prefix_cache=True,
            pins=True,
            cached_tokens=True,
            block_size=scheduler.block_size,
            kv_tokens=layout.capacity(
                scheduler.kv_cache_manager, blocks=pins.total, unit=scheduler.block_size
            ),
            running_max=scheduler.max_num_running_reqs,
        )
        # Where groups of layers have blocks of several lengths, hashes are finer than those.
        hashed = getattr(scheduler, "hash_block_size", None)
        core = Core(settings, capabilities=capabilities, hash_block_size=hashed)
    host = EngineHost(pins=pins, settings=settings, core=core, vllm=__version__)
    attach()
    log.info(
        "agentsched: soft pins on %d of %d blocks, grace %.1f s, order %s",
        pins.blocks_max,
        pins.total,
        settings.grace / 1e9,
        settings.order or "vLLM's own",
    )
    return host
