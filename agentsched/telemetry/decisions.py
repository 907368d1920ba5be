"""What was decided, as counters: where steps went and why, what was retained, what was warmed."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry

from agentsched.model import Command, Dispatch, HintOutcome, Pin, Prefetch, Unpin
from agentsched.telemetry.counters import Bounded, Counts, Times

_BYPASSES: Final = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)
#: Words of policies are few by nature; strangers' policies may not know that.
_WORDS_MAX: Final = 32


class DecisionMeters:
    """Counters of commands, and of what engines said to hints."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counts(name: str, text: str, *labels: str) -> Counts:
            return Counts(f"agentsched_{name}", text, labels, registry=registry)

        self._dispatched = counts("dispatches", "Steps sent to an engine.", "engine", "place")
        text = "Steps sent, by the order policy's word and by what was retained for them."
        self._orders = counts("decisions", text, "order", "pin")
        self._pins = counts("pins", "Retentions granted.", "engine")
        self._unpins = counts("unpins", "Retentions ended.", "engine", "reason")
        self._warm = counts("prefetches", "Warm-ups asked for.", "engine")
        self._hints = counts("hints", "What engines said to pins and warm-ups.", "outcome")
        text = "Attempts at an engine that failed before the answer began."
        self._failures = counts("attempt_failures", text, "engine")
        self._bypassed = Times(
            "agentsched_bypassed_steps",
            "Later steps that went before a step, by step.",
            buckets=_BYPASSES,
            registry=registry,
        )
        self._places = Bounded(_WORDS_MAX)
        self._words = Bounded(_WORDS_MAX)
        self._pin_words = Bounded(_WORDS_MAX)

    def count(self, command: Command) -> None:
        """Count a command, where it is one of these."""
        match command:
            case Dispatch():
                self._dispatched.add((command.engine, self._places(command.place)))
                self._orders.add((self._words(command.order), self._pin_words(command.pin)))
                self._bypassed.observe(command.bypassed)
            case Pin():
                self._pins.add((command.engine,))
            case Unpin():
                self._unpins.add((command.engine, command.reason.value))
            case Prefetch():
                self._warm.add((command.engine,))
            case _:
                pass

    def count_hint(self, outcome: HintOutcome) -> None:
        """An engine said so much to a hint."""
        self._hints.add((outcome.value,))

    def count_failure(self, engine: str) -> None:
        """An attempt failed in a way that allows another."""
        self._failures.add((engine,))
