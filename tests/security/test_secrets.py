"""Planted secrets: whatever happens, none of them is in anything that we keep, show or write."""

from __future__ import annotations

import contextlib
import io
import logging
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentsched.proxy.access.redact import GONE, Redacting, redact

BASE = "/agentsched/v1"


def planted() -> dict[str, str]:
    """Secrets in the forms that they have."""
    tail = secrets.token_hex(20)
    return {
        "client": f"sk-proj-client{tail}",
        "engine": f"sk-engine-{tail}",
        "prompt": f"prompt{tail}",
        "answer": f"answer{tail}",
        "cookie": f"cookie{tail}",
    }


@contextlib.contextmanager
def logged() -> Iterator[io.StringIO]:
    """All that is logged, at its most talkative, as `agentsched serve` writes it."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(Redacting(logging.Formatter("%(levelname)s %(name)s: %(message)s")))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield out
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


async def outputs(proxy: Any, headers: dict[str, str]) -> str:
    """What everything that can be looked at says."""
    shown = []
    paths = ["/metrics", "/readyz", "/healthz"]
    paths += [f"{BASE}/{p}" for p in ("programs", "engines", "tenants", "statistics", "overview")]
    for program in proxy.scheduler.programs:
        paths += [f"{BASE}/programs/{program}{t}" for t in ("", "/story", "/graph", "/timeline")]
    for path in paths:
        answer = await proxy.client.get(path, headers=headers)
        assert answer.status_code == 200, path
        shown.append(answer.text + str(answer.headers))
    shown.append(str(proxy.turns.entries))
    return "\n".join(shown)


def leaks(text: str, wanted: dict[str, str]) -> list[str]:
    return [name for name, secret in wanted.items() if secret in text]


@pytest.mark.parametrize("fails", ["not", "by status", "in mid-stream", "by a cut"])
async def test_nothing_keeps_them(
    start_keyed: Any, keys: Any, upstream: Any, tmp_path: Path, fails: str
) -> None:
    hidden = planted()
    all_of_them = hidden | {"key": keys.red.token, "admin": keys.admin.token}
    said = f"Incorrect API key {hidden['engine']}, client {hidden['client']} ({keys.red.token})"

    async def answers(exchange: Any) -> None:
        if fails == "by status":
            await exchange.json({"error": {"message": said}}, status=500)
        elif fails == "by a cut":
            exchange.cut()
        elif fails == "in mid-stream":
            await exchange.head(content_type="text/event-stream")
            text = f"{said}; near {hidden['prompt']} and {hidden['answer']}"
            await exchange.chunk(b'data: {"error": {"message": "%b"}}\n\n' % text.encode())
            await exchange.end()
        else:
            choices = [{"message": {"content": hidden["answer"]}, "finish_reason": "stop"}]
            await exchange.json({"id": "1", "choices": choices})

    upstream.script = answers
    engine = {"url": upstream.url, "id": "e0", "kind": "openai", "api_key": hidden["engine"]}
    with logged() as log:
        async with start_keyed(engines=[engine]) as proxy:
            for number in range(2):
                await proxy.chat(
                    hidden["prompt"],
                    headers=keys.red.headers
                    | {"Cookie": hidden["cookie"], "api-key": hidden["client"]},
                    stream=fails == "in mid-stream",
                    n_calls=number,
                )
                await proxy.client.post(
                    f"{BASE}/tools",
                    content=b"{" + hidden["client"].encode(),
                    headers=keys.red.headers,
                )
            shown = await outputs(proxy, keys.admin.headers)
    assert leaks(shown, all_of_them) == []
    assert leaks(log.getvalue(), all_of_them) == []
    for exchange in upstream.exchanges:
        assert leaks(str(exchange.pairs), all_of_them) == ["engine"]


async def test_the_log_does_not_say_what_an_engine_says_in_mid_stream(
    start_keyed: Any, keys: Any, upstream: Any
) -> None:
    """What an engine's parser failed on is a piece of an answer, or of a prompt."""
    hidden = planted()
    words = f"cannot parse {hidden['answer']} near {hidden['prompt']}"

    async def answers(exchange: Any) -> None:
        error = f'data: {{"error": {{"message": "{words}", "code": 500}}}}\n\n'
        await exchange.head(content_type="text/event-stream")
        await exchange.chunk(error.encode())
        await exchange.end()

    upstream.script = answers
    with logged() as log:
        async with start_keyed(upstream.url) as proxy:
            answer = await proxy.chat(hidden["prompt"], headers=keys.red.headers, stream=True)
    assert words in answer.text  # its client is told
    assert leaks(log.getvalue(), hidden) == []
    assert "engine e0 is suspected: status 500" in log.getvalue()


async def test_no_refusal_repeats_a_key(keyed: Any, keys: Any) -> None:
    wrong = keys.red.token[:-1] + ("a" if keys.red.token[-1] != "a" else "b")
    with logged() as log:
        for headers in (
            {"Authorization": f"Bearer {wrong}"},
            {"x-api-key": wrong},
            {"x-agentsched-key": wrong},
            {"Authorization": f"Bearer {keys.red_read.token}"},
        ):
            answer = await keyed.chat(headers=headers)
            assert answer.status_code in (401, 403)
            assert "ask_" not in answer.text + str(answer.headers)
        answer = await keyed.client.get(f"{BASE}/programs?key={wrong}")
        assert "ask_" not in answer.text
    assert "ask_" not in log.getvalue()


async def test_a_defects_traceback_is_redacted(
    keyed: Any, keys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*args: Any, **more: Any) -> None:
        raise RuntimeError(f"while looking at {keys.red.token}")

    monkeypatch.setattr(keyed.gateway.index, "identify", breaks)
    with logged() as log:
        answer = await keyed.chat(headers=keys.red.headers)
    assert answer.status_code == 500
    assert "a defect while serving" in log.getvalue()
    assert GONE in log.getvalue()
    assert keys.red.token not in log.getvalue() + answer.text


async def test_a_line_of_the_log_is_one_line(keyed: Any, keys: Any) -> None:
    with logged() as log:
        path = f"{BASE}/engines/x%0aINFO%20root:%20forged/drain"
        await keyed.client.post(path, headers=keys.admin.headers)
    assert "drain by key" in log.getvalue()
    assert "\nINFO root: forged" not in log.getvalue()


async def test_what_operators_do_is_logged_with_who(keyed: Any, keys: Any) -> None:
    with logged() as log:
        await keyed.client.post(f"{BASE}/engines/e0/drain", headers=keys.admin.headers)
    assert f"POST {BASE}/engines/e0/drain by key {keys.admin.id}" in log.getvalue()


class TestRedact:
    @pytest.mark.parametrize(
        "text",
        [
            "ask_" + "a" * 12 + "_" + "B" * 43,
            "sk-" + "a" * 40,
            "sk-proj-" + "a" * 40,
            "hf_" + "a" * 34,
            "ghp_" + "a" * 36,
            "AKIA" + "A" * 16,
            "ASIA" + "A" * 16,
            "AIza" + "a" * 35,
            "nvapi-" + "a" * 64,
            "glpat-" + "a" * 20,
            "xoxb-1234567890-" + "a" * 24,
            "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        ],
    )
    def test_keys_and_tokens(self, text: str) -> None:
        for shown in (text, f"key {text}.", f"'{text}'", f"Bearer {text}", f"x={text}&y=1"):
            assert text not in redact(shown)
            assert GONE in redact(shown)

    @pytest.mark.parametrize(
        ("text", "left"),
        [
            ("Authorization: Bearer abcdefgh123", f"Authorization: Bearer {GONE}"),
            ("x-api-key: abcdefgh123", f"x-api-key: {GONE}"),
            ('{"api_key": "abcdefgh123"}', f'{{"api_key": "{GONE}"}}'),
            ("postgresql://me:hunter22@db/x", f"postgresql://me:{GONE}@db/x"),
            ("mqtt://a:b@broker", f"mqtt://a:{GONE}@broker"),
        ],
    )
    def test_what_follows_a_word(self, text: str, left: str) -> None:
        assert redact(text) == left

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "nothing here",
            "http://127.0.0.1:8000/v1 is up",
            "a task_of_mine, an ask_, sk-learn, basically",
            "the api_key is missing",
        ],
    )
    def test_what_stays(self, text: str) -> None:
        assert redact(text) == text
