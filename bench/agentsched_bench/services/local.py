"""What all services have in common that are started for one test or measurement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class LocalService(ABC):
    """Started on entering and gone on leaving, also where its start fails."""

    def __enter__(self) -> Self:
        try:
            self.prepare()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def prepare(self) -> None:  # noqa: B027  # most have nothing to do
        """Do what is done once, before the first start."""

    @abstractmethod
    def start(self) -> None:
        """Start it, for the first time or after its end, and wait until it answers."""

    @abstractmethod
    def close(self) -> None:
        """End it and remove what it left; safe to call at any time."""
