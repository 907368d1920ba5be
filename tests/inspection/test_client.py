"""What is sent to a proxy, and what is not."""

from __future__ import annotations

import pytest

from agentsched.inspection.client import ControlClient
from agentsched.model import ConfigError

URL = "http://127.0.0.1:8900"


@pytest.mark.parametrize(
    ("key", "sent"), [("k3y", "Bearer k3y"), (" k3y\n", "Bearer k3y"), ("\n", None), (None, None)]
)
def test_a_key_out_of_a_file(key: str | None, sent: str | None) -> None:
    with ControlClient(URL, admin_key=key) as client:
        assert client._client.headers.get("authorization") == sent


@pytest.mark.parametrize("key", ["k3y\nk3y", "k3y\u0141"])
def test_a_key_that_cannot_be_sent_is_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="a header cannot have") as wrong:
        ControlClient(URL, admin_key=key)
    assert "k3y" not in str(wrong.value)
