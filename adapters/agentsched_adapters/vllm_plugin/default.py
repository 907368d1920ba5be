"""Makes our scheduler class the engine's default, for operators who set a variable, not a flag."""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import logging
from typing import Any

from vllm.config import SchedulerConfig

from agentsched_adapters.vllm_plugin import LOGGER

log = logging.getLogger(LOGGER)


def become_default() -> None:
    """Let an engine without `--scheduler-cls` use `ProgramScheduler`.

    One that was given a class keeps it. Asked in the engine process, once, at its start.
    """
    original = SchedulerConfig.get_scheduler_cls

    def get_scheduler_cls(self: Any) -> Any:
        if self.scheduler_cls is None:
            from agentsched_adapters.vllm_plugin.scheduler import ProgramScheduler

            return ProgramScheduler
        return original(self)

    SchedulerConfig.get_scheduler_cls = get_scheduler_cls
    log.info("agentsched: ProgramScheduler is the default scheduler")
