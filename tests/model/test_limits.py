from __future__ import annotations

from dataclasses import fields

import pytest

from agentsched.model import ConfigError, Limits

NAMES = [field.name for field in fields(Limits)]
MAY_BE_ZERO = {"retries_max", "bypasses_max"}


@pytest.mark.parametrize("name", NAMES)
def test_every_limit_is_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"limit {name} must be positive, not -1"):
        Limits(**{name: -1})
    if name in MAY_BE_ZERO:
        assert getattr(Limits(**{name: 0}), name) == 0
    else:
        with pytest.raises(ConfigError, match=f"limit {name} must be positive, not 0"):
            Limits(**{name: 0})


def test_the_defaults_are_allowed() -> None:
    assert all(getattr(Limits(), name) > 0 for name in NAMES)
