"""Errors and no-ops, to the byte where the shape is the point."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentsched.proxy.errors import error_body, error_type, keep_alive, stream_error
from agentsched.proxy.request import Dialect

OPENAI = [d for d in Dialect if not d.is_anthropic]
ANTHROPIC = [d for d in Dialect if d.is_anthropic]


def data_of(event: bytes) -> dict[str, Any]:
    (line,) = [line for line in event.split(b"\n") if line.startswith(b"data: ")]
    result: dict[str, Any] = json.loads(line[6:])
    return result


class TestBodies:
    @pytest.mark.parametrize("dialect", OPENAI)
    def test_openais_shape(self, dialect: Dialect) -> None:
        body = error_body(dialect, status=400, message="Bad.", code="invalid_type", param="model")
        assert json.loads(body) == {
            "error": {
                "message": "Bad.",
                "type": "invalid_request_error",
                "param": "model",
                "code": "invalid_type",
            }
        }

    @pytest.mark.parametrize("dialect", ANTHROPIC)
    def test_anthropics_shape(self, dialect: Dialect) -> None:
        body = error_body(dialect, status=413, message="Big.", code="x", request_id="req_1")
        assert json.loads(body) == {
            "type": "error",
            "error": {"type": "request_too_large", "message": "Big."},
            "request_id": "req_1",
        }
        assert "request_id" not in json.loads(
            error_body(dialect, status=413, message="Big.", code="x")
        )

    @pytest.mark.parametrize(
        ("status", "openai", "anthropic"),
        [
            (400, "invalid_request_error", "invalid_request_error"),
            (401, "authentication_error", "authentication_error"),
            (403, "permission_error", "permission_error"),
            (404, "not_found_error", "not_found_error"),
            (405, "invalid_request_error", "invalid_request_error"),
            (413, "invalid_request_error", "request_too_large"),
            (429, "rate_limit_error", "rate_limit_error"),
            (500, "server_error", "api_error"),
            (502, "server_error", "api_error"),
            (503, "service_unavailable_error", "overloaded_error"),
            (504, "timeout_error", "timeout_error"),
            (529, "server_error", "overloaded_error"),
        ],
    )
    def test_types_follow_the_status(self, status: int, openai: str, anthropic: str) -> None:
        assert error_type(Dialect.CHAT, status) == openai
        assert error_type(Dialect.MESSAGES, status) == anthropic

    def test_a_delay_is_said_in_words_too(self) -> None:
        body = error_body(Dialect.CHAT, status=429, message="Full.", code="f", retry_after_s=3)
        assert json.loads(body)["error"]["message"] == "Full. Please try again in 3.0s."
        given = error_body(Dialect.CHAT, status=429, message="x", code="f", type="mine")
        assert json.loads(given)["error"]["type"] == "mine"


class TestStreamErrors:
    def test_chat_has_the_status_as_code_and_no_end_mark(self) -> None:
        event = stream_error(Dialect.CHAT, status=503, message="Gone.", code="engine_lost")
        assert event == (
            b'data: {"error":{"message":"Gone.","type":"service_unavailable_error",'
            b'"param":null,"code":503}}\n\n'
        )

    def test_messages(self) -> None:
        event = stream_error(Dialect.MESSAGES, status=503, message="Gone.", code="engine_lost")
        assert event == (
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error",'
            b'"message":"Gone."}}\n\n'
        )

    @pytest.mark.parametrize(
        ("status", "delay", "code", "ending"),
        [
            (503, None, "rate_limit_exceeded", "try again in 1.0s."),
            (429, 2.5, "rate_limit_exceeded", "try again in 2.5s."),
            (500, 0, "rate_limit_exceeded", "try again in 0.0s."),
            (400, None, "invalid_prompt", "Gone."),
        ],
    )
    def test_responses_says_how_long_to_wait(
        self, status: int, delay: float | None, code: str, ending: str
    ) -> None:
        event = stream_error(
            Dialect.RESPONSES,
            status=status,
            message="Gone.",
            code="x",
            retry_after_s=delay,
            response_id="r",
            model="m",
        )
        assert event.startswith(b"event: response.failed\n")
        response = data_of(event)["response"]
        assert (response["id"], response["model"], response["status"]) == ("r", "m", "failed")
        assert response["error"]["code"] == code
        assert response["error"]["message"].endswith(ending)

    @pytest.mark.parametrize("dialect", list(Dialect))
    def test_text_cannot_break_out_of_its_event(self, dialect: Dialect) -> None:
        event = stream_error(dialect, status=500, message="a\n\ndata: [DONE]\r\n", code="x")
        assert event.count(b"\n\n") == 1
        assert b"\r" not in event


class TestKeepAlive:
    def test_is_an_event_wherever_clients_want_one(self) -> None:
        assert keep_alive(Dialect.MESSAGES) == b'event: ping\ndata: {"type": "ping"}\n\n'
        chunk = data_of(keep_alive(Dialect.CHAT, response_id="c", model="m"))
        assert chunk["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]
        assert (chunk["id"], chunk["model"]) == ("c", "m")
        assert data_of(keep_alive(Dialect.COMPLETIONS))["choices"][0]["text"] == ""
        response = data_of(keep_alive(Dialect.RESPONSES, response_id="r"))
        assert response["type"] == "response.in_progress"
        assert response["response"]["status"] == "in_progress"

    @pytest.mark.parametrize("dialect", list(Dialect))
    def test_ends_with_one_blank_line(self, dialect: Dialect) -> None:
        assert keep_alive(dialect).endswith(b"\n\n")
        assert keep_alive(dialect).count(b"\n\n") == 1
