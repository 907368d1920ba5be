"""Policies by name, through entry points: the built-in ones load like a stranger's.

A distribution offers a policy as an entry point of the group `agentsched.policies`, named
`<point>.<name>`, where point is order, admit, place, pin, prefetch or share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from math import isfinite
from typing import Final

from agentsched.model import PolicyError
from agentsched.policy.points import Profile

GROUP: Final = "agentsched.policies"
PROFILES: Final = "agentsched.profiles"
POINTS: Final = ("order", "admit", "place", "pin", "prefetch", "share")

#: The methods that make an object a policy of its point, beside `observe`.
_VERBS: Final = {
    "order": ("rank", "priority"),
    "admit": ("admit",),
    "place": ("score",),
    "pin": ("retain",),
    "prefetch": ("warm_at",),
    "share": ("rank_tenant",),
}


def available(point: str) -> tuple[str, ...]:
    """Names that can be loaded for a point, sorted."""
    _check_point(point)
    prefix = f"{point}."
    names = {e.name for e in entry_points(group=GROUP)}
    return tuple(sorted(n.removeprefix(prefix) for n in names if n.startswith(prefix)))


def load(point: str, name: str, params: Mapping[str, object]) -> object:
    """Make the policy `name` for `point` with the operator's parameters.

    Raises:
        PolicyError: unknown point or name, two distributions offer the name, the code does not
            import, refuses the parameters, or lacks a method that its point asks for.
    """
    _check_point(point)
    found = [e for e in entry_points(group=GROUP) if e.name == f"{point}.{name}"]
    if not found:
        known = ", ".join(available(point)) or "none"
        raise PolicyError(f"no {point} policy is called {name!r} (there are: {known})")
    if len({e.value for e in found}) > 1:
        values = ", ".join(sorted(e.value for e in found))
        raise PolicyError(f"{point} policy {name!r} is offered twice: {values}")
    return _make(found[0], point=point, params=params)


def available_profiles() -> tuple[str, ...]:
    """Names of the profiles that can be loaded, sorted."""
    return tuple(sorted({e.name for e in entry_points(group=PROFILES)}))


def load_profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        PolicyError: unknown, not importable, or not a `Profile`.
    """
    found = [e for e in entry_points(group=PROFILES) if e.name == name]
    if not found:
        raise PolicyError(
            f"no profile is called {name!r} (there are: {', '.join(available_profiles())})"
        )
    try:
        profile: object = found[0].load()
    except Exception as error:  # a stranger's module may raise anything on import
        raise PolicyError(f"profile {name}: cannot import {found[0].value}: {error}") from error
    if not isinstance(profile, Profile):
        raise PolicyError(f"profile {name}: {found[0].value} is not an agentsched Profile")
    return profile


def _make(entry: EntryPoint, *, point: str, params: Mapping[str, object]) -> object:
    try:
        factory: Callable[..., object] = entry.load()
    except Exception as error:  # a stranger's module may raise anything on import
        raise PolicyError(f"{entry.name}: cannot import {entry.value}: {error}") from error
    for name, value in params.items():
        if isinstance(value, float) and not isfinite(value):
            # No bound that a policy asks for holds of NaN, and no journal could say either.
            text = f"{entry.name}: bad parameters: {name} is a finite number, not {value}"
            raise PolicyError(text)
    try:
        policy = factory(**params)
    except (TypeError, ValueError, ArithmeticError) as error:  # too large a number overflows
        raise PolicyError(f"{entry.name}: bad parameters {dict(params)}: {error}") from error
    for verb in (*_VERBS[point], "observe"):
        if not callable(getattr(policy, verb, None)):
            raise PolicyError(f"{entry.name}: {entry.value} has no method {verb}()")
    return policy


def _check_point(point: str) -> None:
    if point not in POINTS:
        raise PolicyError(f"no policy point is called {point!r} (there are: {', '.join(POINTS)})")
