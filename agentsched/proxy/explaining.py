"""Our response headers: whose request this was, where it went and why."""

from __future__ import annotations

from agentsched.model import MILLISECOND, Dispatch, EngineId, Nanos
from agentsched.ports import EngineAnswer
from agentsched.proxy import headers as header_rules
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.identity import Identity
from agentsched.proxy.identity.cookie import TURN_STATE, takes_cookies
from agentsched.proxy.receive import Received


def explanation(
    gateway: Gateway,
    identity: Identity,
    verdict: Dispatch | None,
    *,
    received: Received,
    waited: Nanos,
) -> list[tuple[str, str]]:
    """What we say of a request; without a verdict, what is known before it has gone anywhere."""
    ours = [
        ("x-request-id", received.request_id),
        ("x-agentsched-program", header_rules.ascii_only(identity.program)),
        ("x-agentsched-conversation", header_rules.ascii_only(identity.conversation)),
        ("x-agentsched-step", str(identity.step)),
    ]
    if takes_cookies(received.headers):
        ours.append((TURN_STATE, gateway.index.cookie(identity)))
    if verdict is not None:
        ours.append(("x-agentsched-engine", str(verdict.engine)))
        ours.append(("x-agentsched-decision", _decision(identity, verdict, waited)))
    return ours


def with_ours(
    gateway: Gateway, answer: EngineAnswer, ours: list[tuple[str, str]], *, engine: EngineId
) -> list[tuple[str, str]]:
    """The headers of an engine's answer that pass, and ours."""
    member = gateway.fleet.members.get(engine)
    theirs = header_rules.to_client(
        answer.headers, status=answer.status, engine_url=member.url if member else ""
    )
    if any(name.lower() == TURN_STATE for name, _ in theirs):
        ours = [pair for pair in ours if pair[0] != TURN_STATE]  # it has a cookie of its own
    return [*theirs, *ours]


def _decision(identity: Identity, verdict: Dispatch, waited: Nanos) -> str:
    return (
        f"order={verdict.order} place={verdict.place} wait_ms={waited // MILLISECOND}"
        f" pin={verdict.pin} bypassed={verdict.bypassed} as={identity.evidence.value}"
    )
