"""TLS on the proxy's own port, with certificates made here; with and without clients' own."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from pydantic import ValidationError

from agentsched.config import Config
from agentsched.config_access import TlsConfig
from agentsched.inspection.client import ControlClient, ProxyError
from agentsched.model import ConfigError
from agentsched.proxy.access import tls
from agentsched_bench.services.certificates import Certificate, make_certificate


@pytest.fixture
def authority(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path, "authority")


@pytest.fixture
def server(tmp_path: Path, authority: Certificate) -> Certificate:
    return make_certificate(tmp_path, "server", by=authority)


def settings(server: Certificate, client_ca: Certificate | None = None) -> dict[str, Any]:
    return {
        "certificate": str(server.certificate),
        "key": str(server.key),
        "client_ca": str(client_ca.certificate) if client_ca else None,
    }


def client(trusted: Certificate, own: Certificate | None = None) -> httpx.AsyncClient:
    context = ssl.create_default_context(cafile=str(trusted.certificate))
    if own is not None:
        context.load_cert_chain(*own.pair)
    return httpx.AsyncClient(verify=context, timeout=10, trust_env=False)


async def serial(proxy: Any, trusted: Certificate) -> int:
    """The serial number of the certificate that the port shows now."""
    context = ssl.create_default_context(cafile=str(trusted.certificate))
    _, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(shown).serial_number


class TestServer:
    async def test_answers_over_tls(
        self, start: Any, upstream: Any, authority: Certificate, server: Certificate
    ) -> None:
        async with start(upstream.url, tls=settings(server)) as proxy:
            assert proxy.url.startswith("https://")
            async with client(authority) as asking:
                body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
                answer = await asking.post(f"{proxy.url}/v1/chat/completions", json=body)
                assert answer.status_code == 200
                page = await asking.get(f"{proxy.url}/agentsched/v1/policies")
                assert page.headers["strict-transport-security"]

    async def test_commands_trust_whom_the_machine_trusts(
        self,
        start: Any,
        upstream: Any,
        authority: Certificate,
        server: Certificate,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Else none of them could ask a proxy whose certificate is a company's own."""

        def ask() -> dict[str, Any]:
            with ControlClient(proxy.url) as client:
                return client.get_json("/engines")

        async with start(upstream.url, tls=settings(server)) as proxy:
            with pytest.raises(ProxyError, match="CERTIFICATE_VERIFY_FAILED"):
                await asyncio.to_thread(ask)
            monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
            shown = await asyncio.to_thread(ask)
        assert [engine["engine"] for engine in shown["engines"]] == ["e0"]

    async def test_not_in_the_clear(self, start: Any, upstream: Any, server: Certificate) -> None:
        async with start(upstream.url, tls=settings(server)) as proxy:
            said = await proxy.say(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"ok" not in said

    async def test_old_versions_are_refused(
        self, start: Any, upstream: Any, authority: Certificate, server: Certificate
    ) -> None:
        context = ssl.create_default_context(cafile=str(authority.certificate))
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        async with start(upstream.url, tls=settings(server)) as proxy:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", proxy.port, ssl=context)

    async def test_a_new_certificate_without_a_restart(
        self,
        start: Any,
        upstream: Any,
        authority: Certificate,
        server: Certificate,
        tmp_path: Path,
    ) -> None:
        async with start(upstream.url, tls=settings(server)) as proxy:
            assert await serial(proxy, authority) == server.x509.serial_number
            renewed = make_certificate(tmp_path, "server", by=authority)
            # Without a file there is nothing to read again; certificates are all the same.
            os.kill(os.getpid(), signal.SIGHUP)
            # The handler of the signal ran before the next connection is taken.
            await asyncio.get_running_loop().run_in_executor(None, lambda: None)
            assert await serial(proxy, authority) == renewed.x509.serial_number

    async def test_a_handshake_that_never_comes(
        self, start: Any, upstream: Any, server: Certificate
    ) -> None:
        http = {"header_timeout": "200ms"}
        async with start(upstream.url, tls=settings(server), http=http) as proxy:
            async with asyncio.timeout(60):
                assert await proxy.say(b"\x16\x03\x01") == b""


class TestClients:
    async def test_with_a_certificate_of_the_right_authority(
        self,
        start: Any,
        upstream: Any,
        authority: Certificate,
        server: Certificate,
        tmp_path: Path,
    ) -> None:
        clients = make_certificate(tmp_path, "clients")
        agent = make_certificate(tmp_path, "agent", by=clients)
        async with (
            start(upstream.url, tls=settings(server, clients)) as proxy,
            client(authority, agent) as asking,
        ):
            assert (await asking.get(f"{proxy.url}/healthz")).status_code == 200

    @pytest.mark.parametrize("who", ["nobody", "stranger", "servers_authority"])
    async def test_others_get_no_further_than_the_handshake(
        self,
        start: Any,
        upstream: Any,
        authority: Certificate,
        server: Certificate,
        tmp_path: Path,
        who: str,
    ) -> None:
        clients = make_certificate(tmp_path, "clients")
        own = {
            "nobody": None,
            "stranger": make_certificate(
                tmp_path, "stranger", by=make_certificate(tmp_path, "other")
            ),
            "servers_authority": make_certificate(tmp_path, "agent", by=authority),
        }[who]
        # In TLS 1.3 a client hears of it with what it does next, be it to write or to read.
        failures = (httpx.NetworkError, httpx.RemoteProtocolError)
        async with (
            start(upstream.url, tls=settings(server, clients)) as proxy,
            client(authority, own) as asking,
        ):
            for path in ("/healthz", "/v1/models"):
                with pytest.raises(failures):
                    await asking.get(f"{proxy.url}{path}")
        assert not upstream.exchanges

    async def test_an_authority_that_was_taken_out_counts_no_more(
        self,
        start: Any,
        upstream: Any,
        authority: Certificate,
        server: Certificate,
        tmp_path: Path,
    ) -> None:
        """As it is when authorities change: for a while both count, then the new one alone."""
        old, new = (make_certificate(tmp_path, name) for name in ("old", "new"))
        early = make_certificate(tmp_path, "early", by=old)
        late = make_certificate(tmp_path, "late", by=new)
        trusted = tmp_path / "trusted.crt"
        trusted.write_bytes(old.certificate.read_bytes() + new.certificate.read_bytes())

        async def status(own: Certificate) -> int:
            async with client(authority, own) as asking:
                return (await asking.get(f"{proxy.url}/healthz")).status_code

        port = settings(server) | {"client_ca": str(trusted)}
        async with start(upstream.url, tls=port) as proxy:
            assert [await status(own) for own in (early, late)] == [200, 200]
            trusted.write_bytes(new.certificate.read_bytes())
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.get_running_loop().run_in_executor(None, lambda: None)
            assert await status(late) == 200
            with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
                await status(early)


class TestFiles:
    def test_off(self) -> None:
        assert tls.server_context(TlsConfig()) is None

    def test_a_key_of_another(self, server: Certificate, authority: Certificate) -> None:
        config = TlsConfig(certificate=server.certificate, key=authority.key)
        with pytest.raises(ConfigError, match=r"^tls:"):
            tls.server_context(config)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"^tls:"):
            tls.server_context(TlsConfig(certificate=tmp_path / "none"))

    def test_a_wrong_pair_leaves_the_old_one(
        self, server: Certificate, authority: Certificate
    ) -> None:
        context = tls.server_context(TlsConfig(certificate=server.certificate, key=server.key))
        assert context is not None
        wrong = TlsConfig(certificate=server.certificate, key=authority.key)
        with pytest.raises(ConfigError):
            tls.load(context, wrong)

    def test_half_a_configuration(self) -> None:
        with pytest.raises(ValidationError, match="certificate"):
            Config.model_validate({"tls": {"client_ca": "x"}})
