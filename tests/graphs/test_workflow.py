"""Declared workflows: reading, what is refused, and that they come before what was learnt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from agentsched.compose import SchedulerConfig, build_graphs, config_of, journal_header
from agentsched.config import load_config
from agentsched.kernel import decode_header, encode_header
from agentsched.model import (
    ConfigError,
    ConversationId,
    Lineage,
    ProgramId,
    StepClass,
    WorkflowDeclared,
)
from agentsched_graphs.templates import END
from agentsched_graphs.workflow import read_workflow, write_workflow

TEXT = """
name: fix-bug
start: explore
steps:
  explore: {tools: [grep, read], next: {explore: 0.5, edit: 0.5}, expected_s: 0.5}
  edit:    {tools: [edit], next: [test]}
  test:    {tools: [Bash pytest], next: {edit: 0.5, done: 0.5}, expected_s: 30}
  done:    {}
"""


def test_yaml_json_and_dict_are_one() -> None:
    workflow = read_workflow(TEXT)
    assert read_workflow(TEXT.encode()) == workflow
    assert read_workflow(write_workflow(workflow)) == workflow
    assert workflow.agent == "fix-bug"
    assert workflow.steps["test"].expected == 30_000_000_000


def test_expected_steps() -> None:
    workflow = read_workflow(TEXT)
    # edit and test come twice each on average, then done; exploring twice.
    assert workflow.steps["done"].steps_left == 0.0
    assert workflow.steps["test"].steps_left == pytest.approx(3.0, abs=1e-3)
    assert workflow.steps_left(None) == pytest.approx(2 + 4 + 1, abs=1e-3)


def changed(**changes: Any) -> dict[str, Any]:
    steps = {"a": {"tools": ["t"], "next": ["b"]}, "b": {}}
    return {"name": "w", "start": "a", "steps": steps} | changes


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{", "neither YAML nor JSON"),
        ("[]", "Expected `object`, got `array`"),
        (changed(name=""), "no name"),
        (changed(steps={}), "0 steps"),
        (changed(start="x"), "starts with 'x', which is none of its steps"),
        (changed(extra=1), "unknown field `extra`"),
        (changed(steps={"a": {"next": ["x"]}}), "step 'a': it is followed by 'x'"),
        (changed(steps={"a": {"next": ["a"]}}), "from step 'a' no end can be reached"),
        (changed(steps={"a": {}, "b": {}}), "nothing leads to step 'b'"),
        (changed(steps={"a": {"tools": ["t", "t"]}}), "tools: a name stands there twice"),
        (changed(steps={"a": {"tools": {"t": 0.4}}}), "add up to 0.4, not to 1"),
        (changed(steps={"a": {"tools": {"t": -1}}}), "has the probability -1"),
        (changed(steps={"a": {"expected_s": -1}}), "expected_s is a number of seconds, not -1"),
        (changed(steps={"a": {"tools": 7}}), "step 'a': Expected `object | array`, got `int`"),
        (changed(steps={"a": {"tools": 7}}), "`$.tools`"),
        (changed(steps={"a": {}, "b": {"nxt": ["a"]}}), "step 'b': Object contains unknown field"),
        (changed(steps={"a": {}, "b": 7}), "step 'b': Expected `object`, got `int`"),
        (changed(steps={"": {}}, start=""), "a name has 1 to 128 characters"),
        (
            changed(steps={"a": {"next": {"a": 0.99999, "b": 0.00001}}, "b": {}}),
            "loops take too long",
        ),
    ],
)
def test_what_is_wrong_is_said(source: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_workflow(source)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_yaml_makes_of_it_is_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        read_workflow("name: x\nsteps: [")
    assert "line 3" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_it_comes_before_what_was_learnt(make_course: Any) -> None:
    config = SchedulerConfig(workflows=(read_workflow(TEXT),))
    course = make_course(build_graphs(config))
    c = ConversationId("c")
    course.arrive("s1", agent="fix-bug", lineage=Lineage.NEW)
    view = course.builder.view(ProgramId("p"))
    assert view.steps_left() == pytest.approx(7.0, abs=1e-3)
    assert dict(view.next_tools(c)) == {"grep": 0.5, "read": 0.5}
    course.finish("s1", "t1:grep")
    assert dict(view.next_tools(c)) == {"edit": 0.5, "grep": 0.25, "read": 0.25}
    assert view.expected_return(c, now=course.now) == course.now + 500_000_000
    course.step("s2", "t2:edit", agent="fix-bug", answers=["t1"])
    assert dict(view.next_tools(c)) == {"Bash pytest": 1.0}
    course.step("s3", "t3:Bash pytest", agent="fix-bug", answers=["t2"])
    assert view.steps_left() == pytest.approx(3.0, abs=1e-3)
    assert dict(view.next_tools(c)) == {"edit": 0.5, END: 0.5}


def test_a_program_that_leaves_it_and_comes_back(make_course: Any) -> None:
    course = make_course(build_graphs(SchedulerConfig(workflows=(read_workflow(TEXT),))))
    c = ConversationId("c")
    course.step("s1", "t1:surf", agent="fix-bug", lineage=Lineage.NEW)
    view = course.builder.view(ProgramId("p"))
    assert dict(view.next_tools(c)) == {"surf": pytest.approx(0.75)}  # learnt
    course.step("s2", "t2:edit", agent="fix-bug", answers=["t1"])
    assert dict(view.next_tools(c)) == {"Bash pytest": 1.0}


def test_one_that_is_declared_anew_finds_programs_again(course: Any) -> None:
    """They stand at steps of the old one, which the new one need not have."""
    c = ConversationId("c")
    course.builder.observe(WorkflowDeclared(text=TEXT), now=course.now)
    course.step("s1", "t1:edit", agent="fix-bug", lineage=Lineage.NEW)
    view = course.builder.view(ProgramId("p"))
    assert view.last_pause_chance(c) == 0.0
    steps = {"look": {"tools": ["read"], "next": ["write"]}, "write": {"tools": ["edit"]}}
    anew = read_workflow({"name": "fix-bug", "start": "look", "steps": steps})
    course.builder.observe(WorkflowDeclared(text=write_workflow(anew)), now=course.now)
    # Until it is somewhere in the new one it is as if none were declared.
    assert view.last_pause_chance(c) == pytest.approx(0.05)
    assert view.expected_return(c, now=course.now) is not None
    assert view.steps_left() == pytest.approx(10.0)
    assert dict(view.next_tools(c)) == {"edit": pytest.approx(0.75)}
    course.step("s2", "t2:read", agent="fix-bug", answers=["t1"])
    assert view.steps_left() == 1.0
    assert dict(view.next_tools(c)) == {"edit": 1.0}


def test_a_place_is_one_of_its_own_agents_workflow(course: Any) -> None:
    for agent, tool in (("coder", "edit"), ("tester", "pytest")):
        steps = {f"{agent}-1": {"tools": [tool], "next": [f"{agent}-2"]}, f"{agent}-2": {}}
        made = read_workflow({"name": agent, "start": f"{agent}-1", "steps": steps})
        course.builder.observe(WorkflowDeclared(text=write_workflow(made)), now=course.now)
    course.step("s1", "t1:edit", agent="coder", lineage=Lineage.NEW)
    view = course.builder.view(ProgramId("p"))
    assert view.steps_left() == 1.0
    course.arrive("s2", agent="tester", answers=["t1"])
    assert view.steps_left() != 1.0
    course.finish("s2", "t2:pytest")
    assert view.steps_left() == 1.0
    assert course.graph().threads[ConversationId("c")].place == "tester-1"


@pytest.fixture
def tested(make_course: Any) -> Any:
    """A program that has come to the workflow's `test`."""
    course = make_course(build_graphs(SchedulerConfig(workflows=(read_workflow(TEXT),))))
    course.step("s1", "t1:edit", agent="fix-bug", lineage=Lineage.NEW)
    course.step("s2", "t2:Bash pytest", agent="fix-bug", answers=["t1"])
    assert left(course) == pytest.approx(3.0, abs=1e-3)
    return course


def left(course: Any) -> float:
    return float(course.builder.view(ProgramId("p")).steps_left())


def rewrite(course: Any, step: str, *, old: str, new: str) -> None:
    kin = {"lineage": Lineage.COMPACTS, "parent_conversation": ConversationId(old)}
    course.arrive(step, new, agent="fix-bug", **kin)


@pytest.mark.parametrize("conversation", ["c", "title"])
def test_a_title_beside_the_work_does_not_begin_it_again(tested: Any, conversation: str) -> None:
    auxiliary = {"agent": "fix-bug", "step_class": StepClass.AUXILIARY}
    tested.arrive("title", conversation, lineage=Lineage.NEW, **auxiliary)
    assert left(tested) == pytest.approx(3.0, abs=1e-3)
    tested.finish("title")
    assert left(tested) == pytest.approx(3.0, abs=1e-3)


def test_a_conversation_keeps_its_place_under_another_id(tested: Any) -> None:
    rewrite(tested, "s3", old="c", new="c'")
    assert left(tested) == pytest.approx(3.0, abs=1e-3)
    view = tested.builder.view(ProgramId("p"))
    assert dict(view.next_tools(ConversationId("c'"))) == {"edit": 0.5, END: 0.5}
    tested.finish("s3")
    assert left(tested) == 0.0


def test_a_sub_agent_that_was_rewritten_begins_none(tested: Any) -> None:
    spawned = {"lineage": Lineage.SPAWNED, "parent_conversation": ConversationId("c")}
    tested.step("k1", "x:read", conversation="k", agent="fix-bug", **spawned)
    rewrite(tested, "k2", old="k", new="k'")
    assert left(tested) == pytest.approx(3.0, abs=1e-3)


def test_configuration_names_the_files(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(TEXT)
    config = load_config(None, {"workflows": [str(file)]})
    assert config.scheduler().workflows == (read_workflow(TEXT),)
    file.unlink()
    assert config.scheduler().workflows, "read once"
    with pytest.raises(ConfigError, match=r"w\.yaml: No such file"):
        load_config(None, {"workflows": [str(file)]}).scheduler()
    file.write_text("name: w")
    with pytest.raises(ConfigError, match=r"w\.yaml: workflow: .*missing required field"):
        load_config(None, {"workflows": [str(file)]}).scheduler()


def test_whoever_lacks_yaml_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match=r"pip install 'agentsched\[yaml\]'"):
        read_workflow(TEXT)
    assert read_workflow('{"name": "w", "start": "a", "steps": {"a": {}}}').name == "w"


def test_journals_carry_them() -> None:
    config = SchedulerConfig(workflows=(read_workflow(TEXT),))
    header = decode_header(encode_header(journal_header(config)))
    assert config_of(header).workflows == config.workflows
    assert b"workflows" not in encode_header(journal_header(SchedulerConfig()))
