"""Which headers pass, as pure rules."""

from __future__ import annotations

import pytest

from agentsched.proxy import headers


def test_of_repeated_ones_the_first_counts() -> None:
    assert headers.lower([("A", "1"), ("a", "2"), ("B", "3")]) == {"a": "1", "b": "3"}


def test_order_and_spelling_stay() -> None:
    pairs = [("X-B", "1"), ("x-a", "2"), ("X-B", "3"), ("Cookie", "c"), ("X-AgentSched-Y", "z")]
    sent = headers.to_engine(pairs, request_id="r", with_credentials=True)
    assert sent[:3] == [("X-B", "1"), ("x-a", "2"), ("X-B", "3")]
    assert sent[3:] == [("Accept-Encoding", "identity"), ("x-request-id", "r")]


def test_whose_turn_it_is_is_not_the_clients_to_say() -> None:
    pairs = [("X-Vllm-Priority", "-9"), ("x-data-parallel-rank", "1"), ("x-other", "y")]
    sent = headers.to_engine(pairs, request_id="r", with_credentials=True)
    assert [name for name, _ in sent] == ["x-other", "Accept-Encoding", "x-request-id"]
    assert headers.with_turn(pairs, [("X-Vllm-Priority", "3")]) == [
        ("x-other", "y"),
        ("X-Vllm-Priority", "3"),
    ]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"x-request-id": "a", "x-correlation-id": "b"}, "a"),
        ({"x-correlation-id": "b", "request-id": "c"}, "b"),
        ({"x-trace-id": "t"}, "t"),
        ({"x-request-id": "a\x7fb", "request-id": "c"}, "c"),
        ({"x-request-id": "é"}, None),
        ({"x-request-id": "x" * 257}, None),
        ({"x-request-id": ""}, None),
        ({}, None),
    ],
)
def test_request_ids(given: dict[str, str], found: str | None) -> None:
    assert headers.request_id(given) == found


def test_ids_that_requests_may_share() -> None:
    assert headers.is_of_a_run("t", {"x-trace-id": "t"})
    assert headers.is_of_a_run("c", {"x-correlation-id": "c", "request-id": "r"})
    assert not headers.is_of_a_run("r", {"request-id": "r", "traceparent": "r"})
    assert not headers.is_of_a_run("a", {"x-request-id": "a", "x-trace-id": "a"})
    assert not headers.is_of_a_run("ours", {"x-trace-id": "\xe9"})


@pytest.mark.parametrize("status", [429, 503, 529])
def test_retry_after_is_there_and_bounded(status: int) -> None:
    def said(*values: str) -> list[str]:
        pairs = [("Retry-After", v) for v in values] + [("x", "y")]
        back = headers.to_client(pairs, status=status)
        assert ("x", "y") in back
        return [v for n, v in back if n.lower() == "retry-after"]

    assert said() == ["1"]
    assert said("7") == ["7"]
    assert said("61") == ["60"]
    assert said("5", "9") == ["5"]
    assert said("9" * 40) == ["60"]
    assert said("tomorrow") == ["60"]
    assert said("0.5") == ["1"]
    assert said("0.0") == ["0"]
    assert said("61.5") == ["60"]
    for odd in ("-1", "nan", "-inf", "inf", "", "1e400"):
        assert said(odd) == ["60"]


@pytest.mark.parametrize("status", [429, 503, 529])
def test_milliseconds_are_told_in_seconds(status: int) -> None:
    """Some SDKs believe them first, and what follows them must not be longer than a minute."""

    def said(*pairs: tuple[str, str]) -> list[tuple[str, str]]:
        return headers.to_client(pairs, status=status)

    assert said(("retry-after-ms", "1500")) == [("Retry-After", "2")]
    assert said(("Retry-After-Ms", "600000")) == [("Retry-After", "60")]
    assert said(("retry-after", "7"), ("retry-after-ms", "2500")) == [("Retry-After", "3")]
    assert said(("retry-after", "7"), ("retry-after-ms", "soon")) == [("Retry-After", "7")]
    assert headers.to_client([("retry-after-ms", "9")], status=500) == [("retry-after-ms", "9")]


def test_elsewhere_retry_after_is_the_engines() -> None:
    assert headers.to_client([("retry-after", "999")], status=200) == [("retry-after", "999")]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("http://GPU-1:8000/v1/models?a=b", "/v1/models?a=b"),
        ("https://gpu-1:8000/llm/v1/models", "/v1/models"),  # the engine is behind our prefix
        ("http://gpu-1:8000", "/"),
        ("http://gpu-1:8000//elsewhere/x", "/elsewhere/x"),
        ("http://gpu-1:8000/llmany", "/llmany"),
        ("/v1/models", "/v1/models"),
        ("models/", "models/"),
        ("https://files.example/x", "https://files.example/x"),
        ("http://[gpu", "http://[gpu"),
    ],
)
def test_a_redirect_to_the_engine_is_one_to_us(said: str, told: str) -> None:
    back = headers.to_client(
        [("Location", said), ("x-place", said)], status=307, engine_url="http://gpu-1:8000/llm"
    )
    assert back == [("Location", told), ("x-place", said)]


def test_beyond_ascii() -> None:
    assert headers.ascii_only("a/b#c%20 d") == "a/b#c%20 d"
    assert headers.ascii_only("é/%20") == "%C3%A9/%20"
