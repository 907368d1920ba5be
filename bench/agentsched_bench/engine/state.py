"""What the routes of one embedded engine share."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from aiohttp import web

from agentsched.model.errors import WireError
from agentsched_bench.engine.driver import Driver
from agentsched_bench.engine.faults import Fault, FaultPlan, parse_fault
from agentsched_bench.engine.playback import Playback


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


@dataclass(slots=True, kw_only=True)
class ServerState:
    """The driver, its faults and what is going on."""

    driver: Driver
    models: tuple[str, ...]
    seed: int
    playback: Playback
    started_at: int
    #: Refuse a non-zero priority under FCFS, as older vLLMs do; 0.32 takes and ignores it.
    refuse_priority: bool = False
    faults: FaultPlan = field(default_factory=FaultPlan)
    crashed: bool = False
    _gate: asyncio.Event = field(default_factory=_open_gate)
    #: Requests being answered, for a crash to break.
    _requests: dict[int, web.Request] = field(default_factory=dict)
    _dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    def new_key(self, request: web.Request) -> str:
        """A unique id, with the client's `X-Request-Id` in front as vLLM has it."""
        given = request.headers.get("x-request-id", "")[:128]
        fresh = f"{self._dice.getrandbits(64):016x}"
        return f"{given}-{fresh}" if given else fresh

    def fault_of(self, request: web.Request) -> Fault:
        """What goes wrong with a request: its own header, else the standing rules.

        Raises:
            WireError: the header cannot be read.
        """
        header = request.headers.get("x-sim-fault")
        return parse_fault(header) if header is not None else self.faults.strike()

    def check_model(self, name: str) -> None:
        """Raise a 404 as vLLM's, unless `name` is served."""
        if name not in self.models:
            raise WireError(
                f"The model `{name}` does not exist. Valid aliases: {', '.join(self.models)}.",
                status=404,
                code="NotFoundError",
                param="model",
            )

    @contextlib.contextmanager
    def tracking(self, request: web.Request) -> Iterator[None]:
        """Count `request` as being answered."""
        self._requests[id(request)] = request
        try:
            yield
        finally:
            del self._requests[id(request)]

    @property
    def load(self) -> int:
        """How many requests are being answered."""
        return len(self._requests)

    async def not_hung(self) -> None:
        """Wait while the engine hangs."""
        await self._gate.wait()

    def hang(self) -> None:
        """Be silent: no step, no answer, no new answer."""
        self._gate.clear()
        self.driver.hang()

    def resume(self) -> None:
        """Be well again, after a hang or a crash."""
        self.crashed = False
        self._gate.set()
        self.driver.resume()

    def release_hung(self) -> None:
        """Let hung requests go on, so that a stop need not wait for them."""
        self._gate.set()

    def crash(self) -> None:
        """Lose everything and break every connection; stay down until `resume`."""
        self.crashed = True
        self.driver.crash()
        for request in list(self._requests.values()):
            if request.transport is not None:
                request.transport.abort()
