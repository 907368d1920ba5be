"""The verbs `agentsched keys ...`: make API keys, list them, replace them, end them.

A key is shown once, when it is made, alone on standard output. With a database it counts everywhere
within `auth.refresh_interval`; without one, `create` says what to write into the configuration.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer

from agentsched.config import Config, load_config
from agentsched.config_access import KeyConfig, Scope
from agentsched.model import ConfigError, in_seconds, parse_span
from agentsched.proxy.access.keys import hash_key, id_of, new_key

if TYPE_CHECKING:
    from agentsched.store.database import Database
    from agentsched.store.keys import StoredKey

app = typer.Typer(help="API keys: make, list, replace and end them.", no_args_is_help=True)

_T = TypeVar("_T")
_HINT_CHARS = 8

Url = Annotated[
    str | None, typer.Option("--url", help="Database; else store.url of the configuration.")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file (docs/configuration.md).")
]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
KeyId = Annotated[str, typer.Argument(help="The key's id, as `agentsched keys list` shows it.")]


@app.command()
def create(
    tenant: Annotated[str, typer.Option("--tenant", "-t", help="Whose key it is.")],
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", "-s", help="data, read, admin, tenants, metrics [data]. Repeat."),
    ] = None,
    name: Annotated[str, typer.Option(help="For people: who or what uses it.")] = "",
    expires_in: Annotated[
        str | None, typer.Option(help="It ends after so long (12h, 90d); else never.")
    ] = None,
    url: Url = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown once; only its hash is kept."""
    until = _until(expires_in)
    key, token = new_key()
    described = _checked(key, token, tenant, tuple(scope or ["data"]), name, until)
    loaded = _load(config, url)
    if loaded.store.url is None:
        _show(token, described, as_json=as_json, hint=_toml(described))
        return

    async def work(database: Database) -> None:
        from agentsched.store.keys import add_key

        await add_key(database, _row(described, token))

    _run(loaded, work)
    _show(token, described, as_json=as_json, hint=f"key {key} of tenant {tenant} is stored")


@app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Only this one's.")] = None,
    url: Url = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """List the keys of the configuration and of the database, without their secrets."""
    loaded = _load(config, url)
    rows = [_shown(_row(key, "")) | {"from": "config"} for key in loaded.auth.keys]
    if loaded.store.url is not None:

        async def work(database: Database) -> list[StoredKey]:
            from agentsched.store.keys import read_keys

            return await read_keys(database)

        rows += [_shown(key) | {"from": "store"} for key in _run(loaded, work)]
    rows = [row for row in rows if tenant is None or row["tenant"] == tenant]
    if as_json:
        print(json.dumps({"keys": rows}, indent=2))
        return
    print(f"{'id':<14}{'tenant':<20}{'state':<10}{'until':<22}{'last used':<22}scopes, name")
    for row in rows:
        said = " ".join(filter(None, (",".join(row["scopes"]), row["name"])))
        until, used = row["expires_at"] or "-", row["last_used_at"] or "-"
        print(f"{row['id']:<14}{row['tenant']:<20}{row['state']:<10}{until:<22}{used:<22}{said}")


@app.command()
def revoke(key: KeyId, url: Url = None, config: ConfigFile = None) -> None:
    """End a key. Proxies refuse it within auth.refresh_interval."""
    wanted, loaded = id_of(key) or key, _needed(config, url)

    async def work(database: Database) -> bool:
        from agentsched.store.keys import revoke_key

        return await revoke_key(database, wanted, now=datetime.now(UTC))

    if not _run(loaded, work):
        raise _not_stored(wanted, loaded)
    print(f"key {wanted} is revoked")


@app.command()
def rotate(
    key: KeyId,
    grace: Annotated[str, typer.Option(help="The old key counts for so long beside it.")] = "24h",
    expires_in: Annotated[
        str | None, typer.Option(help="The new key ends after so long; else never.")
    ] = None,
    url: Url = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a key in place of another; both count until the old one's grace is over."""
    old, until = id_of(key) or key, _until(expires_in)
    ends = _until(grace)
    assert ends is not None
    loaded = _needed(config, url)
    new, token = new_key()

    async def work(database: Database) -> tuple[KeyConfig, datetime]:
        from agentsched.store.keys import read_keys, replace_key

        found = next((k for k in await read_keys(database) if k.key == old), None)
        if found is None or found.revoked_at is not None:
            raise _not_stored(old, loaded)
        described = _checked(new, token, found.tenant, found.scopes, found.name, until)
        await replace_key(database, old, _row(described, token), old_until=ends)
        # An end of its own that is sooner stays.
        return described, min(ends, found.expires_at or ends)

    described, last = _run(loaded, work)
    counts = "counts until" if last > datetime.now(UTC) else "has not counted since"
    _show(token, described, as_json=as_json, hint=f"key {old} {counts} {_time(last)}")


@app.command("hash")
def hash_of() -> None:
    """Read a key from standard input and print what the configuration keeps of it."""
    token = sys.stdin.read().strip()
    key = id_of(token)
    if key is None:
        raise ConfigError("that is no key of ours (ask_<id>_<secret>)")
    print(f'id = "{key}"\nhash = "sha256:{hash_key(token).hex()}"')


def _checked(
    key: str,
    token: str,
    tenant: str,
    scopes: tuple[str, ...],
    name: str,
    until: datetime | None,
) -> KeyConfig:
    unknown = sorted(set(scopes) - set(get_args(Scope)))
    if unknown:
        raise ConfigError(f"no scope is called {unknown[0]} ({', '.join(get_args(Scope))})")
    try:
        return KeyConfig.model_validate(
            {
                "id": key,
                "hash": f"sha256:{hash_key(token).hex()}",
                "tenant": tenant,
                "scopes": tuple(dict.fromkeys(scopes)),
                "name": name,
                "expires_at": until,
            }
        )
    except ValueError:
        raise ConfigError("a tenant is 1 to 64 printable ASCII signs, a name at most 128") from None


def _until(span: str | None) -> datetime | None:
    if span is None:
        return None
    # Spans end at hours; people give keys days.
    is_days = span[:-1].isdecimal() and span[-1] == "d"
    try:
        # Python reads no number of thousands of digits, and no date is so far.
        text = f"{int(span[:-1]) * 24}h" if is_days else span
        return datetime.now(UTC) + timedelta(seconds=in_seconds(parse_span(text)))
    except (OverflowError, ValueError):
        raise ConfigError(f"{span[:32]} ends after the last of all dates") from None


def _row(key: KeyConfig, token: str) -> StoredKey:
    from agentsched.store.keys import StoredKey

    return StoredKey(
        key=key.id,
        hash=bytes.fromhex(key.hash.removeprefix("sha256:")),
        hint=token[:_HINT_CHARS] or f"ask_{key.id[:4]}",
        name=key.name,
        tenant=key.tenant,
        scopes=key.scopes,
        created_at=datetime.now(UTC),
        expires_at=key.expires_at,
    )


def _shown(key: StoredKey) -> dict[str, Any]:
    now = datetime.now(UTC)
    is_over = key.expires_at is not None and key.expires_at <= now
    return {
        "id": key.key,
        "tenant": key.tenant,
        "scopes": list(key.scopes),
        "name": key.name,
        "state": "revoked" if key.revoked_at else "expired" if is_over else "valid",
        "expires_at": _time(key.expires_at),
        "last_used_at": _time(key.last_used_at),
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _toml(key: KeyConfig) -> str:
    lines = [
        "# Add this to the configuration:",
        "[[auth.keys]]",
        f'id = "{key.id}"',
        f'hash = "{key.hash}"',
        f"tenant = {json.dumps(key.tenant)}",
        f"scopes = {json.dumps(list(key.scopes))}",
    ]
    lines += [f"name = {json.dumps(key.name)}"] if key.name else []
    lines += [f"expires_at = {_time(key.expires_at)}"] if key.expires_at else []
    return "\n".join(lines)


def _show(token: str, key: KeyConfig, *, as_json: bool, hint: str) -> None:
    if as_json:
        shown = _shown(_row(key, token)) | {"key": token, "hash": key.hash}
        print(json.dumps(shown, indent=2))
        return
    print(token)
    print(hint, file=sys.stderr)


def _load(config: Path | None, url: str | None) -> Config:
    return load_config(config, {"store": {"url": url}} if url is not None else None)


def _needed(config: Path | None, url: str | None) -> Config:
    loaded = _load(config, url)
    if loaded.store.url is None:
        raise ConfigError(
            "no database is given (write --url sqlite:///FILE, or set store.url); keys of the "
            "configuration are changed there"
        )
    return loaded


def _not_stored(key: str, config: Config) -> ConfigError:
    """Why a key is not changed in the database. One of the configuration counts all the same."""
    if any(known.id == key for known in config.auth.keys):
        return ConfigError(
            f"key {key} is one of the configuration and goes on counting: change it there, "
            "and let the proxies read it again"
        )
    return ConfigError(
        f"the database has no key {key} that counts (see `agentsched keys list`); keys of the "
        "configuration are changed there"
    )


def _run(config: Config, work: Callable[[Database], Coroutine[Any, Any, _T]]) -> _T:
    from agentsched.store.database import Database, read_url
    from agentsched.store.migrate import upgrade

    assert config.store.url is not None
    database = Database(read_url(config.store.url.get_secret_value()))
    file = database.file
    made = file.absolute() if file is not None and not file.exists() else None

    async def inside() -> _T:
        try:
            await upgrade(database)
            if made is not None:
                # A relative path is another file in another folder, and no proxy reads that.
                print(f"made a new database: {made}", file=sys.stderr)
            return await work(database)
        finally:
            await database.aclose()

    return asyncio.run(inside())
