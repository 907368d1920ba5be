"""Which engines are told in headers whose turn it is."""

from __future__ import annotations

import pytest

from agentsched.model import EngineId
from agentsched.ports import Engine
from agentsched_adapters import FakeEngine, OpenAiCompatibleEngine, VllmEngine
from agentsched_adapters.sglang import SglangEngine

ID, URL = EngineId("e"), "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("engine", "is_told"),
    [
        (VllmEngine(ID, URL, priority=True), True),
        (VllmEngine(ID, URL, priority=False), False),
        (VllmEngine(ID, URL), False),  # not probed yet
        (FakeEngine(ID), True),
        (FakeEngine(ID, priority=False), False),
        (SglangEngine(ID, URL), False),
        (OpenAiCompatibleEngine(ID, URL), False),
    ],
)
def test_priority(engine: Engine, is_told: bool) -> None:
    told = [("X-Vllm-Priority", "-3")] if is_told else []
    assert list(engine.admission_headers(priority=-3)) == told
    assert ("priority" in engine.admission_fields(priority=-3, session="")) is is_told
    assert list(engine.admission_headers(priority=0)) == []
