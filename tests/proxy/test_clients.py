"""Who is known by its headers, and how long it waits."""

from __future__ import annotations

from typing import get_args

import pytest

from agentsched.config import ClientName
from agentsched.model import Nanos, seconds
from agentsched.proxy.clients import client_of, read_seconds


@pytest.mark.parametrize(
    ("headers", "name", "silence_s"),
    [
        ({"user-agent": "claude-cli/2.1.330 (external, sdk-cli)"}, "claude-code", 300),
        ({"user-agent": "codex_exec/0.169.0 (Debian 12.0.0; x86_64) xterm"}, "codex", None),
        ({"user-agent": "opencode/1.18.33 ai-sdk/provider-utils/4.0.23"}, "opencode", 300),
        ({"user-agent": "QwenCode/0.24.4 (linux; x64)"}, "qwen", 120),
        ({"user-agent": "OpenAI/Python 2.26.0", "x-title": "OpenHands"}, "openhands", 300),
        ({"x-title": "Cline"}, "cline", 300),
        ({"user-agent": "OpenAI/Python 3.54.0", "x-stainless-read-timeout": "600"}, "other", 600),
        ({"x-stainless-read-timeout": "NOT_GIVEN"}, "other", None),
        ({"user-agent": "curl/8"}, "other", None),
        ({}, "other", None),
    ],
)
def test_clients(headers: dict[str, str], name: str, silence_s: float | None) -> None:
    client = client_of(headers)
    assert client.name == name
    assert client.silence == (None if silence_s is None else seconds(silence_s))
    assert client.name in get_args(ClientName)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("60", seconds(60.0)),
        (" 0.5 ", seconds(0.5)),
        *((text, None) for text in ("-1", "0", "nan", "inf", "1e9", "", "soon")),
    ],
)
def test_seconds(text: str, span: Nanos | None) -> None:
    assert read_seconds(text) == span
