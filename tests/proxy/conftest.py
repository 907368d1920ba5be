"""A real proxy in this process, in front of scripted engines."""

from __future__ import annotations

from proxy_rig import proxy, pytest_asyncio_loop_factories, second, start, upstream

__all__ = ["proxy", "pytest_asyncio_loop_factories", "second", "start", "upstream"]
