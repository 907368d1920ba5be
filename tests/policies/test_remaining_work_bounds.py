"""The default order's one parameter is a share."""

from __future__ import annotations

import pytest

from agentsched_policies.order.remaining_work import RemainingWork


@pytest.mark.parametrize("ageing", [0.0, -0.1, 1.01, 2.0])
def test_what_is_no_share_is_refused(ageing: float) -> None:
    with pytest.raises(ValueError, match="ageing"):
        RemainingWork(ageing=ageing)


@pytest.mark.parametrize("ageing", [0.01, 1.0])
def test_a_share_is_taken(ageing: float) -> None:
    RemainingWork(ageing=ageing)
