"""From configuration to a scheduler: the only module that knows every room of the core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from agentsched.kernel import GraphBuilder, JournalHeader, Scheduler
from agentsched.model import Limits, PolicyError
from agentsched.policy import (
    AdmitPolicy,
    Choice,
    OrderPolicy,
    PinPolicy,
    PlacePolicy,
    PolicySet,
    PrefetchPolicy,
    SharePolicy,
    load,
    load_profile,
)
from agentsched.policy.registry import POINTS
from agentsched.version import __version__
from agentsched_graphs.builder import GraphBuilder as ExecutionGraphs
from agentsched_graphs.graph import GraphLimits
from agentsched_graphs.workflow import Workflow, read_workflow, write_workflow

#: What journals of before a point was there were made with.
_BEFORE: Final = {"share": Choice(name="none")}


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """What makes a scheduler: a profile, policies that replace some of its, and the limits.

    `workflows` are declared ones (`agentsched_graphs.workflow.read_workflow` makes them).
    """

    profile: str = "passthrough"
    choices: Mapping[str, Choice] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    workflows: tuple[Workflow, ...] = ()


def build_policies(config: SchedulerConfig) -> PolicySet:
    """Load the profile's policies, with the operator's choices in place of its own.

    Raises:
        PolicyError: a name is unknown or a policy refuses its parameters.
    """
    return _make(config.profile, choices_of(config))


def remake_policies(old: PolicySet, profile: str, choices: Mapping[str, Choice]) -> PolicySet:
    """The policies of these choices; those of `old` that were chosen alike go on as they are.

    Raises:
        PolicyError: a name is unknown or a policy refuses its parameters.
    """
    return _make(profile, choices, old=old)


def _make(
    profile: str, choices: Mapping[str, Choice], *, old: PolicySet | None = None
) -> PolicySet:
    def make(point: str) -> object:
        choice = choices[point]
        if old is not None and old.choices.get(point) == choice:
            return getattr(old, point)
        return load(point, choice.name, choice.params)

    # The registry has checked that each object has its point's method.
    return PolicySet(
        profile=profile,
        choices=dict(choices),
        names={point: choice.name for point, choice in choices.items()},
        order=cast("OrderPolicy", make("order")),
        admit=cast("AdmitPolicy", make("admit")),
        place=cast("PlacePolicy", make("place")),
        pin=cast("PinPolicy", make("pin")),
        prefetch=cast("PrefetchPolicy", make("prefetch")),
        share=cast("SharePolicy", make("share")),
    )


def build_scheduler(config: SchedulerConfig, *, graph: GraphBuilder | None = None) -> Scheduler:
    """A fresh scheduler. Equal configurations and events give equal commands.

    `graph` None means the execution graphs of `agentsched_graphs`.
    """
    return Scheduler(
        policies=build_policies(config),
        limits=config.limits,
        graph=graph or build_graphs(config),
        remake=remake_policies,
    )


def build_graphs(config: SchedulerConfig) -> ExecutionGraphs:
    """The execution graphs of a scheduler of this configuration, empty."""
    limits = GraphLimits().under(config.limits)
    return ExecutionGraphs(limits=limits, workflows=config.workflows)


def journal_header(config: SchedulerConfig) -> JournalHeader:
    """What a journal of a scheduler of this configuration begins with.

    Raises:
        PolicyError: the profile's name is unknown.
    """
    return JournalHeader(
        profile=config.profile,
        choices=choices_of(config),
        limits=config.limits,
        agentsched=__version__,
        workflows=tuple(write_workflow(workflow) for workflow in config.workflows),
    )


def config_of(header: JournalHeader) -> SchedulerConfig:
    """The configuration of the scheduler whose journal begins with this header."""
    return SchedulerConfig(
        profile=header.profile,
        choices={**_BEFORE, **header.choices},
        limits=header.limits,
        workflows=tuple(read_workflow(text) for text in header.workflows),
    )


def choices_of(config: SchedulerConfig) -> dict[str, Choice]:
    """The choice at each point: the operator's, else the profile's.

    A journal may be read where its profile is no longer known: with all points chosen, none is
    asked for.
    """
    unknown = set(config.choices) - set(POINTS)
    if unknown:
        raise PolicyError(
            f"no policy point is called {min(unknown)!r} (there are: {', '.join(POINTS)})"
        )
    if all(point in config.choices for point in POINTS):
        return {point: config.choices[point] for point in POINTS}
    profile = load_profile(config.profile)
    return {point: config.choices.get(point) or getattr(profile, point) for point in POINTS}
