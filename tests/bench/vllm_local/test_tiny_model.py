from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentsched_bench.vllm_local.tiny_model import cache_root, ensure_tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "bash", "arguments": '{"command": "ls -l"}'},
}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "You are an agent."},
    {"role": "user", "content": [{"type": "text", "text": "Look around, please."}]},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL, CALL | {"id": "c2"}]},
    {"role": "tool", "tool_call_id": "c1", "content": "total 0"},
    {"role": "tool", "tool_call_id": "c2", "content": "total 0"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": ""},
    {"role": "assistant", "content": "There is nothing."},
    {"role": "user", "content": "Then write something."},
]


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "agentsched"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_root() == Path.home() / ".cache" / "agentsched"


async def test_made_once_and_always_the_same(vllm_python: Path, tmp_path: Path) -> None:
    first = await ensure_tiny_model(vllm_python, root=tmp_path / "a")
    again = await ensure_tiny_model(vllm_python, root=tmp_path / "a")
    other = await ensure_tiny_model(vllm_python, root=tmp_path / "b")
    assert first == again
    assert first.name == other.name
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (first / name).read_bytes() == (other / name).read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == [first.name]
    config = json.loads((first / "config.json").read_text())
    assert config["vocab_size"] == 4096


def rendered(client: httpx.Client, messages: list[dict[str, Any]], **fields: Any) -> str:
    body = {"model": "tiny", "messages": messages} | fields
    answer = client.post("/tokenize", json=body).raise_for_status().json()
    text = client.post("/detokenize", json={"model": "tiny", "tokens": answer["tokens"]})
    return str(text.raise_for_status().json()["prompt"])


def test_a_longer_conversation_begins_with_the_shorter(vllm_url: str) -> None:
    with httpx.Client(base_url=vllm_url, timeout=120) as client:
        texts = [
            rendered(client, CONVERSATION[:end], add_generation_prompt=False)
            for end in range(1, len(CONVERSATION) + 1)
        ]
        asked = rendered(client, CONVERSATION[:2])
    for shorter, longer in pairwise(texts):
        assert longer.startswith(shorter)
        assert len(longer) > len(shorter)
    # The text that asks for an answer is how the answer begins.
    assert texts[2].startswith(asked)
    assert "Look around, please." in texts[1]
    assert (
        "I look.\n<tool_call>\n"
        '{"name": "bash", "arguments": {"command": "ls -l"}}\n</tool_call>' in texts[2]
    )


def test_tools_are_part_of_the_prompt(vllm_url: str) -> None:
    tool = {"type": "function", "function": {"name": "edit_file", "parameters": {}}}
    with httpx.Client(base_url=vllm_url, timeout=120) as client:
        text = rendered(client, CONVERSATION, tools=[tool])
        body = {"model": "tiny", "messages": CONVERSATION, "tools": [tool], "max_tokens": 3}
        answer = client.post("/v1/chat/completions", json=body | {"tool_choice": "auto"})
    assert "edit_file" in text
    assert answer.status_code == 200
