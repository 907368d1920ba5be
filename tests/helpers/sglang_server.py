"""SGLang's surface, as its documentation has it: a scripted server."""

from __future__ import annotations

from typing import Any

from aiohttp import web

INFO = {
    "version": "0.5.19",
    "max_total_num_tokens": 98_328,
    "page_size": 16,
    "context_length": 32_768,
    "max_running_requests": 128,
    "disable_radix_cache": False,
    "enable_priority_scheduling": True,
    "enable_cache_report": True,
    "enable_metrics": True,
    "internal_states": [{}],
}
METRICS = """# HELP sglang:num_running_reqs The number of running requests
sglang:num_running_reqs{model_name="m"} 3.0
sglang:num_queue_reqs{model_name="m"} 7.0
sglang:token_usage{model_name="m"} 0.28
"""


def sglang_app(info: Any, *, at: str = "/server_info", metrics: str = METRICS) -> web.Application:
    """A server that says this of itself there."""

    async def get(request: web.Request) -> web.Response:
        match request.path:
            case "/v1/models":
                return web.json_response({"data": [{"id": "m", "owned_by": "sglang"}]})
            case "/metrics":
                return web.Response(text=metrics)
            case path if path == at:
                return web.json_response(info)
        return web.Response(status=404)

    application = web.Application()
    application.router.add_get("/{path:.*}", get)
    return application
