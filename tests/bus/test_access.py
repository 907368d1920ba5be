"""A mosquitto that asks who is there: TLS, passwords, and the access list of docs/bus.md."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from live import eventually

from agentsched.bus.service import Bus
from agentsched.config import Config
from agentsched.model import ConfigError, TenantId
from agentsched.proxy.app import build_gateway
from agentsched.proxy.on_bus import joined
from agentsched_bench.services.certificates import Certificate, make_certificate
from agentsched_bench.services.mosquitto import LocalMosquitto

pytestmark = [pytest.mark.services, pytest.mark.slow]

PAGE = Path(__file__).parents[2] / "docs" / "bus.md"
PASSWORDS = {"agentsched": "secret", "runner": "other"}


@dataclass(frozen=True)
class Guarded:
    """A broker that lets in who has a password, and whom its certificate is signed by."""

    port: int
    authority: Certificate

    def url(self, password: str = "secret", scheme: str = "mqtts") -> str:
        return f"{scheme}://agentsched:{password}@127.0.0.1:{self.port}"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    authority = make_certificate(tmp_path, "authority")
    server = make_certificate(tmp_path, "broker", by=authority)
    [rules] = re.findall(r"```\n(# replicas\n.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "acl").write_text(rules)
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    for user, password in PASSWORDS.items():
        command = ["mosquitto_passwd", "-b", str(passwords), user, password]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    settings = (
        f"certfile {server.certificate}",
        f"keyfile {server.key}",
        "allow_anonymous false",
        f"password_file {passwords}",
        f"acl_file {tmp_path / 'acl'}",
    )
    with LocalMosquitto(settings=settings) as broker:
        yield Guarded(broker.port, authority)


@contextlib.asynccontextmanager
async def member(name: str, url: str, ca: Certificate | None) -> AsyncIterator[Bus]:
    """A proxy's end of the bus, from its configuration."""
    bus = {"url": url, "cluster": "prod", "replica": name}
    if ca is not None:
        bus["tls_ca"] = str(ca.certificate)
    settings: dict[str, Any] = {"engines": [{"url": "http://127.0.0.1:9"}], "bus": bus}
    config = Config(**settings)
    async with joined(config, build_gateway(config), url=f"http://{name}") as found:
        assert found is not None
        yield found


async def test_replicas_meet_over_tls_with_their_password(guarded: Guarded) -> None:
    url, ca = guarded.url(), guarded.authority
    async with member("one", url, ca) as one:
        async with member("two", url, ca) as two:
            await eventually(lambda: one.neighbours().others == ("two",))
            await eventually(lambda: two.neighbours().others == ("one",))
        await eventually(lambda: list(one.neighbours().gone) == ["two"])


# The MQTT library leaves the socket of a handshake that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize("wrong", ["password", "authority", "no TLS"])
async def test_who_is_not_let_in_decides_alone(guarded: Guarded, wrong: str) -> None:
    url, ca = guarded.url(), guarded.authority
    match wrong:
        case "password":
            url = guarded.url("guessed")
        case "authority":
            ca = None
        case _:
            url, ca = guarded.url(scheme="mqtt"), None
    async with member("one", url, ca) as one:
        await eventually(lambda: one.connection.counts["away"] > 0)
        assert not one.connection.counts["connected"]
        assert not one.neighbours().is_connected
    gc.collect()


async def test_a_runner_may_report_tools_and_nothing_else(guarded: Guarded) -> None:
    context = ssl.create_default_context(cafile=str(guarded.authority.certificate))
    async with (
        member("one", guarded.url(), guarded.authority) as one,
        aiomqtt.Client(
            "127.0.0.1",
            guarded.port,
            username="runner",
            password=PASSWORDS["runner"],
            tls_context=context,
            protocol=aiomqtt.ProtocolVersion.V5,
        ) as runner,
    ):
        await one.connection.is_up.wait()
        tool, base = json.dumps({"tool": "bash"}), "agentsched/prod"
        served = json.dumps({"epoch": "1", "uncached_tokens": 10**9, "output_tokens": 0})
        present = json.dumps({"state": "up", "epoch": "1", "url": "", "version": ""})
        await runner.publish(f"{base}/tools/p/c/started", tool, 1)
        await runner.publish(f"{base}/tenants/red/evil", served, 1)
        await runner.publish(f"{base}/replicas/evil", present, 1)
        await runner.publish("agentsched/test/tools/p/c/started", tool, 1)
        await runner.publish(f"{base}/tools/p/c/finished", tool, 1)
        # In the order in which they were sent: what lies between would have come by now.
        await eventually(
            lambda: sum(n for what, n in one.counts.items() if what[:5] == "tool_") == 2
        )
        assert not one.neighbours().others
        assert one.peers.names_of(TenantId("red")) == ()
        assert not one.counts["malformed"] + one.counts["foreign"] + one.counts["replica"]


async def test_a_file_of_certificates_that_is_not_there_is_told(tmp_path: Path) -> None:
    missing = Certificate(tmp_path / "none.crt", tmp_path / "none.key", None, None)
    with pytest.raises(ConfigError, match="certificates cannot be read"):
        async with member("one", "mqtts://127.0.0.1:1", missing):
            pass
