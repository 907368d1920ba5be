"""Programs that were closed: they go with their last step where that was answered."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import (
    SECOND,
    EngineId,
    EngineLost,
    Nanos,
    ProgramClosed,
    ProgramId,
    Reject,
    RejectReason,
    StepCancelled,
    StepFailed,
    StepId,
)
from agentsched.policy import Held

FAILED = StepFailed(step=StepId("s2"), reason="engine died")


def closes(rig: Any) -> bool:
    rig.scheduler.check()
    return "p1" not in rig.scheduler.programs


@pytest.fixture
def served(make_rig: Any) -> Any:
    """A program that was answered once, whose second step is said to be its last."""
    rig = make_rig(ready_steps_max=10, engine_wait_ns_max=Nanos(SECOND))
    rig.engine()
    rig.arrive("s1")
    rig.finish("s1", tools={"c": "bash"})
    rig.arrive("s2", is_last=True)
    return rig


def test_whose_last_step_is_answered_goes(served: Any) -> None:
    assert not closes(served)
    served.finish("s2")
    assert closes(served)


def test_whose_last_step_fails_is_no_new_program_when_it_asks_again(served: Any) -> None:
    """The last tenth of the queue is for it still."""
    served.push(FAILED)
    assert not closes(served)
    served.policy.admission = lambda step, engine: Held(reason="never")
    for number in range(9):
        served.arrive(f"b{number}", program="busy", conversation=f"c{number}")
    assert isinstance(served.arrive("new", program="new")[0], Reject)
    assert served.arrive("s3", is_last=True, retries=StepId("s2")) == ()


def test_and_goes_with_that_one(served: Any) -> None:
    served.push(FAILED)
    served.arrive("s3", is_last=True, retries=StepId("s2"))
    served.finish("s3")
    assert closes(served)


def test_whose_last_step_is_rejected_stays_as_well(served: Any) -> None:
    served.push(EngineLost(engine=EngineId("e1"), reason="crash"))
    served.push(StepFailed(step=StepId("s2"), reason="crash", is_retryable=True))
    [reject] = served.timer(at=2)
    assert (reject.step, reject.reason) == ("s2", RejectReason.NO_ENGINE)
    assert not closes(served)


def test_whose_client_left_goes(served: Any) -> None:
    served.push(StepCancelled(step=StepId("s2"), reason="hung up"))
    assert closes(served)


def test_who_was_closed_by_word_goes_however_its_steps_end(served: Any) -> None:
    served.push(ProgramClosed(program=ProgramId("p1"), reason="released"))
    assert not closes(served)
    served.push(FAILED)
    assert closes(served)


def test_another_steps_failure_is_no_reason_to_stay(make_rig: Any) -> None:
    rig = make_rig()
    rig.engine()
    rig.arrive("s1")
    rig.finish("s1")
    rig.arrive("s2")
    rig.arrive("last", is_last=True)
    rig.push(FAILED)
    assert not closes(rig)
    rig.finish("last")
    assert closes(rig)


def test_who_was_never_answered_goes_whatever_came_of_it(make_rig: Any) -> None:
    rig = make_rig()
    rig.engine()
    rig.arrive("s2", is_last=True)
    rig.push(FAILED)
    assert closes(rig)
