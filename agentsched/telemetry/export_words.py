"""Why an export over OTLP failed: the exporters raise nothing and return no reason, they log it."""

from __future__ import annotations

import logging
from typing import Final

_LOGGER: Final = "opentelemetry.exporter.otlp"
#: Of what an exporter says of a failure: a receiver's answer may be a whole page.
_REASON_CHARS_MAX: Final = 300


class ExportWords(logging.Handler):
    """What the exporters say about the export under way.

    They say of each failure that it failed, each time; we say when that changes, and why.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._first = ""

    def listen(self) -> None:
        """From now on they speak to us alone. A second time changes nothing."""
        logger = logging.getLogger(_LOGGER)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.addHandler(self)

    def forget(self) -> None:
        """The next export begins."""
        self._first = ""

    def emit(self, record: logging.LogRecord) -> None:
        # The first says what happened; those after it that it was tried again, and given up.
        self._first = self._first or " ".join(record.getMessage().split())

    @property
    def reason(self) -> str:
        """Why the export under way, or the latest, failed; empty where nothing was said."""
        said = self._first
        return said if len(said) <= _REASON_CHARS_MAX else f"{said[: _REASON_CHARS_MAX - 1]}…"


#: Of the one thread of a process that exports.
WORDS: Final = ExportWords()
