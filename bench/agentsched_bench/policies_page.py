"""The reference page of policies and profiles, drawn from what is installed.

`python -c "from agentsched_bench.policies_page import to_page; print(to_page(), end='')"`
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib.metadata import entry_points

from agentsched.policy.points import Profile
from agentsched.policy.registry import (
    GROUP,
    POINTS,
    available,
    available_profiles,
    load_profile,
)

_HEAD = """\
# Reference: policies and profiles

Drawn from the installed policies (`agentsched_bench.policies_page`). What they are for and which to
take, is in [policies](policies.md). A policy is chosen with `policies.POINT.name` in the
configuration, its parameters with `policies.POINT.params`; `agentsched simulate` takes
`--profile PROFILE,POINT=POLICY,POINT.PARAMETER=VALUE`.

## Profiles
"""


def to_page() -> str:
    """The page, as Markdown: profiles first, then the policies of each point."""
    return "\n".join([_HEAD, *_profiles(), *_policies()]).rstrip() + "\n"


def _profiles() -> Iterator[str]:
    yield "| profile | " + " | ".join(POINTS) + " | source |"
    yield "|---" * (len(POINTS) + 2) + "|"
    profiles = [load_profile(name) for name in available_profiles()]
    for profile in profiles:
        choices = " | ".join(_choice(profile, point) for point in POINTS)
        yield f"| `{profile.name}` | {choices} | {profile.source} |"
    yield ""
    for profile in profiles:
        yield f"- **{profile.name}**: {profile.summary}"
    yield ""


def _choice(profile: Profile, point: str) -> str:
    choice = getattr(profile, point)
    params = ", ".join(f"{key}={value}" for key, value in choice.params.items())
    return f"{choice.name} ({params})" if params else f"{choice.name}"


def _policies() -> Iterator[str]:
    found = {e.name: e for e in entry_points(group=GROUP)}
    for point in POINTS:
        yield f"## {point}"
        yield ""
        for name in available(point):
            made = found[f"{point}.{name}"].load()
            yield from _policy(f"{point}.{name}", made)


def _policy(name: str, made: type) -> Iterator[str]:
    module = inspect.getmodule(made)
    yield f"### {name}"
    yield ""
    yield inspect.cleandoc((module.__doc__ if module else None) or "")
    yield ""
    own = inspect.cleandoc(made.__doc__ or "")
    parameters = list(inspect.signature(made).parameters.values())
    if parameters:
        defaults = ", ".join(f"`{p.name}` = {p.default!r}" for p in parameters)
        yield f"Parameters: {defaults}."
        yield ""
        yield own
        yield ""
