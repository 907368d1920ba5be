"""The plugin's settings, its versions, and what importing it pulls in."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from agentsched.model import ConfigError, seconds
from agentsched_adapters.vllm_plugin.caller import caller_of
from agentsched_adapters.vllm_plugin.settings import PluginSettings, from_environ
from agentsched_adapters.vllm_plugin.versions import refusal


def test_what_is_not_set_has_its_default() -> None:
    assert from_environ({}) == PluginSettings()
    assert from_environ({"AGENTSCHED_PLUGIN_GRACE": ""}) == PluginSettings()


def test_values_are_read_by_kind() -> None:
    found = from_environ(
        {
            "AGENTSCHED_PLUGIN_BUDGET": "0.5",
            "AGENTSCHED_PLUGIN_GRACE": "250ms",
            "AGENTSCHED_PLUGIN_PINS_MAX": "7",
            "AGENTSCHED_PLUGIN_ORDER": "program-fcfs",
            "AGENTSCHED_PLUGIN_PIN_PARAMS": '{"ttl_s": 3.5}',
        }
    )
    assert found.budget == 0.5
    assert found.grace == seconds(0.25)
    assert found.pins_max == 7
    assert found.order == "program-fcfs"
    assert found.pin_params == {"ttl_s": 3.5}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BUDGET", "2"),
        ("BUDGET", "much"),
        ("GRACE", "soon"),
        ("PINS_MAX", "-1"),
        ("PIN_PARAMS", "[1]"),
    ],
)
def test_what_is_wrong_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"AGENTSCHED_PLUGIN_{name}"):
        from_environ({f"AGENTSCHED_PLUGIN_{name}": value})


def test_only_tested_versions_are_supported() -> None:
    assert refusal("0.32.0", {}) is None
    assert refusal("0.32.1.post1", {}) is None
    for version in ("0.31.2", "0.33.0", "1.0", "dev"):
        said = refusal(version, {})
        assert said is not None
        assert f"vLLM {version} " in said
        assert "AGENTSCHED_PLUGIN_ANY_VERSION=1" in said
        assert refusal(version, {"AGENTSCHED_PLUGIN_ANY_VERSION": "1"}) is None
    assert refusal("0.32.0", {"AGENTSCHED_PLUGIN_UNTESTED": "1"}) is not None


class Params:
    def __init__(self, extra: Any) -> None:
        self.extra_args = extra


class Request:
    def __init__(self, extra: Any = None, session_id: str | None = None) -> None:
        self.sampling_params = Params(extra)
        self.session_id = session_id


def test_a_request_says_whose_it_is() -> None:
    xargs = {
        "agentsched_program": "p",
        "agentsched_conversation": "c",
        "agentsched_tenant": "t",
        "agentsched_grace_s": 1.5,
    }
    caller = caller_of(Request(xargs))
    assert (caller.program, caller.conversation, caller.tenant) == ("p", "c", "t")
    assert caller.grace == seconds(1.5)
    assert caller.is_known


def test_a_session_id_is_a_conversation_and_its_own_program() -> None:
    caller = caller_of(Request(session_id="s"))
    assert (caller.program, caller.conversation) == ("s", "s")


@pytest.mark.parametrize(
    "xargs",
    [
        None,
        {},
        {"agentsched_conversation": 7},
        {"agentsched_conversation": "x" * 1_000},
        {"agentsched_conversation": ["c"]},
    ],
)
def test_claims_of_a_wrong_kind_count_as_not_made(xargs: Any) -> None:
    assert not caller_of(Request(xargs)).is_known


@pytest.mark.parametrize("grace", [-1, float("nan"), float("inf"), "2", True, 1e9])
def test_a_senseless_grace_is_not_taken(grace: object) -> None:
    assert caller_of(Request({"agentsched_grace_s": grace})).grace is None


@pytest.mark.slow
def test_an_engine_gets_the_core_and_nothing_of_the_proxy() -> None:
    check = """
import sys
import agentsched_adapters.vllm_plugin
assert not {"msgspec", "networkx", "agentsched.compose"} & set(sys.modules)
import agentsched_adapters.vllm_plugin.host, agentsched_adapters.vllm_plugin.control
found = {name.partition(".")[0] for name in sys.modules}
assert not found & {"aiohttp", "pydantic", "typer", "httpx", "sqlalchemy", "xxhash"}, found
assert not [name for name in sys.modules if name.startswith("agentsched.proxy")]
agentsched_adapters.vllm_plugin.register()
agentsched_adapters.vllm_plugin.register()
"""
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
