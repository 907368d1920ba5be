"""Run vLLM's API server in a process that ends with its parent. Run by vLLM's own Python.

    python guarded_server.py PARENT_PID SERVER_ARGUMENTS...

A parent that is killed cannot clean up, and a forgotten engine holds all cores and a gigabyte, so
the kernel is asked to tell this process when its parent dies (on Linux; elsewhere nothing is
asked). vLLM then ends its engine process itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def _end_with_parent(parent: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # The parent may have died before we asked: then nobody will tell.
    if os.getppid() != parent:
        sys.exit("the process that started this engine is gone")


if __name__ == "__main__":
    _end_with_parent(int(sys.argv.pop(1)))
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
