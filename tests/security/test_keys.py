"""API keys: what is kept of them, which count, and how they are replaced and ended."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agentsched import cli
from agentsched.config import Config
from agentsched.proxy.access import keys as module
from agentsched.proxy.access.keys import (
    KEY,
    KeyRecord,
    KeyRing,
    hash_key,
    id_of,
    new_key,
)

NOW = 1_800_000_000.0


def record(token: str, *, expires_at: float | None = None, tenant: str = "red") -> KeyRecord:
    key = id_of(token)
    assert key is not None
    return KeyRecord(
        id=key, hash=hash_key(token), tenant=tenant, scopes=("data",), expires_at=expires_at
    )


class TestForm:
    def test_is_random_and_recognised(self) -> None:
        made = {new_key() for _ in range(200)}
        assert len({key for key, _ in made}) == len({token for _, token in made}) == 200
        for key, token in made:
            assert KEY.fullmatch(token)
            assert id_of(token) == key
            assert token.startswith(f"ask_{key}_")

    def test_the_hash_is_of_the_whole_key(self) -> None:
        _, token = new_key()
        assert hash_key(token) == hashlib.sha256(token.encode()).digest()

    @pytest.mark.parametrize(
        "text", ["", "ask_", "ask_" + "a" * 56, "sk-" + "a" * 57, "ask_aaaaaaaaaaaa-" + "b" * 43]
    )
    def test_what_is_no_key(self, text: str) -> None:
        assert id_of(text) is None
        assert KeyRing().find(text, now=NOW) is None


class TestRing:
    def test_finds_whose_it_is(self) -> None:
        ring, (key, token) = KeyRing(), new_key()
        ring.configure({key: record(token)})
        found = ring.find(token, now=NOW)
        assert found is not None
        assert (found.tenant, found.scopes, found.name) == ("red", {"data"}, f"key {key}")

    def test_one_sign_more_less_or_other(self) -> None:
        ring, (key, token) = KeyRing(), new_key()
        ring.configure({key: record(token)})
        last = "a" if token[-1] != "a" else "b"
        for wrong in (token[:-1], token + "a", token[:-1] + last, token.swapcase()):
            assert ring.find(wrong, now=NOW) is None

    def test_ends_on_time(self) -> None:
        ring, (key, token) = KeyRing(), new_key()
        ring.configure({key: record(token, expires_at=NOW)})
        assert ring.find(token, now=NOW - 0.001) is not None
        assert ring.find(token, now=NOW) is None
        assert ring.by_id(key, now=NOW) is None

    def test_old_and_new_count_side_by_side(self) -> None:
        ring, old, new = KeyRing(), new_key(), new_key()
        ring.store({old[0]: record(old[1], expires_at=NOW + 60), new[0]: record(new[1])})
        for token in (old[1], new[1]):
            found = ring.find(token, now=NOW)
            assert found is not None
            assert found.tenant == "red"
        assert ring.find(old[1], now=NOW + 61) is None
        assert ring.find(new[1], now=NOW + 61) is not None

    def test_the_configuration_goes_before_the_store(self) -> None:
        ring, (key, token) = KeyRing(), new_key()
        ring.configure({key: record(token, tenant="red")})
        ring.store({key: record(token, tenant="blue")})
        found = ring.find(token, now=NOW)
        assert found is not None
        assert found.tenant == "red"
        assert len(ring) == 1

    def test_notes_which_stored_ones_are_used(self) -> None:
        ring, stored, configured = KeyRing(), new_key(), new_key()
        ring.store({stored[0]: record(stored[1])})
        ring.configure({configured[0]: record(configured[1])})
        for token in (stored[1], configured[1]):
            ring.find(token, now=NOW)
        assert ring.take_used() == {stored[0]}
        assert ring.take_used() == frozenset()

    def test_every_refusal_compares_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Unknown id, wrong secret and expired key do the same work: a constant-time compare."""
        ring, (key, token), (_, stranger) = KeyRing(), new_key(), new_key()
        ring.configure({key: record(token, expires_at=NOW)})
        seen: list[tuple[int, int]] = []
        real = module.hmac.compare_digest

        def watched(a: bytes, b: bytes) -> bool:
            seen.append((len(a), len(b)))
            return real(a, b)

        monkeypatch.setattr(module.hmac, "compare_digest", watched)
        for wrong in (stranger, token[:-1] + "?", token):
            assert ring.find(wrong, now=NOW) is None
        assert seen == [(32, 32)] * 3


class TestConfiguration:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"hash": "sha256:" + "0" * 63},
            {"hash": "0" * 64},
            {"id": "short"},
            {"scopes": []},
            {"scopes": ["root"]},
            {"tenant": ""},
            {"tenant": "a\nb"},
            {"expires_at": "2027-01-31T00:00:00"},  # of which zone?
        ],
    )
    def test_what_is_refused(self, new: Callable[..., Any], wrong: dict[str, Any]) -> None:
        good = new("red").config
        assert Config.model_validate({"auth": {"keys": [good]}}).auth.keys
        with pytest.raises(ValidationError) as caught:
            Config.model_validate({"auth": {"keys": [good | wrong]}})
        assert good["hash"] not in str(caught.value)

    def test_two_of_one_id(self, new: Callable[..., Any]) -> None:
        good = new("red").config
        with pytest.raises(ValidationError, match="same id"):
            Config.model_validate({"auth": {"keys": [good, good]}})


async def status(proxy: Any, token: str) -> int:
    response = await proxy.chat(headers={"Authorization": f"Bearer {token}"})
    code: int = response.status_code
    return code


async def becomes(proxy: Any, token: str, wanted: int) -> None:
    """Ask until the proxy has followed the store."""
    deadline = time.monotonic() + 60
    while await status(proxy, token) != wanted:
        assert time.monotonic() < deadline, f"never became {wanted}"
        await asyncio.sleep(0.02)


def contents(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()]


def break_database(folder: Path) -> None:
    """Put something else in its place, at once: where there is none, a reader makes a new one."""
    for name in ("keys.db-wal", "keys.db-shm"):
        (folder / name).unlink(missing_ok=True)
    broken = folder / "broken"
    broken.write_bytes(b"no database " * 100)
    broken.replace(folder / "keys.db")


class TestStore:
    """Keys of a real database, made by the real commands, while a proxy runs."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path / 'keys.db'}"

    @pytest.fixture
    def verb(self, url: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        def run(*arguments: str) -> str:
            code = cli.main(["keys", *arguments, "--url", url])
            said = capsys.readouterr()
            assert code in (0, None), said.err
            return said.out.strip()

        return run

    @pytest.mark.slow
    async def test_made_replaced_and_revoked_without_a_restart(
        self, start: Any, upstream: Any, url: str, verb: Callable[..., str], tmp_path: Path
    ) -> None:
        settings = {"mode": "keys", "refresh_interval": "20ms"}
        async with start(upstream.url, auth=settings, store={"url": url}) as proxy:
            first = await asyncio.to_thread(verb, "create", "--tenant", "red")
            await becomes(proxy, first, 200)
            assert list(proxy.scheduler.tenants) == ["red"]
            second = await asyncio.to_thread(verb, "rotate", id_of(first) or "", "--grace", "1h")
            await becomes(proxy, second, 200)
            assert await status(proxy, first) == 200  # both count
            await asyncio.to_thread(verb, "revoke", first)
            await becomes(proxy, first, 401)
            assert await status(proxy, second) == 200
        listed = json.loads(await asyncio.to_thread(verb, "list", "--json"))["keys"]
        assert [(k["state"], k["tenant"]) for k in listed] == [("revoked", "red"), ("valid", "red")]
        assert all(k["last_used_at"] for k in listed)
        kept = b"".join(contents(tmp_path))
        assert hash_key(first) in kept
        assert not any(token[17:].encode() in kept for token in (first, second))

    @pytest.mark.slow
    async def test_without_its_database_known_keys_go_on(
        self, start: Any, upstream: Any, url: str, verb: Callable[..., str], tmp_path: Path
    ) -> None:
        token = await asyncio.to_thread(verb, "create", "--tenant", "red")
        settings = {"mode": "keys", "refresh_interval": "20ms"}
        async with start(upstream.url, auth=settings, store={"url": url}) as proxy:
            assert await status(proxy, token) == 200
            break_database(tmp_path)
            refused = proxy.gateway.gate.refused
            deadline = time.monotonic() + 60
            while not refused["store"]:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
            assert await status(proxy, token) == 200

    @pytest.mark.slow
    def test_other_tenants_are_not_listed(self, verb: Callable[..., str]) -> None:
        verb("create", "--tenant", "red", "--scope", "data", "--scope", "read", "--name", "ci")
        verb("create", "--tenant", "blue")
        [only] = json.loads(verb("list", "--tenant", "red", "--json"))["keys"]
        assert (only["tenant"], only["scopes"], only["name"]) == ("red", ["data", "read"], "ci")
        assert "ask_" not in verb("list")

    @pytest.mark.slow
    def test_what_ends_sooner_by_itself_is_not_said_to_count_for_the_grace(
        self, url: str, verb: Callable[..., str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = id_of(verb("create", "--tenant", "red", "--expires-in", "1h")) or ""
        [ends] = [key["expires_at"] for key in json.loads(verb("list", "--json"))["keys"]]
        assert not cli.main(["keys", "rotate", first, "--grace", "24h", "--url", url])
        assert capsys.readouterr().err == f"key {first} counts until {ends}\n"
        second = id_of(verb("create", "--tenant", "red", "--expires-in", "0h")) or ""
        assert not cli.main(["keys", "rotate", second, "--url", url])
        assert f"key {second} has not counted since 20" in capsys.readouterr().err

    @pytest.mark.slow
    def test_a_database_that_was_not_there_is_named(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """A relative path is another file in each folder: keys in it open no proxy."""
        create = ["keys", "create", "--tenant", "red", "--url", "sqlite:///agentsched.db"]
        monkeypatch.chdir(tmp_path)
        assert not cli.main(create)
        said = capsys.readouterr().err
        assert f"made a new database: {tmp_path / 'agentsched.db'}\n" in said
        assert not cli.main(create)
        assert "made" not in capsys.readouterr().err

    @pytest.mark.slow
    def test_what_cannot_be_revoked(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["keys", "revoke", "a" * 12, "--url", url]) == 2
        assert "no key" in capsys.readouterr().err

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["revoke", "rotate"])
    def test_one_of_the_configuration_is_not_said_to_count_no_more(
        self, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
    ) -> None:
        key, token = new_key()
        file = tmp_path / "agentsched.toml"
        file.write_text(
            f'[[auth.keys]]\nid = "{key}"\nhash = "sha256:{hash_key(token).hex()}"\n'
            f'[store]\nurl = "{url}"\n'
        )
        assert cli.main(["keys", how, token, "--config", str(file)]) == 2
        said = capsys.readouterr()
        assert f"key {key} is one of the configuration and goes on counting" in said.err
        assert not said.out


class TestCommandsAlone:
    def test_create_says_what_to_write(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert not cli.main(["keys", "create", "-t", "red", "-s", "read", "--expires-in", "30d"])
        said = capsys.readouterr()
        token = said.out.strip()
        assert KEY.fullmatch(token)
        assert token not in said.err
        import tomllib

        [table] = tomllib.loads(said.err)["auth"]["keys"]
        assert table["hash"] == f"sha256:{hash_key(token).hex()}"
        assert table["scopes"] == ["read"]
        left = table["expires_at"] - datetime.now(UTC)
        assert timedelta(days=29) < left <= timedelta(days=30)
        Config.model_validate({"auth": {"keys": [table]}})

    def test_days_are_days_however_many(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert not cli.main(["keys", "create", "-t", "red", "--expires-in", "50000d", "--json"])
        ends = datetime.fromisoformat(json.loads(capsys.readouterr().out)["expires_at"])
        left = ends - datetime.now(UTC)
        assert timedelta(days=49_999) < left <= timedelta(days=50_000)

    def test_hash_reads_standard_input(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        key, token = new_key()
        monkeypatch.setattr(sys, "stdin", io.StringIO(token + "\n"))
        assert not cli.main(["keys", "hash"])
        assert re.findall(r'"(.*?)"', capsys.readouterr().out) == [
            key,
            f"sha256:{hash_key(token).hex()}",
        ]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["create", "-t", "red", "-s", "root"],
            ["create", "-t", ""],
            ["create", "-t", "red", "--expires-in", "99999999999h"],
            ["create", "-t", "red", "--expires-in", "9999999d"],
            pytest.param(["create", "-t", "red", "--expires-in", "9" * 5_000 + "d"], id="digits"),
            ["rotate", "a" * 12],
            ["revoke", "a" * 12],
        ],
    )
    def test_misuse(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["keys", *arguments]) == 2
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1
        assert len(said) < 200
