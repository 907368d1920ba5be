"""Engines at run time: our port is no way into the network behind it."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.config import EngineConfig
from agentsched.model import ConfigError
from agentsched.proxy.access import targets
from agentsched.proxy.access.targets import check_target

URL = "/agentsched/v1/engines"


def engine(url: str) -> EngineConfig:
    return EngineConfig.model_validate({"url": url})


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "http://169.254.169.254:80",
        "http://2852039166/",  # the same, as one number
        "http://0xa9fea9fe/",
        "http://[fe80::1]:8000",
        "http://[::ffff:169.254.169.254]",
        "http://[::ffff:a9fe:a9fe]",
        "http://[fd00:ec2::254]",
        "http://[2002:a9fe:a9fe::1]",
        "http://[64:ff9b::169.254.169.254]",  # as a network without IPv4 reaches it
        "http://[64:ff9b:1::a9fe:a9fe]",
        "http://100.100.100.200",
        "http://192.0.0.192",
        "http://168.63.129.16",
        "http://metadata.google.internal",
        "http://METADATA.google.internal./",
        "http://0.0.0.0:22",
        "http://[::]:22",
        "http://224.0.0.1",
    ],
)
async def test_credentials_and_links_are_refused(url: str) -> None:
    for allowed in ((), ("*",), ("0.0.0.0/0", "::/0")):
        with pytest.raises(ConfigError):
            await check_target(engine(url), allowed)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000",
        "http://10.1.2.3",
        "http://[::1]:8000",
        "http://[64:ff9b::10.1.2.3]",
    ],
)
async def test_others_are_not(url: str) -> None:
    await check_target(engine(url), ())


@pytest.mark.parametrize(
    ("url", "allowed"),
    [("http://169.254.169.254/latest", ()), ("http://10.1.2.3:9000", ("127.0.0.1",))],
)
async def test_the_controller_of_tiers_is_a_target_too(url: str, allowed: tuple[str, ...]) -> None:
    tiered = EngineConfig.model_validate({"url": "http://127.0.0.1:8000", "lmcache": url})
    with pytest.raises(ConfigError):
        await check_target(tiered, allowed)
    await check_target(tiered.model_copy(update={"lmcache": None}), allowed)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("tcp://169.254.169.254:80", ()),
        ("tcp://[fe80::1]:5557", ()),
        ("tcp://10.1.2.3:5557", ("127.0.0.1",)),
    ],
)
async def test_whoever_publishes_its_events_is_a_target_too(
    address: str, allowed: tuple[str, ...]
) -> None:
    heard = EngineConfig.model_validate({"url": "http://127.0.0.1:8000", "kv_events": address})
    with pytest.raises(ConfigError):
        await check_target(heard, allowed)
    await check_target(heard.model_copy(update={"kv_events": None}), allowed)


@pytest.mark.parametrize(
    ("url", "allowed", "is_good"),
    [
        ("http://10.1.2.3:8000", ("10.0.0.0/8",), True),
        ("http://11.1.2.3:8000", ("10.0.0.0/8",), False),
        ("http://[::ffff:10.1.2.3]:8000", ("10.0.0.0/8",), True),
        ("http://127.0.0.1:8000", ("127.0.0.1",), True),
        ("http://127.0.0.1:8000", ("gpu-*.internal",), False),
        ("http://localhost:8000", ("localhost",), True),
        ("http://localhost:8000", ("LOCAL*",), True),
        ("http://localhost:8000", ("local",), False),
    ],
)
async def test_hosts_that_are_named(url: str, allowed: tuple[str, ...], is_good: bool) -> None:
    if is_good:
        await check_target(engine(url), allowed)
        return
    with pytest.raises(ConfigError, match="engine_hosts"):
        await check_target(engine(url), allowed)


async def test_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def addresses(host: str, port: int) -> list[Any]:
        import ipaddress

        assert (host, port) == ("inside.example", 8000)
        return [ipaddress.ip_address(a) for a in ("10.0.0.1", "169.254.169.254")]

    monkeypatch.setattr(targets, "_addresses", addresses)
    with pytest.raises(ConfigError):
        await check_target(engine("http://inside.example:8000"), ())


async def test_a_name_that_nobody_has() -> None:
    with pytest.raises(ConfigError, match="looked up"):
        await check_target(engine("http://none.invalid"), ())


class TestThroughTheProxy:
    async def test_an_admin_may_add_what_may_be(
        self, start_keyed: Any, keys: Any, upstream: Any, second: Any
    ) -> None:
        allowed = {"engine_hosts": ["127.0.0.0/8"]}
        async with start_keyed(upstream.url, auth=allowed) as proxy:
            post = proxy.client.post
            good = {"url": second.url, "id": "e1", "kind": "openai"}
            for key in (keys.red, keys.red_read, keys.metrics, keys.front):
                assert (await post(URL, json=good, headers=key.headers)).status_code == 403
            assert (await post(URL, json=good)).status_code == 401
            for url in ("http://169.254.169.254", "http://10.0.0.1", "file:///etc/passwd", "x"):
                refused = await post(URL, json={"url": url}, headers=keys.admin.headers)
                assert refused.status_code == 400, refused.text
            assert list(proxy.gateway.fleet.members) == ["e0"]
            added = await post(URL, json=good, headers=keys.admin.headers)
            assert added.status_code == 202, added.text
            await proxy.turns.until(lambda: "e1" in proxy.scheduler.engines)

    async def test_redirects_lead_nowhere(self, proxy: Any, upstream: Any, second: Any) -> None:
        async def away(exchange: Any) -> None:
            await exchange.whole(307, b"", location=f"{second.url}/secret")

        upstream.script = away
        answer = await proxy.chat()
        assert answer.status_code == 307
        assert not second.exchanges

    async def test_a_client_cannot_choose_the_host(
        self, proxy: Any, upstream: Any, second: Any
    ) -> None:
        """Absolute targets, other Hosts and paths that look like URLs go where all else goes."""
        for line in (
            f"GET {second.url}/v1/models/m HTTP/1.1",
            f"GET //127.0.0.1:{second.port}/v1/models/m HTTP/1.1",
            "GET /v1/models/m HTTP/1.1",
        ):
            host = f"Host: 127.0.0.1:{second.port}\r\nConnection: close\r\n\r\n"
            await proxy.say(f"{line}\r\n{host}".encode())
        assert not second.exchanges
        assert {e.target for e in upstream.exchanges} == {"/v1/models/m"}
