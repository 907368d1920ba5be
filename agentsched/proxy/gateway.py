"""What all handlers share: the host, the engines, identity and the limits of this proxy."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from aiohttp import web

from agentsched.config import Config, HttpConfig
from agentsched.config_trust import IdempotencyConfig, RetriesConfig
from agentsched.dashboard.seats import Seats
from agentsched.model import (
    EngineId,
    Instant,
    StepArrived,
    StepId,
    TenantId,
    WireError,
    after,
    seconds,
)
from agentsched.proxy.access.gate import Gate
from agentsched.proxy.access.principal import ANYBODY, TENANTS, Principal, principal_of
from agentsched.proxy.bodies import Bodies
from agentsched.proxy.fleet import Fleet
from agentsched.proxy.fresh_lists import FreshLists
from agentsched.proxy.health import RetryBudget
from agentsched.proxy.homes import Homes
from agentsched.proxy.host import Interrupted, LiveHost, Stop, Ticket
from agentsched.proxy.idempotency import SharedAnswers
from agentsched.proxy.identity import Identity, IdentityIndex
from agentsched.proxy.ratios import TokenRatios
from agentsched.proxy.receive import Received, receive
from agentsched.proxy.request import ParsedRequest
from agentsched.proxy.resends import Resends
from agentsched.proxy.salting import isolated
from agentsched.proxy.sharing import TurnSharing
from agentsched.proxy.warming import WarmBodies
from agentsched.proxy.wire import WireLimits
from agentsched.telemetry.meters import MeterSink
from agentsched.telemetry.notes import Notes

if TYPE_CHECKING:
    from agentsched.bus.service import Bus

log = logging.getLogger(__name__)

#: Tenant of requests without a key and without a tenant header.
ANONYMOUS = TenantId("default")
_TENANT_CHARS_MAX = 64


@lru_cache(maxsize=1_024)
def _tenant_of_key(key: str) -> TenantId:
    # Both carriers of one key are one tenant, and no log or metric ever shows a key.
    if key[:7].lower() == "bearer ":  # clients spell it as they like
        key = key[7:]
    secret = key.strip().encode("utf-8", "surrogateescape")
    return TenantId("key-" + hashlib.sha256(secret).hexdigest()[:12])


def wire_limits(http: HttpConfig) -> WireLimits:
    """The ceilings of one request that are found out while it is read."""
    return WireLimits(body_bytes_max=http.body_bytes_max, messages_max=http.messages_max)


@dataclass(slots=True, kw_only=True)
class Gateway:
    """One proxy's parts. Handlers get it from the application and keep no state of their own."""

    config: Config
    host: LiveHost
    fleet: Fleet
    index: IdentityIndex
    meters: MeterSink
    homes: Homes = field(default_factory=Homes)
    ratios: TokenRatios = field(default_factory=TokenRatios)
    resends: Resends = field(default_factory=Resends)
    #: Requests that may come twice.
    shared: SharedAnswers = field(default_factory=lambda: SharedAnswers(IdempotencyConfig()))
    #: Further tries of steps that an engine failed.
    retries: RetryBudget = field(default_factory=lambda: RetryBudget(RetriesConfig()))
    #: What all requests under way have brought.
    bodies: Bodies = field(default_factory=Bodies)
    #: Ids and traces of live requests.
    notes: Notes = field(default_factory=Notes)
    #: Requests by the family of their client.
    clients: Counter[str] = field(default_factory=Counter)
    wire_limits: WireLimits
    #: Last requests of paused conversations, for warm-ups.
    warm_bodies: WarmBodies
    #: What is told to and learnt from other replicas, where a store tells who they are.
    sharing: TurnSharing | None = None
    #: While it is on the bus.
    bus: Bus | None = None
    #: Set when SIGTERM came: readiness says no, new requests are refused, running ones go on.
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    #: Requests that are being relayed beside the scheduler.
    plain_requests: int = 0
    #: Those of them that came with a key which may be taken away.
    relays: set[Ticket] = field(default_factory=set)
    #: Requests whose body is still coming.
    arriving: int = 0
    #: Requests of clients, to engines, whose answer is not all out; some read slowly.
    answering: int = 0
    #: Who watches the stream of decisions.
    decision_seats: Seats = field(default_factory=Seats)
    #: Says who may do what.
    gate: Gate = field(init=False)
    #: Looks for models that no engine lists.
    lists: FreshLists = field(init=False)

    def __post_init__(self) -> None:
        self.gate = Gate(lambda: self.config)
        self.gate.ring.on_revoked = self._stop_of
        self.lists = FreshLists(self.fleet)

    def follow(self, config: Config) -> None:
        """Another configuration is in force, for what was made of the one before as well."""
        self.config = config
        self.gate.follow()
        self.wire_limits = wire_limits(config.http)
        has_credentials = config.upstream.forward_authorization
        self.warm_bodies.follow(self.wire_limits, has_credentials=has_credentials)
        self.fleet.follow(config.upstream)

    def still_admits(self, request: web.Request) -> bool:
        """Whether a request that was let in would be let in now, as the same one: a key may have
        been taken away, a session may be over, while what it asked for is still being sent.
        """
        principal = principal_of(request)
        try:
            self.gate.enter(request)
        except WireError:
            return False
        return principal_of(request) == principal

    @property
    def is_draining(self) -> bool:
        """Whether this proxy is about to end."""
        return self.draining.is_set()

    @property
    def is_idle(self) -> bool:
        """Whether no client waits for anything that an engine does, or is about to."""
        return not (self.host.live_steps or self.plain_requests or self.arriving)

    @property
    def may_pin(self) -> bool:
        """Whether the policy in force ever asks an engine to keep a prompt."""
        return self.host.scheduler.policies.names["pin"] != "never"

    async def receive(self, request: web.Request) -> Received | None:
        """Take a request in; None where this proxy was about to end when all of it was there.

        Raises:
            WireError: as `receive` does; or 401, where its key was taken away while it came.
        """
        self.arriving += 1
        try:
            received = await receive(request, self.config.http)
        finally:
            self.arriving -= 1
        self.gate.check(principal_of(request))
        return None if self.is_draining else received

    @contextmanager
    def relaying(self, request: web.Request) -> Iterator[None]:
        """Run the block, which relays a request beside the scheduler, until its key is taken away.

        Raises:
            Interrupted: it was.
        """
        self.plain_requests += 1
        ticket = None
        try:
            key = principal_of(request).key
            if not key:
                yield
                return
            ticket = Ticket(StepId(""), self.host.loop, key=key)
            self.relays.add(ticket)
            with ticket.attempt():
                yield
        finally:
            self.plain_requests -= 1
            if ticket is not None:
                self.relays.discard(ticket)

    def _stop_of(self, keys: frozenset[str]) -> None:
        """End what runs for keys that were taken away: whoever stole one goes on with nothing."""
        relays = [ticket for ticket in self.relays if ticket.key in keys]
        for ticket in relays:
            ticket.interrupt(Interrupted(Stop.REVOKED, "its API key was revoked"))
        count = self.host.stop_of(keys) + len(relays)
        if count:
            names = ", ".join(sorted(keys))
            log.warning("%d requests under way end, for their keys were revoked: %s", count, names)

    def forwards_credentials(self, engine: EngineId, principal: Principal = ANYBODY) -> bool:
        """Whether this engine gets the client's keys: not those that were meant for us, and not
        where it has one of its own from us.
        """
        has_key = self.fleet.members[engine].has_key
        is_on = self.config.upstream.forward_authorization
        if principal is ANYBODY and self.config.auth.mode == "keys":
            return False  # nobody looked whose they are
        return is_on and not has_key and not principal.uses_header

    @property
    def own_key(self) -> str:
        """The admin key, which goes to no engine; empty where there is none."""
        key = self.config.admin_key
        return "" if key is None else key.get_secret_value()

    def tenant(self, headers: dict[str, str], principal: Principal = ANYBODY) -> TenantId:
        """Who pays: the tenant of our API key; else, or where the key may say so, the first tenant
        header that names one, a short hash of the client's key, nobody.
        """
        if principal.tenant is not None and TENANTS not in principal.scopes:
            return principal.tenant
        if principal is ANYBODY and self.config.auth.mode == "keys":
            raise WireError("nobody asked for a key", status=401, code="invalid_api_key")
        identity = self.config.identity
        for header in (identity.tenant_header, *identity.tenant_headers):
            named = headers.get(header.lower(), "")
            if 0 < len(named) <= _TENANT_CHARS_MAX and named.isascii() and named.isprintable():
                return TenantId(named)
        if principal.tenant is not None or principal.uses_header:
            return principal.tenant or ANONYMOUS
        key = headers.get("authorization") or headers.get("x-api-key")
        if not key:
            return ANONYMOUS
        return _tenant_of_key(key)

    def arrival(
        self,
        step: StepId,
        identity: Identity,
        request: ParsedRequest,
        *,
        now: Instant,
        retries: StepId | None = None,
    ) -> StepArrived:
        """The event that enters a request into the scheduler. Changes nothing."""
        declared = identity.declared
        deadline = declared.deadline_s
        home = self.sharing.look(identity.conversation) if self.sharing is not None else None
        arrived = StepArrived(
            step=step,
            program=identity.program,
            conversation=identity.conversation,
            tenant=identity.tenant,
            prompt_tokens=identity.prompt_tokens,
            prefixes=identity.prefixes,
            step_class=identity.step_class,
            lineage=identity.lineage,
            parent=identity.parent,
            parent_conversation=identity.parent_conversation,
            answers=identity.answers,
            model=request.model,
            agent=identity.agent,
            output_tokens_max=request.output_tokens_max,
            output_tokens_expected=declared.output_tokens,
            deadline=after(now, seconds(deadline)) if deadline is not None else None,
            priority=declared.priority or 0,
            is_last=declared.is_last,
            retries=retries,
            home=home.engine if home is not None else None,
            home_tokens=home.tokens if home is not None else 0,
            goes_on=self._goes_on(identity, request, now=now),
        )
        return isolated(self.config, arrived)

    def _goes_on(self, identity: Identity, request: ParsedRequest, *, now: Instant) -> bool:
        """Whether a request shows that its program was begun before it, while that is believed: by
        its prompt, or by naming a response that it goes on from or a parent that is not known."""
        scheduler = self.host.scheduler
        if not scheduler.believes(now=now):
            return False
        previous = request.fields.get("previous_response_id")
        if identity.goes_on or (previous is not None and bytes(previous) != b"null"):
            return True
        return identity.parent is not None and identity.parent not in scheduler.programs
