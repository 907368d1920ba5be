"""Our noes: statuses, words, and when to try again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web

from agentsched.model import (
    EngineTimeout,
    EngineUnreachable,
    Nanos,
    Reject,
    RejectReason,
    StepId,
    WireError,
    seconds,
)
from agentsched.proxy import refusal
from agentsched.proxy.host import Interrupted, Stop
from agentsched.proxy.request import Dialect


def reject(reason: RejectReason, after: Nanos | None = None, detail: str = "") -> Any:
    said = Reject(step=StepId("s"), reason=reason, retry_after=after, detail=detail)
    return refusal.of_reject(said)


@pytest.mark.parametrize("reason", list(RejectReason))
@pytest.mark.parametrize("after", [None, seconds(0.001), seconds(5), seconds(9_999)])
def test_every_reason_has_an_answer(reason: RejectReason, after: Nanos | None) -> None:
    no = reject(reason, after)
    assert 400 <= no.status < 600
    assert no.message.endswith(".")
    if no.status in (429, 503):
        assert 1 <= no.retry_after_s <= 60
    for dialect in Dialect:
        response = no.response(dialect, {"x-request-id": "r"})
        body = json.loads(bytes(response.body))
        assert no.message.split(".")[0] in body["error"]["message"]
        assert ("Retry-After" in response.headers) == (no.retry_after_s is not None)
        assert body.get("request_id") == ("r" if dialect.is_anthropic else None)


def test_the_statuses_are_those_that_clients_know() -> None:
    """SDKs come back after 429, 502 and 503; a model that nobody serves is not asked for again."""
    others = {
        RejectReason.NO_ENGINE: 503,
        RejectReason.UNKNOWN_MODEL: 404,
        RejectReason.ENGINE_FAILED: 502,
    }
    said = {reason: reject(reason).status for reason in RejectReason}
    assert said == {reason: others.get(reason, 429) for reason in RejectReason}


def test_the_model_is_named() -> None:
    no = reject(RejectReason.UNKNOWN_MODEL, detail="gpt-9")
    assert (no.status, no.code) == (404, "model_not_found")
    assert "gpt-9" in no.message


@pytest.mark.parametrize("error", [EngineUnreachable("10.0.0.7: no"), EngineTimeout("10.0.0.7")])
def test_an_engines_address_is_not_told(error: Exception) -> None:
    no = refusal.of_engine_error(error)
    assert no.status in (502, 504)
    assert "10.0.0.7" not in no.message


@pytest.mark.parametrize(
    ("stop", "status"), [(Stop.DRAINING, 503), (Stop.CANCELLED, 409), (Stop.ENGINE_LOST, 502)]
)
def test_interruptions(stop: Stop, status: int) -> None:
    assert refusal.of_interruption(Interrupted(stop, "why")).status == status


def test_what_is_wrong_with_a_request_is_said() -> None:
    no = refusal.of_wire_error(WireError("no model", status=422, code="c", param="model"))
    assert (no.status, no.code, no.message, no.param) == (422, "c", "no model", "model")


def test_the_librarys_own() -> None:
    assert refusal.of_http_exception(web.HTTPNotFound()).code == "not_found"
    assert refusal.of_http_exception(web.HTTPUnsupportedMediaType()).code == "bad_request"
