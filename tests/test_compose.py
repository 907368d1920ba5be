"""From configuration to a scheduler."""

from __future__ import annotations

import pytest

from agentsched import __version__
from agentsched.compose import (
    SchedulerConfig,
    build_policies,
    build_scheduler,
    config_of,
    journal_header,
)
from agentsched.kernel import decode_header, encode_header
from agentsched.model import (
    Capabilities,
    EngineId,
    EngineLoad,
    EngineReported,
    Instant,
    Limits,
    PolicyError,
)
from agentsched.policy import Choice, available_profiles

DEPTH = Choice(name="depth", params={"depth": 3})


def test_the_profile_decides_what_the_operator_leaves_open() -> None:
    policies = build_policies(SchedulerConfig(profile="fcfs", choices={"admit": DEPTH}))
    assert policies.profile == "fcfs"
    assert policies.names == {
        "order": "program-fcfs",
        "admit": "depth",
        "place": "session-affinity",
        "pin": "never",
        "prefetch": "never",
        "share": "none",
    }
    assert policies.admit._depth == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("profile", available_profiles())
def test_every_profile_makes_a_scheduler(profile: str) -> None:
    limits = Limits(programs_max=3)
    scheduler = build_scheduler(SchedulerConfig(profile=profile, limits=limits))
    assert scheduler.policies.profile == profile
    assert scheduler.limits is limits
    event = EngineReported(engine=EngineId("e"), capabilities=Capabilities(), load=EngineLoad())
    assert scheduler.handle(event, now=Instant(0)) == ()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (SchedulerConfig(profile="none"), "no profile is called 'none'"),
        (SchedulerConfig(choices={"pin": Choice(name="none")}), "no pin policy is called 'none'"),
        (SchedulerConfig(choices={"pins": Choice(name="never")}), "no policy point .*'pins'"),
        (
            SchedulerConfig(choices={"admit": Choice(name="depth", params={"depth": 0})}),
            "depth must be at least 1",
        ),
    ],
)
def test_what_cannot_be_built_is_said(config: SchedulerConfig, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        build_scheduler(config)


def test_a_journals_header_makes_the_same_scheduler_again() -> None:
    config = SchedulerConfig(profile="fcfs", choices={"admit": DEPTH}, limits=Limits(retries_max=0))
    header = decode_header(encode_header(journal_header(config)))
    assert (header.agentsched, header.profile) == (__version__, "fcfs")
    again = config_of(header)
    assert again.limits == config.limits
    assert again.choices["admit"] == DEPTH
    assert build_policies(again).names == build_policies(config).names
