"""The reference page says what is installed."""

from __future__ import annotations

from pathlib import Path

from agentsched.policy import available, available_profiles
from agentsched.policy.registry import POINTS
from agentsched_bench.policies_page import to_page

PAGE = Path(__file__).parents[2] / "docs" / "policies-reference.md"


def test_the_page_is_up_to_date() -> None:
    code = "from agentsched_bench.policies_page import to_page; print(to_page(), end='')"
    assert PAGE.read_text() == to_page(), f'stale: python -c "{code}" > docs/policies-reference.md'


def test_every_policy_and_profile_is_on_it() -> None:
    page = to_page()
    for name in available_profiles():
        assert f"| `{name}` |" in page
    for point in POINTS:
        for name in available(point):
            assert f"### {point}.{name}\n" in page
