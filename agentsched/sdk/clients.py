"""Official clients that carry the program at hand, and hooks for any client on `httpx`.

The libraries are imported when somebody asks for their client.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from agentsched.sdk.context import _PREFIX, current_headers, current_program
from agentsched.sdk.reporter import checked_root, reporter

if TYPE_CHECKING:
    import anthropic as anthropic_library
    import httpx
    import openai as openai_library

_DEFAULT_URL: Final = "http://127.0.0.1:8900"
#: Clients insist on a key; a proxy without keys takes any.
_NO_KEY: Final = "none"
_PORTS: Final = {"http": 80, "https": 443}
#: What the official clients take in place of a key, and refuse beside one.
_CREDENTIALS: Final = (
    *("auth_token", "credentials", "config", "profile"),
    *("workload_identity", "provider"),
)
#: Where the libraries look for a credential next, once their first variable says none.
_SECOND: Final = {"ANTHROPIC_API_KEY": "ANTHROPIC_AUTH_TOKEN"}
#: Marks a request that our headers were added to; one that follows a redirect has it as well.
_ADDED: Final = "agentsched"


def root_of(given: str | None) -> str:
    """The proxy's root: the given one, else the configured one; without `/v1`.

    Raises:
        ValueError: not an http or https URL.
    """
    return checked_root(given or reporter().settings.url or _DEFAULT_URL)


def api_key_of(given: str | None, variable: str) -> str:
    """The key for the proxy: given, configured, or what the client's own variable says."""
    return given or reporter().settings.api_key or os.environ.get(variable) or _NO_KEY


def _key(given: str | None, variable: str, options: Mapping[str, Any]) -> dict[str, str]:
    """The argument `api_key` of a client; none where another credential is given in its place."""
    key = api_key_of(given, variable)
    is_another_set = key == _NO_KEY and os.environ.get(_SECOND.get(variable, ""))
    is_another_given = any(options.get(name) is not None for name in _CREDENTIALS)
    if given is None and (is_another_given or is_another_set):
        return {}
    return {"api_key": key}


def _adding(root: str) -> Callable[[httpx.Request], None]:
    """Adds the context's headers to requests for the proxy, and to nobody else's."""
    mine = urlsplit(root)
    proxy = mine.scheme, mine.hostname, mine.port or _PORTS[mine.scheme]
    # Where one that is asked plainly may send its clients; `httpx` keeps keys on that way, too.
    is_plain = proxy == ("http", mine.hostname, _PORTS["http"])
    secured = ("https", mine.hostname, _PORTS["https"]) if is_plain else proxy

    def add(request: httpx.Request) -> None:
        url = request.url
        # `httpx` leaves out the port that goes without saying.
        asked = url.scheme, url.host, url.port or _PORTS.get(url.scheme)
        if asked != proxy:  # a redirect, or another service: it must not learn whose call this is
            if _ADDED in request.extensions and asked != secured:
                _take_back(request)
            return
        request.extensions = {**request.extensions, _ADDED: True}
        for name, value in current_headers().items():
            request.headers.setdefault(name, value)
        program = current_program()
        if program is not None:
            program.sent_with(request.headers)

    return add


def _take_back(request: httpx.Request) -> None:
    """What a redirect brought along: of credentials `httpx` leaves out `Authorization` alone."""
    for name in [name for name in request.headers if name.startswith(_PREFIX)]:
        del request.headers[name]


def httpx_hooks(url: str | None = None) -> dict[str, list[Callable[..., Any]]]:
    """`httpx.Client(event_hooks=httpx_hooks())`. `url` is the proxy's, else the configured one."""
    return {"request": [_adding(root_of(url))]}


def async_httpx_hooks(url: str | None = None) -> dict[str, list[Callable[..., Any]]]:
    """The same for `httpx.AsyncClient`."""
    add = _adding(root_of(url))

    async def add_async(request: httpx.Request) -> None:
        add(request)

    return {"request": [add_async]}


def openai(
    url: str | None = None, *, api_key: str | None = None, **options: Any
) -> openai_library.OpenAI:
    """`openai.OpenAI` for the proxy; `options` are that class's own.

    Raises:
        ImportError: the package `openai` is not installed.
    """
    library = _library("openai")
    client = library.DefaultHttpxClient(event_hooks=httpx_hooks(url))
    made: openai_library.OpenAI = library.OpenAI(
        base_url=root_of(url) + "/v1",
        **_key(api_key, "OPENAI_API_KEY", options),
        http_client=client,
        **options,
    )
    return made


def async_openai(
    url: str | None = None, *, api_key: str | None = None, **options: Any
) -> openai_library.AsyncOpenAI:
    """`openai.AsyncOpenAI` for the proxy. Raises as `openai` does."""
    library = _library("openai")
    client = library.DefaultAsyncHttpxClient(event_hooks=async_httpx_hooks(url))
    made: openai_library.AsyncOpenAI = library.AsyncOpenAI(
        base_url=root_of(url) + "/v1",
        **_key(api_key, "OPENAI_API_KEY", options),
        http_client=client,
        **options,
    )
    return made


def anthropic(
    url: str | None = None, *, api_key: str | None = None, **options: Any
) -> anthropic_library.Anthropic:
    """`anthropic.Anthropic` for the proxy; `options` are that class's own.

    Raises:
        ImportError: the package `anthropic` is not installed.
    """
    library = _library("anthropic")
    client = library.DefaultHttpxClient(event_hooks=httpx_hooks(url))
    made: anthropic_library.Anthropic = library.Anthropic(
        base_url=root_of(url),
        **_key(api_key, "ANTHROPIC_API_KEY", options),
        http_client=client,
        **options,
    )
    return made


def async_anthropic(
    url: str | None = None, *, api_key: str | None = None, **options: Any
) -> anthropic_library.AsyncAnthropic:
    """`anthropic.AsyncAnthropic` for the proxy. Raises as `anthropic` does."""
    library = _library("anthropic")
    client = library.DefaultAsyncHttpxClient(event_hooks=async_httpx_hooks(url))
    made: anthropic_library.AsyncAnthropic = library.AsyncAnthropic(
        base_url=root_of(url),
        **_key(api_key, "ANTHROPIC_API_KEY", options),
        http_client=client,
        **options,
    )
    return made


def with_headers(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """`given` and the context's headers: `extra_headers=with_headers()` in any library's call."""
    return current_headers() | dict(given or {})


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"agentsched.{name}() needs the package {name}: pip install {name}"
        ) from error
