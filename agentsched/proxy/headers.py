"""Which headers pass the proxy, in either direction, beyond those that belong to a connection.

The adapters take out what is hop by hop; here goes what is ours, what a tap cannot work with, and
what one side must not learn of the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from hmac import compare_digest
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

from agentsched.proxy.access.keys import KEY, PREFIX

_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F)))

#: Claude Code fails its run when it is told to wait longer.
RETRY_AFTER_S_MAX: Final = 60

#: Whose turn it is in an engine, and which of its parts serves it, is not the client's to say. vLLM
#: believes the first of these before it looks into the body.
_TURN: Final = frozenset(
    {
        "x-vllm-priority",
        "x-data-parallel-rank",
        "x-dp-rank",
        "x-worker-instance-id",
        "x-prefill-instance-id",
    }
)
#: A tap needs plain bytes, so no encoding is asked for, and the body was decoded on its way in. A
#: cookie was set by whoever answers at our address, not by the engine.
_NOT_TO_ENGINE: Final = _TURN | {
    "host",
    "connection",
    "content-length",
    "content-encoding",
    "accept-encoding",
    "expect",
    "cookie",
    "x-request-id",  # always set anew, to the id that the client gets back
}
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
#: What may stand before a key in its header.
_KEY_WORDS: Final = ("", "bearer")

#: Too many requests, unavailable, and Anthropic's overloaded.
_ASKS_FOR_LATER: Final = frozenset({429, 503, 529})
#: How long to wait, and how many of its unit are a second; SDKs look for the finer one first.
_WAITS: Final = {"retry-after-ms": 1_000, "retry-after": 1}

OURS: Final = "x-agentsched-"

#: Of an event stream that is opened before any engine has answered.
EARLY: Final = (
    ("x-agentsched-decision", "early"),
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-cache"),
)

#: Carriers of a request id, in the order in which we believe them (as vllm-router does).
_REQUEST_IDS: Final = ("x-request-id", "x-correlation-id", "x-trace-id", "request-id")
#: Those of them that all requests of a run may share.
_RUN_IDS: Final = ("x-correlation-id", "x-trace-id")


def lower(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by lower-case name; of repeated ones the first counts."""
    found: dict[str, str] = {}
    for name, value in headers:
        found.setdefault(name.lower(), value)
    return found


def to_engine(
    headers: Iterable[tuple[str, str]],
    *,
    request_id: str,
    with_credentials: bool,
    own_key: str = "",
) -> list[tuple[str, str]]:
    """The client's headers as an engine gets them.

    `own_key` is a key of ours that has no form to be told by.
    """
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
        and not _is_key(value, own_key)
    ]
    # Saying nothing would mean that any encoding is welcome.
    return [*kept, ("Accept-Encoding", "identity"), ("x-request-id", request_id)]


def without_credentials(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers that were made for an engine, without the client's keys."""
    return [pair for pair in headers if pair[0].lower() not in _CREDENTIALS]


def _is_key(value: str, key: str) -> bool:
    """Whether a header says this key, with the word for it before or without."""
    if not key or len(value) < len(key):
        return False
    start = len(value) - len(key)
    if value[:start].strip().lower() not in _KEY_WORDS:
        return False
    # How long it takes tells nobody how much of the key was right.
    return compare_digest(value[start:].encode("utf-8", "surrogateescape"), key.encode())


def with_turn(
    headers: Iterable[tuple[str, str]], said: Iterable[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Headers for an engine with `said`, its adapter's word, in place of earlier words on turns."""
    return [*(pair for pair in headers if pair[0].lower() not in _TURN), *said]


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
    rest = [pair for pair in kept if pair[0].lower() not in _WAITS]
    return [*rest, ("Retry-After", str(_wait_s(lower(kept))))]


def _wait_s(headers: Mapping[str, str]) -> int:
    """The seconds that an engine asks to wait, a minute at most; one where it does not say."""
    said = [(headers[name], units) for name, units in _WAITS.items() if name in headers]
    for text, units in said:
        try:
            wait = float(text) / units
        except ValueError:
            continue  # a date is not worth reading: who writes one means some time
        if wait >= 0:  # NaN is not
            return math.ceil(min(wait, RETRY_AFTER_S_MAX))
    return RETRY_AFTER_S_MAX if said else 1


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


def is_of_a_run(request_id: str, headers: dict[str, str]) -> bool:
    """Whether the client gave this id, and perhaps to other requests, too."""
    given = [name for name in _REQUEST_IDS if headers.get(name) == request_id]
    return bool(given) and given[0] in _RUN_IDS
