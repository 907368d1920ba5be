"""Arms in short: what each word means, what is missing, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentsched.model import ConfigError
from agentsched_bench.compare.arms import Kind, parse_side, sides_of
from agentsched_bench.compare.scenario import EngineKind, EngineSpec, load_scenario

SIM = EngineSpec()
VLLM = EngineSpec(kind=EngineKind.VLLM)


@pytest.mark.parametrize(
    ("text", "kind", "ids"),
    [
        ("direct", Kind.DIRECT, "none"),
        ("unlimited", Kind.UNLIMITED, "none"),
        ("agentsched", Kind.PROXY, "none"),
        ("agentsched@session", Kind.PROXY, "session"),
        ("passthrough,order=fcfs", Kind.PROXY, "none"),
        ("vllm-router", Kind.ROUTER, "none"),
        ("vllm-router-programs", Kind.ROUTER, "session"),
        ("mine=http://127.0.0.1:9000", Kind.URL, "none"),
        ("mine=serve --port {port} --to {engine}", Kind.COMMAND, "none"),
    ],
)
def test_words_are_understood(tmp_path: Path, text: str, kind: Kind, ids: str) -> None:
    side = parse_side(text, engine=SIM, peers=tmp_path)

    assert side.kind is kind
    assert side.ids == ids


def test_changes_of_policies_reach_the_proxy() -> None:
    side = parse_side("agentsched,pin=fixed,order.patience=3", engine=SIM)

    assert side.profile == "agentsched"
    assert side.choices["pin"].name == "fixed"
    assert side.choices["order"].params["patience"] == 3


def test_what_cannot_run_says_why(tmp_path: Path) -> None:
    assert "vLLM" in parse_side("plugin", engine=SIM).missing
    assert parse_side("plugin:agentsched", engine=VLLM).missing == ""
    assert parse_side("unlimited", engine=VLLM).missing == ""
    elsewhere = EngineSpec(kind=EngineKind.URL, urls=("http://127.0.0.1:1",))
    assert "started here" in parse_side("unlimited", engine=elsewhere).missing
    assert "litellm" in parse_side("litellm", engine=SIM, peers=tmp_path).missing


@pytest.mark.parametrize("text", ["nosuch", "agentsched@nosuch", "mine=serve without a port"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(Exception, match=r"nosuch|port"):
        parse_side(text, engine=SIM)


@pytest.mark.parametrize(
    "text",
    ["agentsched+srpt", "plugin:agentsched+returns", "direct+belady", "unlimited,order=fcfs"],
)
def test_who_knows_the_future_is_no_arm(text: str) -> None:
    """It ran as the plain profile, under the oracle's name."""
    with pytest.raises(ConfigError, match="is an oracle, or an engine of its own, and no proxy"):
        parse_side(text, engine=EngineSpec())


def test_names_are_unique_and_only_names_arms(small: Path) -> None:
    twice = load_scenario(small, changes=['arms=["direct", "direct"]'])
    with pytest.raises(ConfigError, match="two arms are called 'direct'"):
        sides_of(twice)
    with pytest.raises(ConfigError, match="no arm is called 'x'"):
        sides_of(load_scenario(small), only=["x"])


def test_arms_may_be_named(small: Path) -> None:
    text = 'arms=[{name="a", run="agentsched", ids="session"}, {name="b", run="agentsched"}]'
    sides = sides_of(load_scenario(small, changes=[text]))

    assert [(side.name, side.ids) for side in sides] == [("a", "session"), ("b", "none")]


def test_sides_with_the_same_engine_share_it() -> None:
    kinds = [parse_side(t, engine=VLLM).needs_own_engine for t in ("direct", "agentsched")]
    assert kinds == ["plain", "plain"]
    assert parse_side("plugin", engine=VLLM).needs_own_engine == "plugin"
