"""Asks a running proxy's control plane, and says in one line what went wrong."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Annotated, Any, Final
from urllib.parse import quote

import httpx
import msgspec
import typer

from agentsched.model import AgentschedError, ConfigError

DEFAULT_URL: Final = "http://127.0.0.1:8900"
_TIMEOUT: Final = httpx.Timeout(connect=5.0, read=30.0, write=10.0, pool=5.0)

#: Whose programs are looked at for a name that is no id.
_TENANTS_ASKED_MAX: Final = 100

Url = Annotated[str, typer.Option("--url", help="The running proxy.", envvar="AGENTSCHED_URL")]
AdminKey = Annotated[
    str | None,
    typer.Option(help="The proxy's admin key.", envvar="AGENTSCHED_ADMIN_KEY", show_envvar=True),
]
AsJson = Annotated[bool, typer.Option("--json", help="For a machine to read.")]


class ProxyError(AgentschedError):
    """The proxy cannot be asked, or refuses to answer; `code` is the word of an error of its."""

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class ControlClient:
    """A client of one proxy's control plane; a context manager."""

    def __init__(self, url: str, *, admin_key: str | None = None) -> None:
        base = base_url(url)
        # What comes out of a file ends in a line break.
        key = (admin_key or "").strip()
        if not (key.isascii() and key.isprintable()):
            # The library would say which, and show the key.
            raise ConfigError("the admin key has signs that a header cannot have")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        # Proxies of the environment are for the world outside; this one is ours.
        self._client = httpx.Client(
            base_url=base,
            headers=headers,
            timeout=_TIMEOUT,
            trust_env=False,
            verify=_authorities() if base.startswith("https:") else True,
        )
        self.url = base

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def get(self, path: str, **query: str | int) -> bytes:
        """The body of an answer.

        Raises:
            ProxyError: nothing answers there, or not with 200.
        """
        try:
            response = self._client.get(f"/agentsched/v1{path}", params=query)
        except httpx.HTTPError as error:
            raise ProxyError(
                f"{self.url}: {str(error) or type(error).__name__} (is the proxy running?)"
            ) from error
        if response.status_code != 200:
            text, code = _said(response)
            raise ProxyError(f"{self.url}: {text}", code=code)
        return response.content

    def get_json(self, path: str, **query: str | int) -> dict[str, Any]:
        """The object that an answer is. Raises as `get` does."""
        body = self.get(path, **query)
        try:
            decoded = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProxyError(f"{self.url}: that is no agentsched proxy") from error
        if not isinstance(decoded, dict):
            raise ProxyError(f"{self.url}: that is no agentsched proxy")
        return decoded

    def get_of(self, program: str, view: str, **query: str | int) -> bytes:
        """A view of a program, by its id, or by what its agent calls it.

        An id begins with the program's tenant, unless that is the default one, and whoever wrote
        the agent knows its name alone: most often the tenant is a hash of the agent's API key.

        Raises:
            ProxyError: as `get` does; and several tenants have one of that name.
        """
        try:
            return self.get(f"/programs/{in_path(program)}/{view}", **query)
        except ProxyError as error:
            if error.code != "unknown_program" or "/" in program:
                raise
            found = self._of_tenants(program, view, query)
            if not found:
                raise
        if len(found) > 1:
            raise ProxyError(f"{self.url}: several have this name: {', '.join(found)}")
        [body] = found.values()
        return body

    def _of_tenants(self, name: str, view: str, query: Mapping[str, str | int]) -> dict[str, bytes]:
        found = {}
        try:
            tenants = self.get_json("/tenants")["tenants"]
        except ProxyError:
            return {}  # a key that may not see them
        for tenant in [row["tenant"] for row in tenants][:_TENANTS_ASKED_MAX]:
            program = f"{tenant}/{name}"
            try:
                found[program] = self.get(f"/programs/{in_path(program)}/{view}", **query)
            except ProxyError as error:
                if error.code != "unknown_program":
                    raise
        return found


def base_url(url: str) -> str:
    """The server's address, from that or from the base URL that agents use.

    Raises:
        ConfigError: not an HTTP URL.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"not a URL: {url!r} (write http://127.0.0.1:8900)")
    return url.rstrip("/").removesuffix("/v1")


def in_path(program: str) -> str:
    """A program's id as a part of a path."""
    return quote(program, safe="")


def _authorities() -> ssl.SSLContext:
    """Whom the rest of the machine trusts, too; the library alone knows its own list only.

    `SSL_CERT_FILE` and `SSL_CERT_DIR` count, as they do where engines are asked.
    """
    context = httpx.create_ssl_context()
    context.load_default_certs()
    return context


def _said(response: httpx.Response) -> tuple[str, str]:
    """What an error answer says, in the control plane's shape or any other, and its code."""
    try:
        body = response.json()
    except ValueError:
        body = None
    error = body.get("error") if isinstance(body, Mapping) else None
    if isinstance(error, Mapping) and isinstance(error.get("message"), str):
        hint, code = "", error.get("code")
        if response.status_code == 401:
            hint = " (give --admin-key, or set AGENTSCHED_ADMIN_KEY)"
        elif code == "unknown_program":
            hint = (
                " (`agentsched programs` lists ids; one of a tenant's begins with it: TENANT/...)"
            )
        return f"{error['message']}{hint}", code if isinstance(code, str) else ""
    return f"{response.status_code} {response.reason_phrase}: that is no agentsched proxy", ""
