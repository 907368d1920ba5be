"""What an engine is sent for a step: the client's bytes with the fields and headers of its turn."""

from __future__ import annotations

from collections.abc import Mapping

from agentsched.model import Dispatch, Nanos, in_seconds
from agentsched.ports import Engine, EngineRequest
from agentsched.proxy import headers as header_rules
from agentsched.proxy.access.ownership import own_names
from agentsched.proxy.access.principal import Principal
from agentsched.proxy.call_ids import CallIdMarker
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.identity import Identity
from agentsched.proxy.receive import Received
from agentsched.proxy.request import ParsedRequest
from agentsched.proxy.salting import cache_salt
from agentsched.proxy.splicing import forward_body


def outgoing(
    gateway: Gateway,
    engine: Engine,
    verdict: Dispatch,
    *,
    received: Received,
    parsed: ParsedRequest,
    identity: Identity,
    principal: Principal,
    call_ids: CallIdMarker,
) -> EngineRequest:
    """The request for the engine that a step was given."""
    fields = engine.admission_fields(
        priority=verdict.priority,
        session=str(identity.conversation),
        program=str(identity.program),
        tenant=str(identity.tenant),
        is_kept=identity.step_class.is_work and gateway.may_pin,
    )
    if engine.capabilities.cache_salt:
        own = parsed.fields.get("cache_salt")
        fields = {**fields, **cache_salt(gateway.config, identity.tenant, own=own)}
    headers = header_rules.to_engine(
        received.pairs,
        request_id=received.engine_request_id,
        with_credentials=gateway.forwards_credentials(engine.id, principal),
        own_key=gateway.own_key,
    )
    turn = engine.admission_headers(priority=verdict.priority)
    headers = header_rules.with_turn(gateway.notes.sign(verdict.step, headers), turn)
    unnamed = own_names(gateway, parsed)
    body = call_ids.request(forward_body(parsed, fields=fields, drop=unnamed))
    idles: Mapping[str, Nanos] = gateway.config.upstream.idle_timeouts  # type: ignore[assignment]  # keys are words
    idle = idles.get(parsed.dialect.value)
    return EngineRequest(
        method="POST",
        target=received.target,
        headers=headers,
        body=body,
        idle_s=None if idle is None else in_seconds(idle),
    )
