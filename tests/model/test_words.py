"""The words themselves: unions that are complete, values that do not change."""

from __future__ import annotations

import dataclasses
import inspect
from typing import get_args

import pytest

from agentsched.model import Command, Event, StepClass, StepState, commands, errors, events
from agentsched.model.errors import AgentschedError, EngineError, EngineRefused, WireError

PARTS = [*get_args(Event), *get_args(Command)]


def test_the_unions_have_every_class_of_their_module() -> None:
    for module, union in ((events, Event), (commands, Command)):
        defined = {
            cls
            for _, cls in inspect.getmembers(module, dataclasses.is_dataclass)
            if cls.__module__ == module.__name__
        }
        assert defined == set(get_args(union))


@pytest.mark.parametrize("cls", PARTS)
def test_events_and_commands_are_frozen_slotted_and_keyword_only(cls: type) -> None:
    parameters = cls.__dataclass_params__  # type: ignore[attr-defined]
    assert parameters.frozen
    assert "__slots__" in vars(cls)
    assert all(field.kw_only for field in dataclasses.fields(cls))
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}(")


def test_final_states() -> None:
    final = {state.value for state in StepState if state.is_final}
    assert final == {"finished", "failed", "cancelled", "rejected"}


def test_what_counts_as_work() -> None:
    assert {kind for kind in StepClass if kind.is_work} == {StepClass.STEP, StepClass.SUBAGENT}


def test_the_error_tree_is_the_one_that_is_drawn() -> None:
    tree = {
        name: cls
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, AgentschedError)
    }
    assert errors.__doc__ is not None
    for name, cls in tree.items():
        assert name in errors.__doc__
        is_leaf_of_engine = name.startswith("Engine") and name != "EngineError"
        assert cls.__bases__ == {
            "AgentschedError": (Exception,),
        }.get(name, (EngineError,) if is_leaf_of_engine else (AgentschedError,))


def test_errors_carry_what_the_answer_needs() -> None:
    error = WireError("no", status=413, code="too_large", param="messages")
    assert (str(error), error.status, error.code, error.param) == (
        "no",
        413,
        "too_large",
        "messages",
    )
    assert WireError("no").status == 400
    assert EngineRefused("no", status=503).status == 503
