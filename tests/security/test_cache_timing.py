"""What one tenant's prompts tell another through the prefix cache of a real vLLM."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

#: A model on a busy CPU takes its time to say what it can do.
PATIENT: dict[str, Any] = {
    "limits": {"engine_wait_max": "90s"},
    "upstream": {"probe_interval": "1s", "probe_timeout": "20s", "trial_timeout": "60s"},
}
SALT = {"cache_salt_key": "a-secret-of-the-operator"}


async def cached(proxy: Any, key: Any, prompt: str, **fields: Any) -> int:
    """How many tokens of a prompt the engine had already: what its time tells, as a number."""
    headers = key.headers | {"Content-Type": "application/json"}
    answer = await proxy.chat(prompt, headers=headers, max_tokens=1, **fields)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    details = usage.get("prompt_tokens_details") or {}
    count: int = details.get("cached_tokens") or 0
    assert usage["prompt_tokens"] > 150
    return count


def prompt_of_a_secret() -> str:
    return f"The secret is {secrets.token_hex(8)}. " + "All of it is repeated here. " * 40


async def model_of(url: str) -> str:
    import httpx

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        name: str = (await client.get("/v1/models")).json()["data"][0]["id"]
        return name


@pytest.mark.parametrize("identity", [{}, SALT], ids=["off", "on"])
async def test_a_prompt_of_anothers(
    start_keyed: Any, keys: Any, vllm_url: str, identity: dict[str, Any]
) -> None:
    """Off, blue learns that somebody asked the same before; on, it does not. Red's own stays."""
    model = await model_of(vllm_url)
    engine = {"url": vllm_url, "id": "e0", "kind": "vllm"}
    prompt = prompt_of_a_secret()
    async with start_keyed(engines=[engine], identity=identity, **PATIENT) as proxy:
        first = await cached(proxy, keys.red, prompt, model=model)
        again = await cached(proxy, keys.red, prompt, model=model)
        others = await cached(proxy, keys.blue, prompt, model=model)
    assert again > first
    assert again > 100
    if identity:
        assert others == 0
    else:
        assert others == again


async def test_a_salt_cannot_be_chosen_to_fit(start_keyed: Any, keys: Any, vllm_url: str) -> None:
    """Whatever salt blue sends itself, and red's own when it were known, goes into blue's."""
    model = await model_of(vllm_url)
    engine = {"url": vllm_url, "id": "e0", "kind": "vllm"}
    prompt = prompt_of_a_secret()
    async with start_keyed(engines=[engine], identity=SALT, **PATIENT) as proxy:
        await cached(proxy, keys.red, prompt, model=model)
        from agentsched.model import TenantId
        from agentsched.proxy.salting import cache_salt

        red = cache_salt(proxy.gateway.config, TenantId("red"))["cache_salt"]
        for salt in (red, "red", "x"):
            assert await cached(proxy, keys.blue, prompt, model=model, cache_salt=salt) == 0
        for path in ("/v1/chat/completions/batch", "/v1/load_lora_adapter"):
            body = {"model": model, "cache_salt": red}
            answer = await proxy.client.post(path, json=body, headers=keys.blue.headers)
            assert answer.status_code == 403  # no way around the salt
