"""What doctor concludes from what an engine can do."""

from __future__ import annotations

import pytest

from agentsched.inspection.doctor import Examined, Mark, findings
from agentsched.model import Capabilities, EngineLoad
from agentsched_adapters.vllm import PriorityAnswer

ALL = Capabilities(
    prefix_cache=True,
    priority=True,
    session_id=True,
    cached_tokens=True,
    pins=True,
    block_size=16,
    kv_tokens=100_000,
)


def marks(
    capabilities: Capabilities,
    *,
    priority: PriorityAnswer = PriorityAnswer.CONFIRMED,
    load: EngineLoad | None = None,
) -> dict[str, Mark]:
    engine = Examined(
        name="e",
        url="http://e",
        kind="vllm",
        version="0.32",
        capabilities=capabilities,
        priority=priority,
        load=load,
    )
    return {finding.about: finding.mark for finding in findings(engine)}


def test_all_that_can_be_wished_for() -> None:
    found = marks(ALL, load=EngineLoad(running=1, waiting=0, kv_usage=0.25))
    assert set(found.values()) == {Mark.GOOD}


def test_nothing_known() -> None:
    found = marks(Capabilities(), priority=PriorityAnswer.UNKNOWN)
    assert found.pop("prefix cache") is Mark.BAD
    assert set(found.values()) == {Mark.LIMIT}


@pytest.mark.parametrize("answer", list(PriorityAnswer))
def test_only_a_confirmed_priority_is_relied_on(answer: PriorityAnswer) -> None:
    is_good = marks(ALL, priority=answer)["priority"] is Mark.GOOD
    assert is_good is (answer is PriorityAnswer.CONFIRMED)
