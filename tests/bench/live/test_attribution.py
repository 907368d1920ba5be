"""Precision and recall of labels: small cases worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched_bench.live.attribution import Attributed, Attribution, attribution


def _judge(*pairs: tuple[str, str | None]) -> Attribution:
    return attribution(Attributed(truth=truth, label=label) for truth, label in pairs)


def test_right_labels_are_perfect_whatever_their_names() -> None:
    seen = _judge(("a", "x"), ("a", "x"), ("b", "y"))

    assert (seen.precision, seen.recall, seen.right_share) == (1.0, 1.0, 1.0)
    assert (seen.merged, seen.split, seen.programs, seen.labels) == (0, 0, 2, 2)


def test_a_split_program_costs_recall_only() -> None:
    seen = _judge(("a", "x"), ("a", "x"), ("a", "x"), ("a", "z"))

    assert seen.precision == 1.0
    assert seen.recall == pytest.approx((3 * 3 / 4 + 1 / 4) / 4)
    assert seen.right_share == 0.75
    assert (seen.merged, seen.split) == (0, 1)


def test_two_programs_under_one_label_cost_precision_only() -> None:
    seen = _judge(("a", "x"), ("a", "x"), ("a", "x"), ("b", "x"))

    assert seen.precision == pytest.approx((3 * 3 / 4 + 1 / 4) / 4)
    assert seen.recall == 1.0
    assert seen.right_share == 0.75
    assert (seen.merged, seen.split) == (1, 0)


def test_calls_without_a_label_stand_alone_and_are_not_right() -> None:
    seen = _judge(("a", None), ("a", None))

    assert seen.precision == 1.0
    assert seen.recall == 0.5
    assert seen.right_share == 0.0
    assert seen.unlabelled == 2


def test_sub_agents_can_be_left_out() -> None:
    rows = [
        Attributed(truth="a", label="x"),
        Attributed(truth="a", label="z", is_main=False),
    ]
    seen = attribution(rows)

    assert seen.main_recall == seen.main_right_share == 1.0
    assert seen.recall == 0.5


def test_nothing_to_judge() -> None:
    seen = attribution([])

    assert (seen.calls, seen.precision, seen.recall, seen.right_share) == (0, 1.0, 1.0, 1.0)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.sampled_from("wxyz"))),
        min_size=1,
    )
)
def test_shares_are_shares_and_perfection_means_no_mistake(
    pairs: list[tuple[str, str | None]],
) -> None:
    seen = _judge(*pairs)

    for share in (seen.precision, seen.recall, seen.right_share):
        assert 0.0 <= share <= 1.0
    assert (seen.precision == pytest.approx(1.0)) == (seen.merged == 0)
    assert (seen.recall == pytest.approx(1.0)) == (seen.split == 0)
    assert (seen.right_share == 1.0) == (seen.merged + seen.split + seen.unlabelled == 0)
