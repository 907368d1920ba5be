"""What the user of an agent reads when its reports are refused: once for each reason, no secrets.

Imported by the reporter's thread with the first refusal: most agents never need it.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

_LOGGER: Final = logging.getLogger("agentsched.sdk")
#: A proxy has few reasons; whoever answers with ever new ones is not listened to for ever.
_REASONS_MAX: Final = 16
_CODE_CHARS_MAX: Final = 64
_SEE_KEY: Final = ": is it the right key (AGENTSCHED_API_KEY, or configure(api_key=...))?"
_SEE_URL: Final = ": is AGENTSCHED_URL, or configure(url), the root of an agentsched proxy?"
_HINTS: Final = {
    **dict.fromkeys((401, 403), _SEE_KEY),
    **dict.fromkeys((301, 302, 303, 307, 308, 404, 405), _SEE_URL),
    429: ": more reports than the tenant's share (auth.reports_per_s of the proxy)",
}


class Complaints:
    """Of one reporter. Used by its thread alone."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._said: set[str] = set()
        #: Nobody may be there any more to write for.
        self.is_muted = False

    def refused(self, status: int, body: bytes) -> None:
        """The proxy's answer was a no."""
        code = _code(body)
        self._say(f"HTTP {status}{f' ({code})' if code else ''}{_HINTS.get(status, '')}")

    def untrusted(self, why: str) -> None:
        """Its certificate was not taken for its own."""
        self._say(f"its certificate is not trusted ({why})")

    def unsendable(self) -> None:
        """No request could be made of what we were given."""
        self._say("the URL, the key or the tenant has characters that no HTTP request can hold")

    def unknown(self, count: int) -> None:
        """All that it was told so far was about programs that it has not seen."""
        self._say(
            f"it knows none of the programs of {count} reports: do their LLM calls go through it,"
            " as the same program, with the same key and tenant?"
        )

    def _say(self, reason: str) -> None:
        """Warn, where this reason is new. Never raises: a handler of the user's may."""
        if self.is_muted or reason in self._said or len(self._said) >= _REASONS_MAX:
            return
        self._said.add(reason)
        with suppress(Exception):
            _LOGGER.warning(
                "the proxy at %s is not told of tools and programs: %s", _place(self._url), reason
            )


def _code(body: bytes) -> str:
    """The error's short word. The rest is text of whoever answers, and may repeat a key."""
    try:
        said = json.loads(body)["error"]["code"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    is_word = isinstance(said, str) and said.isascii() and len(said) <= _CODE_CHARS_MAX
    return said if is_word and all(c.islower() or c == "_" for c in said) else ""


def _place(url: str) -> str:
    """Without what may stand before an `@`."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
