"""agentsched inside vLLM: soft pins, program order and control endpoints, on a stock engine.

`register` is the entry point of the group `vllm.general_plugins`; `scheduler.ProgramScheduler` is
what `--scheduler-cls` names, and `endpoints.make` adds the HTTP routes. Importing this package
costs nothing and pulls in no engine.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from agentsched_adapters.vllm_plugin.versions import SUPPORTED, refusal

__all__ = ["SCHEDULER_CLASS", "SUPPORTED", "register"]

#: A child of vLLM's logger, so that what we say appears where the engine's own words do.
LOGGER: Final = "vllm.agentsched"
log = logging.getLogger(LOGGER)

#: What `--scheduler-cls` is given.
SCHEDULER_CLASS: Final = "agentsched_adapters.vllm_plugin.scheduler.ProgramScheduler"
#: `1` makes our scheduler the default of the engine; `0` makes it behave as stock, flag or not.
ENABLE_VARIABLE: Final = "AGENTSCHED_PLUGIN"

_state = {"registered": False}


def register() -> None:
    """Make `ProgramScheduler` the engine's default scheduler where `AGENTSCHED_PLUGIN=1`.

    Called by vLLM in each of its processes, perhaps several times. Does nothing where the variable
    is not set, where a version is not supported (it says so), or where the operator chose a
    scheduler class. Never raises: an engine must start.
    """
    if _state["registered"] or os.environ.get(ENABLE_VARIABLE, "") != "1":
        return
    _state["registered"] = True
    try:
        reason = refusal()
        if reason is not None:
            log.error("%s", reason)
            return
        from agentsched_adapters.vllm_plugin.default import become_default

        become_default()
    except Exception:
        log.exception("agentsched could not register; the engine runs as stock")
