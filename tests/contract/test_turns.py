"""Whose turn it is, told in headers: some APIs have no field for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Prompt = Callable[[str, int], list[int]]
VLLM = pytest.param("vllm", marks=pytest.mark.vllm)


async def test_a_header_goes_before_the_body(client: Any, prompt: Prompt) -> None:
    async def ask(name: str, priority: int) -> None:
        headers = client.engine.admission_headers(priority=priority)
        await client.generate(prompt(name, 8), tokens=4, headers=headers, priority=-priority)

    assert await client.served_order(prompt, ask) == ["sooner", "later"]


@pytest.mark.parametrize("kind", ["embedded", VLLM], indirect=True)
async def test_so_it_does_where_there_is_no_field(client: Any, prompt: Prompt) -> None:
    async def ask(name: str, priority: int) -> None:
        fields = client.engine.admission_fields(priority=priority, session="")
        headers = client.engine.admission_headers(priority=priority)
        said = [{"role": "user", "content": name}]
        status, _ = await client.post(
            "/v1/messages", headers=headers, messages=said, max_tokens=4, **fields
        )
        assert status == 200

    assert await client.served_order(prompt, ask) == ["sooner", "later"]
