"""The log of a running proxy: whose lines they are, and what is never in them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from agentsched.telemetry.logs import JsonFormatter, TextFormatter
from agentsched.telemetry.notes import CURRENT, Note

PRIVATE = ("sk-very-secret", "frobnicator", "two files", "ls -l")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Everything that is logged, as JSON, from the lowest level on."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield out
    root.removeHandler(handler)
    root.setLevel(level)


def read(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


async def test_each_step_has_a_line_with_its_ids(watch: Any, lines: io.StringIO) -> None:
    async with watch(telemetry={"log_steps": True}) as proxy:
        answers = await proxy.run_agent(x_request_id="req-7")
    steps = [line for line in read(lines) if line["logger"] == "agentsched.steps"]
    ended = [line for line in steps if line.get("outcome") == "finished"]
    assert [line["request_id"] for line in ended] == ["req-7", "req-7"]
    assert {line["program"] for line in ended} == {answers[0].headers["x-agentsched-program"]}
    assert all(line["engine"] == "e0" and line["output_tokens"] > 0 for line in ended)
    assert any(line["message"] == "engine e0 is up" for line in steps)


async def test_steps_that_go_well_are_not_told_by_default(watch: Any, lines: io.StringIO) -> None:
    async with watch() as proxy:
        await proxy.run_agent()
    assert not [line for line in read(lines) if "outcome" in line]


@pytest.mark.slow
async def test_secrets_and_prompts_are_never_logged(watch: Any, lines: io.StringIO) -> None:
    async with watch(telemetry={"log_steps": True}) as proxy:
        await proxy.run_agent()
        await proxy.ask("not a list of messages: frobnicator")  # refused by us
        unknown = {"model": "frobnicator", "messages": [{"role": "user", "content": "two files"}]}
        await proxy.client.post("/v1/chat/completions", json=unknown)  # refused by the engine
        await proxy.client.post("/v1/chat/completions", content=b'{"frobnicator": ')
        await proxy.client.get("/v1/models?key=sk-very-secret-0123456789abcdef")
    text = "\n".join(
        line for line in lines.getvalue().splitlines() if '"logger": "httpx"' not in line
    )  # the test's own client is no part of the proxy
    assert text
    assert not [word for word in PRIVATE if word in text]


class TestFormats:
    def record(self, **more: Any) -> logging.LogRecord:
        record = logging.LogRecord("agentsched.x", 30, "f", 1, "a %s", ("word",), None)
        for name, value in more.items():
            setattr(record, name, value)
        return record

    def test_a_line_knows_the_request_of_its_task(self) -> None:
        token = CURRENT.set(Note(step="s", program="p", request_id="r"))  # type: ignore[arg-type]
        try:
            said = json.loads(JsonFormatter().format(self.record()))
            text = TextFormatter().format(self.record())
        finally:
            CURRENT.reset(token)
        assert (said["request_id"], said["program"], said["step"]) == ("r", "p", "s")
        assert text.endswith("agentsched.x: a word [request_id=r program=p step=s]")

    def test_json_of_any_text_is_one_line(self) -> None:
        record = self.record(msg='a "b"\nc %s', args=("\ud800",))
        text = JsonFormatter().format(record)
        assert "\n" not in text
        assert json.loads(text)["level"] == "warning"

    def test_a_traceback_is_part_of_the_object(self) -> None:
        try:
            raise ValueError("no")
        except ValueError as error:
            record = self.record(exc_info=(ValueError, error, error.__traceback__))
        assert "ValueError: no" in json.loads(JsonFormatter().format(record))["exception"]
