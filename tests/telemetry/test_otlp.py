"""A proxy's spans and metrics at a real OTLP/HTTP receiver."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agentsched.model import MILLISECOND, SECOND, Instant, Nanos
from agentsched.telemetry.context import TraceContext
from agentsched.telemetry.export_words import WORDS, ExportWords
from agentsched.telemetry.otlp import SpanQueue, exporting
from agentsched.telemetry.span import Span

CLIENT_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN = "00f067aa0ba902b7"
MINUTE = Nanos(60 * SECOND)
Said = Callable[[Any], dict[str, Any]]


def settings(receiver: Any, **more: Any) -> dict[str, Any]:
    own = {
        "otlp_endpoint": receiver.url,
        "otlp_headers": {"x-key": "for-the-collector"},
        "flush_interval": "20ms",
        "metrics_interval": "50ms",
        "shutdown_timeout": "60s",  # what is sent last is looked at, whatever else the machine does
    }
    return {"telemetry": own | more}


async def test_models_that_nobody_serves_take_no_labels(watch: Any) -> None:
    async with watch() as proxy:
        for number in range(40):
            body = {"model": f"wrong-{number}", "messages": [{"role": "user", "content": "hi"}]}
            refused = await proxy.client.post("/v1/chat/completions", json=body)
            assert refused.status_code == 404
        assert (await proxy.ask([{"role": "user", "content": "hi"}])).status_code == 200
        page = await proxy.metrics()
    assert 'gen_ai_request_model="sim"' in page
    assert "wrong-" not in page


def requests_told(receiver: Any) -> int:
    """How many requests the histogram of their durations has."""
    duration = receiver.metrics.get("gen_ai.server.request.duration")
    points = duration.histogram.data_points if duration is not None else ()
    return sum(point.count for point in points)


class TestOneProgram:
    @pytest.fixture
    async def received(self, watch: Any, receiver: Any) -> Any:
        async with watch(**settings(receiver)) as proxy:
            answers = await proxy.run_agent(
                x_agentsched_program="run-1", user_agent="OpenAI/Python 2.0"
            )
            assert [a.status_code for a in answers] == [200, 200]
            await proxy.client.post(
                f"/agentsched/v1/programs/{answers[0].headers['x-agentsched-program']}/release"
            )
            await receiver.until(lambda: len(receiver.spans) == 4)
            # Both of them: the push at the end gives a busy machine two seconds only.
            await receiver.until(lambda: requests_told(receiver) == 2)
        return receiver

    async def test_is_one_trace(self, received: Any, said: Said) -> None:
        [agent] = received.named("invoke_agent")
        chats, [tool] = received.named("chat sim"), received.named("execute_tool bash")
        assert len({span.trace_id for span in received.spans}) == 1
        assert not agent.parent_span_id
        assert {span.parent_span_id for span in (*chats, tool)} == {agent.span_id}
        assert len({span.span_id for span in received.spans}) == 4
        first, second = sorted(chats, key=lambda span: span.start_time_unix_nano)
        assert agent.start_time_unix_nano == first.start_time_unix_nano
        assert agent.end_time_unix_nano >= second.end_time_unix_nano
        assert first.end_time_unix_nano == tool.start_time_unix_nano
        assert tool.end_time_unix_nano == second.start_time_unix_nano
        assert abs(first.start_time_unix_nano - time.time_ns()) < 60 * SECOND

    async def test_speaks_the_conventions(self, received: Any, said: Said) -> None:
        chat = said(min(received.named("chat"), key=lambda span: span.start_time_unix_nano))
        assert chat["gen_ai.operation.name"] == "chat"
        assert chat["gen_ai.provider.name"] == "vllm"
        assert chat["gen_ai.request.model"] == "sim"
        assert chat["gen_ai.usage.input_tokens"] > 0
        assert chat["gen_ai.usage.output_tokens"] > 0
        assert chat["gen_ai.response.finish_reasons"] == ["tool_calls"]
        assert chat["agentsched.engine"] == "e0"
        assert chat["agentsched.wait"] >= 0
        assert len(chat["agentsched.request.id"]) == 32
        tool = said(received.named("execute_tool")[0])
        assert tool["gen_ai.tool.name"] == "bash"
        assert tool["gen_ai.operation.name"] == "execute_tool"
        agent = said(received.named("invoke_agent")[0])
        assert agent["gen_ai.agent.id"] == chat["gen_ai.agent.id"]
        assert (agent["agentsched.inference_calls"], agent["agentsched.tool_calls"]) == (2, 1)

    async def test_says_who_it_is(self, received: Any) -> None:
        assert received.resources[0]["service.name"] == "agentsched"
        assert received.resources[0]["service.version"]
        assert all(h["x-key"] == "for-the-collector" for h in received.headers)

    async def test_tells_no_secrets(self, received: Any) -> None:
        for private in (b"frobnicator", b"very-secret", b"two files", b"ls -l"):
            assert private not in received.bytes_total

    async def test_metrics_come_by_their_names(self, received: Any) -> None:
        duration = received.metrics["gen_ai.server.request.duration"]
        assert duration.unit == "s"
        [point] = duration.histogram.data_points
        assert point.count == sum(point.bucket_counts) == 2
        assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
        # A scrape does not know them.
        assert (point.HasField("min"), point.HasField("max")) == (False, False)
        assert {pair.key for pair in point.attributes} >= {
            "gen_ai.operation.name",
            "gen_ai.request.model",
        }
        assert received.metrics["agentsched_steps"].sum.is_monotonic
        assert received.metrics["agentsched_programs"].gauge.data_points


class TestClientsTrace:
    async def test_is_honoured_and_forwarded(self, watch: Any, receiver: Any, said: Said) -> None:
        header = f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"
        async with watch(**settings(receiver)) as proxy:
            await proxy.ask(
                [{"role": "user", "content": "hi"}], traceparent=header, tracestate="v=1"
            )
        [agent], [chat] = receiver.named("invoke_agent"), receiver.named("chat")
        assert chat.trace_id.hex() == agent.trace_id.hex() == CLIENT_TRACE
        assert chat.parent_span_id.hex() == agent.parent_span_id.hex() == CLIENT_SPAN
        assert [link.span_id for link in chat.links] == [agent.span_id]

    async def test_its_no_is_a_no(self, watch: Any, receiver: Any) -> None:
        async with watch(**settings(receiver)) as proxy:
            unsampled = f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-00"
            await proxy.ask([{"role": "user", "content": "hi"}], traceparent=unsampled)
            await proxy.ask([{"role": "user", "content": "another"}])
        assert len(receiver.named("chat")) == 1
        assert receiver.named("chat")[0].trace_id.hex() != CLIENT_TRACE


class TestTrouble:
    async def test_off_unless_configured(self, watch: Any, receiver: Any) -> None:
        async with watch() as proxy:
            await proxy.run_agent()
            text = await proxy.metrics()
        assert receiver.requests == 0
        assert "agentsched_spans" not in text
        assert "gen_ai_server_request_duration_seconds_count" in text

    async def test_a_receiver_that_fails_is_counted(self, watch: Any, receiver: Any) -> None:
        receiver.status = 400
        async with watch(**settings(receiver, metrics_interval="off")) as proxy:
            assert (await proxy.run_agent())[1].status_code == 200
            await receiver.until(lambda: receiver.requests >= 1)
            async with asyncio.timeout(60):
                while 'agentsched_spans_total{outcome="failed"}' not in await proxy.metrics():
                    pass
                while 'spans_total{outcome="failed"} 0.0' in await proxy.metrics():
                    pass

    async def test_the_log_says_why_nothing_goes_out(
        self, watch: Any, receiver: Any, caplog: Any
    ) -> None:
        """Whoever mistyped the endpoint, or gave no key, has nothing else to go by."""
        receiver.status = 404
        async with watch(**settings(receiver)) as proxy:
            assert (await proxy.run_agent())[1].status_code == 200
            async with asyncio.timeout(60):
                while 'spans_total{outcome="failed"} 0.0' in await proxy.metrics():
                    pass
        found = {r.getMessage() for r in caplog.records if "cannot be exported" in r.getMessage()}
        assert {said.partition(" ")[0] for said in found} == {"spans", "metrics"}
        assert all("404" in said for said in found)

    async def test_a_last_export_that_does_not_end_says_why(
        self, receiver: Any, caplog: Any
    ) -> None:
        receiver.url = "http://127.0.0.1:9"  # discard: nobody listens there
        queue = SpanQueue(spans_max=9)
        WORDS.forget()
        async with export(
            queue, receiver, flush_interval=MILLISECOND, shutdown_timeout=MILLISECOND
        ):
            queue.put(span(1))
            async with asyncio.timeout(60):
                while not WORDS.reason:  # noqa: ASYNC110 - said on the exporter's thread
                    await asyncio.sleep(0)
        [said] = [r.getMessage() for r in caplog.records if "did not end" in r.getMessage()]
        assert said.startswith("the last export did not end in 0.001 s: ")
        assert "refused" in said

    def test_a_receiver_that_answers_with_a_page_gets_a_line(self) -> None:
        words = ExportWords()
        words.handle(logging.makeLogRecord({"msg": "<html>\n" + "x" * 5_000, "levelno": 40}))
        words.handle(logging.makeLogRecord({"msg": "given up", "levelno": 40}))
        assert words.reason.startswith("<html> xxx")
        assert len(words.reason) == 300
        words.forget()
        assert words.reason == ""

    async def test_a_receiver_that_hangs_does_not_keep_us(self, watch: Any, receiver: Any) -> None:
        receiver.answers.clear()
        own = {"shutdown_timeout": "200ms", "otlp_timeout": "1h", "metrics_interval": "off"}
        async with watch(**settings(receiver, **own)) as proxy:
            assert (await proxy.run_agent())[1].status_code == 200
        # It has ended, and nobody was answered yet.
        assert not receiver.answers.is_set()
        assert receiver.spans == []

    async def test_what_waits_is_bounded(self) -> None:
        queue = SpanQueue(spans_max=3)
        for i in range(5):
            queue.put(span(i + 1))
        queue.put(span(9, is_sampled=False))
        assert (len(queue), queue.dropped) == (3, 2)

    async def test_a_machine_that_slept_tells_the_time_of_day(self, receiver: Any) -> None:
        """Its monotonic clock stood still meanwhile; the clock on the wall did not."""
        slept = 0

        def now() -> Instant:
            return Instant(time.monotonic_ns() - slept)

        queue = SpanQueue(spans_max=9)
        async with export(queue, receiver, flush_interval=MILLISECOND, now=now):
            for number in (1, 2):
                queue.put(replace(span(number), begin=now(), end=now()))
                await receiver.until(lambda number=number: len(receiver.spans) == number)  # type: ignore[misc]
                off = time.time_ns() - receiver.spans[-1].start_time_unix_nano
                assert abs(off) < 60 * SECOND
                slept = 3_600 * SECOND

    async def test_the_end_sends_what_waits(self, receiver: Any) -> None:
        queue = SpanQueue(spans_max=5_000)
        async with export(queue, receiver, flush_interval=Nanos(3_600 * SECOND)):
            for i in range(1_200):  # more than a batch
                queue.put(span(i + 1))
        assert len(receiver.spans) == 1_200 == queue.sent
        assert len(queue) == 0


def span(number: int, *, is_sampled: bool = True) -> Span:
    return Span(
        name="chat",
        context=TraceContext(1, number, is_sampled),
        parent=None,
        begin=Instant(0),
        end=Instant(1),
    )


def export(
    queue: SpanQueue,
    receiver: Any,
    *,
    flush_interval: Nanos,
    shutdown_timeout: Nanos = MINUTE,
    now: Callable[[], Instant] = lambda: Instant(0),
) -> Any:
    return exporting(
        queue,
        base_url=receiver.url,
        headers={},
        service="agentsched",
        instance="test",
        now=now,
        timeout=MINUTE,
        flush_interval=flush_interval,
        shutdown_timeout=shutdown_timeout,
    )
