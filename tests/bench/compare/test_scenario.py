"""Scenarios as files: variants, changes from the command line, errors that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentsched.model import ConfigError
from agentsched_bench.compare.arms import sides_of
from agentsched_bench.compare.scenario import EngineKind, load_scenario

SHIPPED = sorted((Path(__file__).parents[3] / "bench/scenarios").glob("*.toml"))
REGIMES = {
    "calm", "busy", "thrash", "overload", "long-tools", "tenants", "swarm", "mixed",
    "shared-prompt", "open", "tier", "many-engines",
}  # fmt: skip


def test_a_scenario_is_read(small: Path) -> None:
    scenario = load_scenario(small)

    assert scenario.name == "small"
    assert scenario.engine.kind is EngineKind.SIM
    assert scenario.measure.repeat == 2
    assert [side.name for side in sides_of(scenario)] == ["direct", "passthrough"]


def test_changes_go_over_the_file(small: Path) -> None:
    scenario = load_scenario(
        small, changes=["engine.blocks=700", "measure.ids=session", 'arms=["direct"]']
    )

    assert scenario.engine.blocks == 700
    assert scenario.engine.speed == 20.0
    assert scenario.measure.ids == "session"
    assert scenario.arms == ("direct",)


def test_a_variant_changes_what_it_says_and_nothing_else(small: Path) -> None:
    text = small.read_text() + "\n[variant.full.engine]\ncount = 4\n"
    small.write_text(text)

    scenario = load_scenario(small, variant="full")

    assert scenario.engine.count == 4
    assert scenario.engine.blocks == 300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[engine]\nblocks = 0", "engine.blocks"),
        ("[engine]\ncolour = 3", "engine.colour"),
        ("arms = 3", "arms"),
        ("= 3", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f'{text}\n[workload]\nprograms = 1\nsources = [{{ trace = "sample" }}]\n')

    with pytest.raises(ConfigError, match=said):
        load_scenario(path)


def test_unknown_variants_and_changes_are_refused(small: Path) -> None:
    with pytest.raises(ConfigError, match="no variant 'full'"):
        load_scenario(small, variant="full")
    with pytest.raises(ConfigError, match="not a change"):
        load_scenario(small, changes=["engine.blocks"])


def test_every_regime_has_a_scenario() -> None:
    assert {path.stem for path in SHIPPED} == REGIMES


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("variant", [None, "full"])
def test_shipped_scenarios_say_what_they_ask_and_can_be_read(
    path: Path, variant: str | None
) -> None:
    scenario = load_scenario(path, variant=variant)

    assert scenario.name == path.stem
    assert scenario.question.endswith("?")
    assert scenario.expects
    assert sides_of(scenario)[0].name == "direct"
    if variant == "full":
        assert scenario.engine.kind is EngineKind.SIM
        assert scenario.workload.scale_tokens == 1.0
