"""Paths, methods, limits and noes of the HTTP surface; health and metrics."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from proxy_upstream import Exchange, Upstream

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'


def post(path: bytes = b"/v1/chat/completions", *lines: bytes, body: bytes = BODY) -> bytes:
    head = [b"POST %s HTTP/1.1" % path, b"host: x", b"connection: close", *lines]
    if not any(line.lower().startswith((b"content-length", b"transfer")) for line in lines):
        head.append(b"content-length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def parsed(said: bytes) -> tuple[int, dict[str, str], Any]:
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines)}
    return int(first.split(" ")[1]), headers, json.loads(body)


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        [
            "/v1/../metrics",
            "/v1/%2e%2e/metrics",
            "/v1/.%2E/metrics",
            "/v1/./models",
            "/v1/a%2fb",
            "/v1/models/a%2F..%2Fb",
            "/v1/models/..%2fload_lora_adapter",
            "/v1/models/%2e%2e%2fload_lora_adapter",
            "/v1/models/a%2F%2Fb",
            "/v1/models%2Fa",
            "/v1/a%2F..%2Fb",
            "/v1/a\\b",
            "/v1/a%5cb",
            "/v1//load_lora_adapter",  # another server may leave out the empty part
            "/v1/chat//completions",
            "//v1//models",
            "http://x/v1//models",
        ],
    )
    async def test_tricks_are_refused(self, proxy: Any, upstream: Upstream, path: str) -> None:
        status, _, said = parsed(await proxy.say(post(path.encode())))
        assert (status, said["error"]["code"]) == (400, "bad_path")
        assert upstream.exchanges == []

    async def test_a_base_url_with_a_slash_too_many_is_told_so(self, proxy: Any) -> None:
        _, _, said = parsed(await proxy.say(post(b"/v1//chat/completions")))
        assert "two slashes" in said["error"]["message"]

    @pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v2/models", "//v1/models", "/v1x/y"])
    async def test_there_is_nothing_elsewhere(self, proxy: Any, path: str) -> None:
        status, _, said = parsed(await proxy.say(post(path.encode())))
        assert (status, said["error"]["code"]) == (404, "not_found")

    @pytest.mark.parametrize(
        ("method", "path"),
        [("GET", "/tokenize"), ("PUT", "/agentsched/v1/engines"), ("PROPFIND", "/v1/models")],
    )
    async def test_wrong_methods(self, proxy: Any, method: str, path: str) -> None:
        response = await proxy.client.request(method, path)
        assert response.status_code == 405
        assert response.json()["error"]["code"] == "method_not_allowed"
        assert response.headers["allow"]

    async def test_anthropics_shape_on_its_paths(self, proxy: Any) -> None:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            response = await proxy.client.post(path, content=b"x" * (33 << 20))
            assert response.status_code == 413
            assert response.json()["type"] == "error"
            assert response.json()["request_id"] == response.headers["x-request-id"]


class TestGarbage:
    @pytest.mark.parametrize(
        "said",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) + b"\r\n\r\n",
            b"hello\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
            b"POST /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
            b"POST /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n"
            b"content-length: 2\r\n\r\n",
            b"FOO /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
            b"POST /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"
            b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nbad header\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nhost: x\r\na: b\x00c\r\n\r\n",
        ],
    )
    async def test_on_the_socket(self, proxy: Any, upstream: Upstream, said: bytes) -> None:
        status, headers, body = parsed(await proxy.say(said))
        assert (status, body["error"]["code"]) == (400, "bad_http")
        assert headers["server"] == "agentsched"
        assert upstream.exchanges == []
        assert (await proxy.chat()).status_code == 200

    async def test_after_a_good_request(self, proxy: Any) -> None:
        reader, writer = await proxy.raw(post().replace(b"connection: close\r\n", b""))
        async with asyncio.timeout(60):
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            writer.write(b"\x00garbage\r\n\r\n")
            assert b"bad_http" in await reader.read()
        writer.close()

    async def test_megabytes_behind_it_do_not_cost_the_answer(self, proxy: Any) -> None:
        # A socket that is closed with bytes unread is reset, and then the client reads nothing.
        reader, writer = await proxy.raw(self.beginning)
        async with asyncio.timeout(60):
            for _ in range(48):
                writer.write(b"x" * (1 << 20))
                await writer.drain()
            status, _, said = parsed(await reader.read())
        assert (status, said["error"]["code"]) == (400, "bad_http")
        writer.close()

    async def test_who_never_stops_is_let_go(self, start: Any, upstream: Upstream) -> None:
        async with start(upstream.url, http={"body_timeout": "200ms"}) as proxy:
            reader, writer = await proxy.raw(self.beginning)
            async with asyncio.timeout(60):
                assert b"bad_http" in await reader.read()
                with pytest.raises(ConnectionError):
                    await self.never_stop(writer)
            writer.close()

    @staticmethod
    async def never_stop(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0)

    #: No HTTP, for it says twice what its body is; and the body would be long.
    beginning = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: a/b\r\n"
        b"content-type: a/b\r\ncontent-length: %d\r\n\r\n" % (48 << 20)
    )


class TestHeaderLimits:
    @pytest.mark.parametrize(
        "lines", [[b"a: " + b"x" * 17_000], [b"a%d: b" % i for i in range(200)]]
    )
    async def test_too_large(self, proxy: Any, lines: list[bytes]) -> None:
        status, _, said = parsed(await proxy.say(post(b"/v1/chat/completions", *lines)))
        assert status == 431
        assert said["error"]["type"] == "invalid_request_error"

    async def test_too_long_a_path(self, proxy: Any) -> None:
        status, _, _ = parsed(await proxy.say(post(b"/v1/" + b"x" * 17_000)))
        assert status == 431

    async def test_configured(self, start: Any, upstream: Upstream) -> None:
        async with start(upstream.url, http={"headers_max": 16}) as proxy:
            lines = [b"a%d: b" % i for i in range(10)]
            assert b"200 OK" in await proxy.say(post(b"/v1/chat/completions", *lines))
            lines = [b"a%d: b" % i for i in range(20)]
            assert b" 431 " in await proxy.say(post(b"/v1/chat/completions", *lines))


class TestBodies:
    async def test_too_large(self, start: Any, upstream: Upstream) -> None:
        async with start(upstream.url, http={"body_bytes_max": 2_000}) as proxy:
            assert (await proxy.chat("x" * 1_500)).status_code == 200
            for path in ("/v1/chat/completions", "/v1/embeddings"):
                response = await proxy.client.post(path, content=b" " * 2_001)
                assert response.status_code == 413
                assert response.json()["error"]["code"] == "body_too_large"
            # Without a length it shows only while it is read.
            chunks = b"".join(b"400\r\n%s\r\n" % (b" " * 1_024) for _ in range(3)) + b"0\r\n\r\n"
            chunked = post(b"/v1/chat/completions", b"transfer-encoding: chunked", body=chunks)
            status, _, said = parsed(await proxy.say(chunked))
            assert (status, said["error"]["code"]) == (413, "body_too_large")
        assert len(upstream.exchanges) == 1

    async def test_too_slow(self, start: Any, upstream: Upstream) -> None:
        async with start(upstream.url, http={"body_timeout": "50ms"}) as proxy:
            reader, writer = await proxy.raw(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"
            )
            async with asyncio.timeout(60):
                said = await reader.readuntil(b"}}")
            status, _, body = parsed(said)
            assert (status, body["error"]["code"]) == (408, "body_timeout")
            writer.close()

    async def test_what_ends_too_early(self, proxy: Any) -> None:
        reader, writer = await proxy.raw(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"
        )
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        assert (await proxy.chat()).status_code == 200

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"nul", b"{}", b"[" * 100_000])
    async def test_no_request(self, proxy: Any, body: bytes) -> None:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"):
            response = await proxy.client.post(path, content=body)
            assert response.status_code == 400
            assert response.json()["error"]["message"]
            assert response.headers["x-request-id"]

    @pytest.mark.parametrize("encode", [gzip.compress, zlib.compress])
    async def test_compressed(self, proxy: Any, upstream: Upstream, encode: Any) -> None:
        encoding = "gzip" if encode is gzip.compress else "deflate"
        response = await proxy.client.post(
            "/v1/chat/completions", content=encode(BODY), headers={"content-encoding": encoding}
        )
        assert response.status_code == 200
        seen = await upstream.exchange()
        assert seen.body == BODY
        assert "content-encoding" not in seen.headers

    async def test_badly_compressed(self, proxy: Any) -> None:
        for body in (b"not gzip at all", gzip.compress(BODY)[:-12]):
            response = await proxy.client.post(
                "/v1/chat/completions", content=body, headers={"content-encoding": "gzip"}
            )
            assert response.status_code == 400
            assert response.json()["error"]["type"] == "invalid_request_error"

    @pytest.mark.parametrize("encoding", ["compress", "gzip, gzip", "snappy", "deflate;q=1", "x"])
    async def test_an_encoding_that_nobody_undoes(
        self, proxy: Any, upstream: Upstream, encoding: str
    ) -> None:
        """The engine is not told of encodings: it would take the bytes for what they are not."""
        for path in ("/v1/chat/completions", "/v1/anything"):
            response = await proxy.client.post(
                path, content=BODY, headers={"content-encoding": encoding}
            )
            assert response.status_code == 415
            assert response.json()["error"]["code"] == "unsupported_encoding"
        assert upstream.exchanges == []
        response = await proxy.client.post(
            "/v1/chat/completions", content=BODY, headers={"content-encoding": "Identity"}
        )
        assert response.status_code == 200

    async def test_a_decompression_bomb(self, start: Any, upstream: Upstream) -> None:
        bomb = gzip.compress(b" " * (64 << 20), compresslevel=6)
        async with start(upstream.url, http={"body_bytes_max": 1 << 20}) as proxy:
            tracemalloc.start()
            try:
                response = await proxy.client.post(
                    "/v1/chat/completions", content=bomb, headers={"content-encoding": "gzip"}
                )
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert response.status_code == 413
        assert peak < 20 << 20


class TestExpect:
    async def test_continue(self, proxy: Any) -> None:
        said = await proxy.say(post(b"/v1/chat/completions", b"expect: 100-continue"))
        assert said.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")

    async def test_no_need_to_send_what_is_too_large(self, proxy: Any) -> None:
        lines = [b"expect: 100-continue", b"content-length: 99999999"]
        reader, writer = await proxy.raw(post(b"/v1/chat/completions", *lines, body=b""))
        async with asyncio.timeout(60):
            said = await reader.readuntil(b"}}")
        status, _, body = parsed(said)
        assert (status, body["error"]["code"]) == (413, "body_too_large")
        writer.close()

    @pytest.mark.parametrize("expected", [b"100-continue", b"miracles"])
    async def test_of_http_1_0_it_means_nothing(self, proxy: Any, expected: bytes) -> None:
        """An interim answer would be taken for the answer."""
        said = post(b"/v1/chat/completions", b"expect: " + expected).replace(b"/1.1", b"/1.0", 1)
        answer = await proxy.say(said)
        assert answer.startswith(b"HTTP/1.0 200 OK\r\n")

    async def test_anything_else(self, proxy: Any) -> None:
        said = await proxy.say(post(b"/v1/chat/completions", b"expect: miracles"))
        status, _, body = parsed(said)
        assert (status, body["error"]["code"]) == (417, "bad_expectation")


class TestHealth:
    async def test_up(self, proxy: Any) -> None:
        assert (await proxy.client.get("/healthz")).json() == {"status": "ok"}
        response = await proxy.client.get("/readyz")
        assert response.status_code == 200
        assert response.json() == {"is_ready": True, "reason": "", "engines_up": ["e0"]}
        assert (await proxy.client.head("/readyz")).status_code == 200

    async def test_without_an_engine(self, start: Any) -> None:
        async with start("http://127.0.0.1:1") as proxy:
            assert (await proxy.client.get("/healthz")).status_code == 200
            response = await proxy.client.get("/readyz")
            assert response.status_code == 503
            assert response.json()["reason"] == "no engine is up"

    async def test_a_defect_of_the_control_plane(
        self, proxy: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken() -> None:
            raise ZeroDivisionError("surprise")

        monkeypatch.setattr(proxy.gateway.meters, "exposition", broken)
        response = await proxy.client.get("/metrics")
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert len([r for r in caplog.records if r.exc_info]) == 1


async def test_a_defect_in_the_middle_of_a_plain_answer_breaks_the_connection(
    proxy: Any, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.stream(b"x" * 100)

    async def broken(*args: object) -> None:
        raise ZeroDivisionError("surprise")

    upstream.script = script
    monkeypatch.setattr("agentsched.proxy.plain.send", broken)
    said = await proxy.say(b"GET /v1/anything HTTP/1.1\r\nhost: x\r\n\r\n")
    assert said.count(b"HTTP/1.1") <= 1
    assert b"internal_error" not in said


def samples(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def test_metrics_add_up(proxy: Any, upstream: Upstream) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.whole(400, b"{}")

    for is_stream in (False, True, True):
        await proxy.chat(stream=is_stream)
    upstream.script = refuse
    await proxy.chat()
    await proxy.chat(model="unheard-of")
    response = await proxy.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(response.text)
    assert found["agentsched_steps_total{step_class=step}"] == 5
    ended = {k: v for k, v in found.items() if k.startswith("agentsched_steps_ended_total")}
    assert ended == {
        "agentsched_steps_ended_total{outcome=finished}": 3,
        "agentsched_steps_ended_total{outcome=failed}": 1,
        "agentsched_steps_ended_total{outcome=rejected}": 1,
    }
    assert found["agentsched_rejects_total{reason=unknown_model}"] == 1
    assert found["agentsched_dispatches_total{engine=e0,place=new}"] == 4
    assert found["agentsched_tokens_total{engine=e0,kind=prompt}"] == 21
    assert found["agentsched_tokens_total{engine=e0,kind=output}"] == 6
    assert found["agentsched_time_to_first_token_seconds_count"] == 2
    assert found["agentsched_step_seconds_count"] == 5
    assert found["agentsched_wait_seconds_count"] == 4
    assert found["agentsched_engine_up{engine=e0}"] == 1
    assert found["agentsched_running_steps"] == found["agentsched_waiting_steps"] == 0
    assert found["agentsched_events_total"] >= 10
    # This engine has no such gauge, so there is no such value.
    assert "agentsched_engine_kv_usage{engine=e0}" not in found
