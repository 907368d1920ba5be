"""From configuration to a scheduler: the only module that knows every room of the core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from agentsched.kernel import GraphBuilder, Scheduler
from agentsched.model import Limits
from agentsched.policy import (
    AdmitPolicy,
    Choice,
    OrderPolicy,
    PinPolicy,
    PlacePolicy,
    PolicySet,
    PrefetchPolicy,
    load,
    load_profile,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """What makes a scheduler: a profile, policies that replace some of its, and the limits."""

    profile: str = "passthrough"
    choices: Mapping[str, Choice] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)


def build_policies(config: SchedulerConfig) -> PolicySet:
    """Load the profile's policies, with the operator's choices in place of its own.

    Raises:
        PolicyError: a name is unknown or a policy refuses its parameters.
    """
    profile = load_profile(config.profile)

    def choice(point: str) -> Choice:
        chosen: Choice = config.choices.get(point) or getattr(profile, point)
        return chosen

    def make(point: str) -> object:
        return load(point, choice(point).name, choice(point).params)

    points = ("order", "admit", "place", "pin", "prefetch")
    # The registry has checked that each object has its point's method.
    return PolicySet(
        profile=profile.name,
        names={point: choice(point).name for point in points},
        order=cast("OrderPolicy", make("order")),
        admit=cast("AdmitPolicy", make("admit")),
        place=cast("PlacePolicy", make("place")),
        pin=cast("PinPolicy", make("pin")),
        prefetch=cast("PrefetchPolicy", make("prefetch")),
    )


def build_scheduler(config: SchedulerConfig, *, graph: GraphBuilder | None = None) -> Scheduler:
    """A fresh scheduler. Equal configurations and events give equal commands."""
    return Scheduler(policies=build_policies(config), limits=config.limits, graph=graph)
