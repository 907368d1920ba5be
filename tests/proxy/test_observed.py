"""What engines are told of traces, and what of the HTTP surface is in the metrics."""

from __future__ import annotations

from typing import Any

from agentsched.telemetry.context import read_traceparent

THEIRS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
#: Nobody listens there: spans go nowhere, and nothing else is different.
NOWHERE = {"otlp_endpoint": "http://127.0.0.1:9", "otlp_timeout": "50ms", "metrics_interval": "off"}


def sent(upstream: Any) -> dict[str, str]:
    """The headers of the request that the engine got last."""
    headers: dict[str, str] = upstream.exchanges[-1].headers
    return headers


async def test_a_clients_trace_passes_untouched_by_default(start: Any, upstream: Any) -> None:
    async with start(upstream.url) as proxy:
        await proxy.chat(headers={"traceparent": THEIRS, "tracestate": "a=1"})
        assert sent(upstream)["traceparent"] == THEIRS
        assert sent(upstream)["tracestate"] == "a=1"
        await proxy.chat()
        assert "traceparent" not in sent(upstream)


async def test_an_engine_gets_our_span_in_the_clients_trace(start: Any, upstream: Any) -> None:
    async with start(upstream.url, telemetry=NOWHERE) as proxy:
        await proxy.chat(headers={"traceparent": THEIRS, "tracestate": "a=1"})
        ours, theirs = read_traceparent(sent(upstream)["traceparent"]), read_traceparent(THEIRS)
        assert ours is not None
        assert theirs is not None
        assert ours.trace_id == theirs.trace_id
        assert ours.span_id != theirs.span_id
        assert sent(upstream)["tracestate"] == "a=1"


async def test_what_is_not_in_the_sample_says_so(start: Any, upstream: Any) -> None:
    async with start(upstream.url, telemetry=NOWHERE | {"sample": 0.0}) as proxy:
        await proxy.chat()
        ours = read_traceparent(sent(upstream)["traceparent"])
        assert ours is not None
        assert not ours.is_sampled


async def test_nothing_is_kept_of_ended_requests(start: Any, upstream: Any) -> None:
    async with start(upstream.url, telemetry=NOWHERE) as proxy:
        for _ in range(5):
            await proxy.chat()
        await proxy.until_idle()
        assert len(proxy.gateway.notes) == 0


async def test_metrics_of_the_surface(start: Any, upstream: Any) -> None:
    async with start(upstream.url, tenants={"vip": {"weight": 2.0}}) as proxy:
        await proxy.chat(headers={"x-agentsched-tenant": "vip"})
        report = {"event": "finished", "program": "nobody", "tool": "bash"}
        await proxy.client.post("/agentsched/v1/tools", json=report)
        text = (await proxy.client.get("/metrics")).text
        for line in (
            'agentsched_tenant_weight{tenant="vip"} 2.0',
            'agentsched_tenant_steps_total{tenant="vip"} 1.0',
            'agentsched_tool_reports_total{outcome="unknown_program"} 1.0',
            "agentsched_live_requests 0.0",
            "agentsched_draining 0.0",
            "agentsched_bypassed_steps_count 1.0",
        ):
            assert line in text.splitlines(), line
        assert "agentsched_build_info{version=" in text
