"""Clients are counted under a few fixed names, whatever they call themselves."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.proxy.families import OTHERS, family_of


@pytest.mark.parametrize(
    ("agent", "family"),
    [
        ("claude-cli/2.1.330 (external, sdk-cli)", "claude-code"),
        ("codex_exec/0.169.0 (Debian 12.0.0; x86_64)", "codex"),
        ("opencode/1.18.33", "opencode"),
        ("QwenCode/0.24.4 (linux; x64)", "qwen"),
        ("Cline/3.0.65", "cline"),
        ("OpenHands/1.58.0", "openhands"),
        ("litellm/1.90.0", "mini-swe-agent/litellm"),
        ("Agents/Python 0.24.0", "openai-agents"),
        ("pydantic-ai/2.68.0", "pydantic-ai"),
        ("OpenAI/Python 3.54.0", "openai-sdk"),
        ("AsyncOpenAI/Python 2.0.0", "openai-sdk"),
        ("Anthropic/Python 2.12.0", "anthropic-sdk"),
        ("curl/8.0", OTHERS),
        ("", OTHERS),
    ],
)
def test_a_family_for_each_user_agent(agent: str, family: str) -> None:
    assert family_of({"user-agent": agent}) == family


def test_an_sdks_user_agent_with_a_title() -> None:
    assert family_of({"user-agent": "OpenAI/Python 2.1", "x-title": "OpenHands"}) == "openhands"


def test_litellm_under_openais_name() -> None:
    sdk = {"user-agent": "OpenAI/Python 2.54.0", "x-stainless-read-timeout": "600"}
    raw = {"x-stainless-raw-response": "true"}
    assert family_of(sdk) == family_of(sdk | raw) == "openai-sdk"
    litellm = sdk | raw | {"x-stainless-read-timeout": "600.0"}
    assert family_of(litellm) == "mini-swe-agent/litellm"


async def test_statistics_name_the_clients_seen(proxy: Any) -> None:
    for agent in ("claude-cli/2.1.330", "a-new-one/1", "a-new-one/2"):
        await proxy.chat(headers={"user-agent": agent})
    shown = (await proxy.client.get("/agentsched/v1/statistics")).json()
    assert shown["clients"] == {"others": 2, "claude-code": 1}
