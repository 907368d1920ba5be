"""Which headers pass the proxy, in either direction, beyond those that belong to a connection.

The adapters take out what is hop by hop; here goes what is ours, what a tap cannot work with, and
what one side must not learn of the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

from agentsched.proxy.access.keys import KEY, PREFIX

_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F)))

#: Claude Code fails its run when it is told to wait longer.
RETRY_AFTER_S_MAX: Final = 60

#: A tap needs plain bytes, so no encoding is asked for, and the body was decoded on its way in. A
#: cookie was set by whoever answers at our address, not by the engine.
_NOT_TO_ENGINE: Final = frozenset(
    {
        "host",
        "connection",
        "content-length",
        "content-encoding",
        "accept-encoding",
        "expect",
        "cookie",
        "x-request-id",  # always set anew, to the id that the client gets back
    }
)
#: A cookie of an engine's is between it and us, and would never come back to it.
_NOT_TO_CLIENT: Final = frozenset(
    {
        "content-length",
        "date",
        "server",
        "x-request-id",
        "set-cookie",
        "set-cookie2",
        "authorization",
        "proxy-authenticate",
        "strict-transport-security",
    }
)
#: They name a place, which an engine knows by its own address.
_PLACES: Final = frozenset({"location", "content-location"})
#: What no header's value may hold; our HTTP library is strict as a server, lenient as a client.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_CREDENTIALS: Final = frozenset({"authorization", "x-api-key", "api-key", "x-goog-api-key"})

#: Too many requests, unavailable, and Anthropic's overloaded.
_ASKS_FOR_LATER: Final = frozenset({429, 503, 529})

OURS: Final = "x-agentsched-"

#: Of an event stream that is opened before any engine has answered.
EARLY: Final = (
    ("x-agentsched-decision", "early"),
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-cache"),
)

#: Carriers of a request id, in the order in which we believe them (as vllm-router does).
_REQUEST_IDS: Final = ("x-request-id", "x-correlation-id", "x-trace-id", "request-id")


def lower(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by lower-case name; of repeated ones the first counts."""
    found: dict[str, str] = {}
    for name, value in headers:
        found.setdefault(name.lower(), value)
    return found


def to_engine(
    headers: Iterable[tuple[str, str]], *, request_id: str, with_credentials: bool
) -> list[tuple[str, str]]:
    """The client's headers as an engine gets them."""
    pairs = list(headers)
    # What `Connection` names ends here, before ours come: no client can name one of those.
    ending = {
        word.strip().lower()
        for name, value in pairs
        if name.lower() == "connection"
        for word in value.split(",")
    }
    kept = [
        (name, value)
        for name, value in pairs
        if (key := name.lower()) not in _NOT_TO_ENGINE
        and key not in ending
        and not key.startswith(OURS)
        and (with_credentials or key not in _CREDENTIALS)
        # A key of ours goes nowhere, whichever header it strayed into.
        and (PREFIX not in value or KEY.search(value) is None)
    ]
    # Saying nothing would mean that any encoding is welcome.
    return [*kept, ("Accept-Encoding", "identity"), ("x-request-id", request_id)]


def to_client(
    headers: Sequence[tuple[str, str]], *, status: int, engine_url: str = ""
) -> list[tuple[str, str]]:
    """An engine's headers as the client gets them; broken ones are left out.

    What redirects to `engine_url` redirects to us: clients should not learn where engines are, and
    often cannot get there.

    With 429, 503 and 529 always goes a `Retry-After` of at most a minute: the clients that look
    for one take its absence for "never", and a long one for a reason to give up.
    """
    kept = [
        (name, _at_ours(value, engine_url) if key in _PLACES else value)
        for name, value in headers
        if (key := name.lower()) not in _NOT_TO_CLIENT
        and not key.startswith(OURS)
        and _CONTROLS.search(value) is None
    ]
    if status not in _ASKS_FOR_LATER:
        return kept
    said = next((value for name, value in kept if name.lower() == "retry-after"), "1").strip()
    # A date is not worth reading: who writes one means some time.
    wait = min(int(said), RETRY_AFTER_S_MAX) if said.isdecimal() and len(said) < 10 else None
    rest = [pair for pair in kept if pair[0].lower() != "retry-after"]
    return [*rest, ("Retry-After", str(RETRY_AFTER_S_MAX if wait is None else wait))]


def _at_ours(place: str, engine_url: str) -> str:
    """A place at this engine as one at our address; any other as it is."""
    try:
        there, engine = urlsplit(place), urlsplit(engine_url)
    except ValueError:
        return place
    if not there.netloc or there.netloc.lower() != engine.netloc.lower():
        return place
    path = there.path
    if path == engine.path or path.startswith(f"{engine.path}/"):
        path = path[len(engine.path) :]
    # Two slashes at the beginning would name another host.
    return urlunsplit(("", "", "/" + path.lstrip("/"), there.query, there.fragment))


def ascii_only(text: str) -> str:
    """A text as every client can read it in a header: what is beyond ASCII is percent-encoded."""
    return text if text.isascii() else quote(text, safe=_PRINTABLE)


def request_id(headers: dict[str, str]) -> str | None:
    """The request id that the client gave, where it is fit to be echoed."""
    for name in _REQUEST_IDS:
        value = headers.get(name, "")
        if value and len(value) <= 256 and value.isascii() and value.isprintable():
            return value
    return None
