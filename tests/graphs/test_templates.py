"""Tool sequences: order, back-off, skill against the constant, bounds."""

from __future__ import annotations

from random import Random

import pytest

from agentsched.model import ToolName
from agentsched_graphs.contest import Contest
from agentsched_graphs.templates import END, LEVELS, ToolTemplates

READ, EDIT, TEST = ToolName("Read"), ToolName("Edit"), ToolName("Bash pytest")


def learn(model: ToolTemplates, sequence: list[ToolName], agent: str = "a") -> None:
    for index, tool in enumerate(sequence):
        model.followed(agent=agent, context=sequence[max(0, index - 2) : index], tool=tool)


def test_nothing_is_known_at_first() -> None:
    assert ToolTemplates().forecast(agent="a", context=()).tools == ()


def test_a_sequence_is_learnt() -> None:
    model = ToolTemplates()
    for _ in range(40):
        learn(model, [READ, EDIT, TEST, END])
    told = model.forecast(agent="a", context=(READ, EDIT))
    assert told.has_skill
    assert told.tools[0][0] == TEST
    assert told.tools[0][1] > 0.9
    assert sum(chance for _, chance in told.tools) + told.unseen == pytest.approx(1.0)
    assert model.forecast(agent="a", context=(EDIT, TEST)).tools[0][0] == END


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_what_is_kept_back_for_the_unheard_of_makes_up_one_with_the_rest(level: int) -> None:
    model = ToolTemplates()
    learn(model, [READ, EDIT, TEST, READ, EDIT, END], agent="a")
    learn(model, [TEST] * 8, agent="b")
    told = model.forecast(agent="a", context=(READ, EDIT), level=level)
    assert sum(chance for _, chance in told.tools) + told.unseen == pytest.approx(1.0)
    assert 0.0 < told.unseen < min(chance for _, chance in told.tools)
    assert ToolTemplates().forecast(agent="a", context=(), level=level).unseen == 1.0


def test_two_tools_back_where_one_does_not_tell() -> None:
    model, rng = ToolTemplates(), Random(1)
    for _ in range(200):
        first, last = (READ, EDIT) if rng.random() < 0.5 else (EDIT, READ)
        learn(model, [first, TEST, last])
    assert model.forecast(agent="a", context=(READ, TEST)).tools[0][0] == EDIT
    assert model.forecast(agent="a", context=(EDIT, TEST)).tools[0][0] == READ


def test_an_unknown_context_backs_off() -> None:
    model = ToolTemplates()
    for _ in range(40):
        learn(model, [READ, EDIT, TEST, END])
    unheard = model.forecast(agent="a", context=(ToolName("Never"), ToolName("Heard")))
    assert {tool for tool, _ in unheard.tools} == {READ, EDIT, TEST, END}


def test_without_skill_the_constant_speaks() -> None:
    model, rng = ToolTemplates(), Random(2)
    learn(model, [rng.choice((READ, EDIT, TEST)) for _ in range(500)])
    assert not model.forecast(agent="a", context=(READ, EDIT)).has_skill


def test_agents_are_told_apart() -> None:
    model = ToolTemplates()
    for _ in range(60):
        learn(model, [READ] * 3, agent="reader")
        learn(model, [TEST] * 3, agent="tester")
    assert model.forecast(agent="reader", context=()).tools[0][0] == READ
    assert model.forecast(agent="tester", context=()).tools[0][0] == TEST


def test_bounds() -> None:
    model = ToolTemplates(contexts_max=20)
    for i in range(3_000):
        model.followed(agent=f"a{i % 50}", context=(), tool=ToolName(f"t{i}"))
    assert len(model._contexts) <= 20
    assert len(model._all.counts) <= 256
    assert len(model.forecast(agent="a0", context=()).tools) <= 512


def test_old_counts_fade_and_rare_tools_with_them() -> None:
    """2,048 counts are halved; what was called once then is half a call, and goes next time."""
    model = ToolTemplates()
    model.followed(agent="a", context=(), tool=EDIT)
    for _ in range(2_048):
        model.followed(agent="a", context=(), tool=READ)
    assert model._all.counts == {EDIT: 0.5, READ: 1_024.0}
    for _ in range(1_025):
        model.followed(agent="a", context=(), tool=READ)
    assert model._all.counts == {READ: 1_024.5}
    assert model._all.total == 1_024.5


def test_a_level_that_is_asked_for_is_used_whatever_the_contest_says() -> None:
    model = ToolTemplates()
    learn(model, [READ, EDIT, READ, TEST], agent="a")
    learn(model, [TEST] * 8, agent="b")
    # All agents' tools: 9 times TEST of 12, and an agent's own: two in four are READ.
    constant = dict(model.forecast(agent="a", context=(), level=0).tools)
    own = dict(model.forecast(agent="a", context=(), level=1).tools)
    before = constant[TEST]
    assert before == pytest.approx((9 + 3 * 0.25) / (12 + 3))
    assert own[TEST] == pytest.approx((1 + 3 * before) / (4 + 3))


class TestContest:
    def test_the_constant_until_there_is_evidence(self) -> None:
        contest = Contest(2)
        assert contest.best() == 0
        contest.score([-2.0, -1.0])
        assert contest.best() == 0
        for _ in range(10):
            contest.score([-2.0, -1.0])
        assert contest.best() == 1
        assert contest.skill() == pytest.approx((0.0, 1.0))

    def test_a_lead_by_chance_is_none(self) -> None:
        contest, rng = Contest(2), Random(3)
        wins = 0
        for _ in range(2_000):
            contest.score([-1.0, -1.0 + rng.gauss(0.0, 1.0)])
            wins += contest.best()
        assert wins < 300

    def test_skill_that_is_lost_loses_its_say(self) -> None:
        contest = Contest(2)
        for _ in range(300):
            contest.score([-2.0, -1.5])
        assert contest.best() == 1
        for _ in range(400):
            contest.score([-1.0, -1.5])
        assert contest.best() == 0
