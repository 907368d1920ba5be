"""Recorded requests of real clients, with their ids and with every id taken out."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentsched_bench.clients.evaluate import Score, evaluate

CLIENTS = Path(__file__).parents[3].parent / "shared" / "clients"

pytestmark = [
    pytest.mark.traces,
    pytest.mark.slow,
    pytest.mark.skipif(not CLIENTS.is_dir(), reason="the recorded clients are not beside us"),
]


def whole(pair: tuple[int, int]) -> bool:
    return pair[0] == pair[1]


def shown(scores: list[Score]) -> str:
    return "\n".join(f"{score.client}: {note}" for score in scores for note in score.notes)


@pytest.mark.parametrize("is_joint", [False, True])
def test_with_ids_everything_is_right(is_joint: bool) -> None:
    scores = evaluate(CLIENTS, with_ids=True, is_joint=is_joint)
    assert sum(score.requests for score in scores) > 500
    for score in scores:
        assert not score.notes, shown(scores)
        assert score.merged == 0
        assert whole(score.steps)
        assert whole(score.classes)
        assert whole(score.conversations)


@pytest.mark.parametrize("is_joint", [False, True])
def test_without_ids_every_step_is_linked_and_none_is_merged(is_joint: bool) -> None:
    scores = evaluate(CLIENTS, with_ids=False, is_joint=is_joint)
    for score in scores:
        assert score.merged == 0, shown(scores)
        assert whole(score.steps), shown(scores)
        assert whole(score.starts), shown(scores)
        assert whole(score.compactions), shown(scores)
        assert whole(score.conversations), shown(scores)
    # Codex says only in a header that a review is a sub-agent's.
    wrong = {note for score in scores for note in score.notes}
    assert wrong == {f"review #{n}: classed step, is subagent" for n in (1, 2)}
    forked = {score.client: score.forked for score in scores if score.forked}
    assert forked == {"aider": 1, "claude-code": 2, "opencode": 2}  # resumed under a new name
