"""What an engine says of itself, where it is not what was asked for."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.model import EngineError
from agentsched_adapters.openai_compatible import decoded


@pytest.mark.parametrize(
    "body", [b"", b"nul", b"[]", b"\xff", b'{"a":' + b"[" * 100_000, b'{"a":"\xff"}']
)
def test_an_answer_that_cannot_be_read_is_the_engines_failure(body: bytes) -> None:
    with pytest.raises(EngineError, match="x: not what was expected"):
        decoded(body, dict[str, Any], where="x")
