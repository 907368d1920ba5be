"""Takes secrets out of texts that people or machines will keep: logs, stories, errors."""

from __future__ import annotations

import logging
import re
from typing import Final

#: What a secret is replaced by.
GONE: Final = "[redacted]"

#: What keys of providers begin with, before a dash or a low line.
_PREFIXES: Final = "sk|pk|rk|hf|gsk|xai|nvapi|ghp|gho|ghs|github_pat|glpat|xox[abeprs]|pplx"
#: Keys of ours and of the known providers, tokens in three parts, and what follows a scheme.
#: No part repeats a part that may match the same signs, so that no text takes long.
_SECRETS: Final = re.compile(
    r"ask_[a-z2-7]{12}_[0-9A-Za-z]{4,64}"
    rf"|\b(?:{_PREFIXES})[-_][0-9A-Za-z_\-]{{16,256}}"
    r"|\beyJ[0-9A-Za-z_\-]{8,4096}\.[0-9A-Za-z_\-]{1,4096}\.[0-9A-Za-z_\-]{0,4096}"
    r"|\bA(?:KI|SI)A[0-9A-Z]{16}\b"
    r"|\bAIza[0-9A-Za-z_\-]{35}"
)
_SCHEMES: Final = re.compile(
    r"(?i)\b(bearer|basic|x-api-key|api[-_]key|authorization)(['\"]?[:=]?\s{0,4}['\"]?)"
    r"(?!bearer\b|basic\b)([0-9A-Za-z._~+/=\-]{8,4096})"
)
_PASSWORDS: Final = re.compile(r"(://[^\s:/@]{0,128}:)[^\s@/]{1,256}@")
#: One of these is in every text that has anything to take out.
_SIGNS: Final = re.compile(
    r"(?i)ask_|eyJ|A(?:KI|SI)A|AIza|bearer|basic|api[-_]key|authorization|://"
    rf"|(?:{_PREFIXES})[-_]"
)


def redact(text: str) -> str:
    """The text without keys, tokens and passwords."""
    if _SIGNS.search(text) is None:
        return text
    text = _SECRETS.sub(GONE, text)
    text = _SCHEMES.sub(lambda m: f"{m[1]}{m[2]}{GONE}", text)
    return _PASSWORDS.sub(rf"\1{GONE}@", text)


class Redacting(logging.Formatter):
    """A formatter that takes secrets out of what another one made, tracebacks included."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """One line, or a line and a traceback, without secrets."""
        return redact(self._inner.format(record))


def redact_logs() -> None:
    """Let no handler of the root logger write secrets."""
    for handler in logging.getLogger().handlers:
        inner = handler.formatter or logging.Formatter()
        if not isinstance(inner, Redacting):
            handler.setFormatter(Redacting(inner))
