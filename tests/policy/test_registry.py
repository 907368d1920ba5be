"""Policies by name: the built-in ones, a stranger's, and everything that a stranger gets wrong."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from inspect import signature
from math import inf, nan
from pathlib import Path

import pytest

from agentsched.model import PolicyError
from agentsched.policy import Profile, available, available_profiles, load, load_profile
from agentsched.policy.registry import POINTS

MODULE = """
from agentsched.policy import Choice, Profile

class Good:
    def __init__(self, *, depth=1):
        if depth < 0:
            raise ValueError("depth must not be negative")
        self.depth = depth
    def observe(self, event, *, now): ...
    def rank(self, step, world, *, now): return (0.0,)
    def priority(self, step, world, *, now): return 0

class Mute:
    pass

class Deaf:
    def rank(self, step, world, *, now): return (0.0,)
    def priority(self, step, world, *, now): return 0

class Silent:
    def observe(self, event, *, now): ...
    def rank(self, step, world, *, now): return (0.0,)

PROFILE = Profile(name="strange", summary="A stranger's.", order=Choice(name="strange"))
NO_PROFILE = {"name": "strange"}
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a distribution with these entry points, as pip would: metadata beside the code."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "strange_policies", raising=False)
    (tmp_path / "strange_policies.py").write_text(MODULE)
    (tmp_path / "strange_broken.py").write_text("raise RuntimeError('no such GPU')")

    def write(
        *, policies: str = "", profiles: str = "", distribution: str = "strange_policies"
    ) -> None:
        folder = tmp_path / f"{distribution}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        (folder / "entry_points.txt").write_text(
            f"[agentsched.policies]\n{policies}\n[agentsched.profiles]\n{profiles}\n"
        )

    return write


@pytest.mark.parametrize("point", POINTS)
def test_every_builtin_policy_loads_with_its_defaults(point: str) -> None:
    names = available(point)
    assert names == tuple(sorted(names))
    assert names
    for name in names:
        assert callable(load(point, name, {}).observe)  # type: ignore[attr-defined]


def parameters(kind: type) -> list[tuple[str, str, str]]:
    """Point, policy and name of each parameter of ours whose default is of this kind."""
    found = []
    for entry in entry_points(group="agentsched.policies"):
        point, _, name = entry.name.partition(".")
        given = signature(entry.load()).parameters.values()
        found += [(point, name, p.name) for p in given if type(p.default) is kind]
    return found


@pytest.mark.parametrize(("point", "name", "parameter"), parameters(float))
def test_a_span_beyond_all_time_is_no_defect(point: str, name: str, parameter: str) -> None:
    for value in (1e300, -1e300):
        with contextlib.suppress(PolicyError):
            load(point, name, {parameter: value})


def test_spans_beyond_all_time_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"pin\.fixed: bad parameters"):
        load("pin", "fixed", {"ttl_s": 1e300})


@pytest.mark.parametrize(("point", "name", "parameter"), parameters(bool))
@pytest.mark.parametrize("value", ["false", "true", "", 0, None])
def test_a_text_is_not_true(point: str, name: str, parameter: str, value: object) -> None:
    """As the environment has them: "false" would count as true."""
    with pytest.raises(PolicyError, match=f"{parameter} is true or false, not"):
        load(point, name, {parameter: value})


def test_a_strangers_policy_loads_like_ours(install: Callable[..., None]) -> None:
    install(policies="order.strange = strange_policies:Good")
    assert "strange" in available("order")
    assert "strange" not in available("admit")
    assert load("order", "strange", {"depth": 3}).depth == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("entry", "params", "says"),
    [
        ("strange_policies:Good", {"width": 1}, r"bad parameters .*width"),
        ("strange_policies:Good", {"depth": -1}, r"bad parameters .*must not be negative"),
        ("strange_policies:Good", {"depth": nan}, r"bad parameters: depth .*, not nan"),
        ("strange_policies:Good", {"depth": -inf}, r"bad parameters: depth .*, not -inf"),
        ("strange_policies:Mute", {}, r"strange_policies:Mute has no method rank\(\)"),
        ("strange_policies:Deaf", {}, r"strange_policies:Deaf has no method observe\(\)"),
        ("strange_policies:Silent", {}, r"strange_policies:Silent has no method priority\(\)"),
        ("strange_policies:Absent", {}, r"cannot import strange_policies:Absent"),
        ("strange_nowhere:Good", {}, r"cannot import strange_nowhere:Good"),
        ("strange_broken:Good", {}, r"cannot import strange_broken:Good: no such GPU"),
    ],
)
def test_what_a_stranger_gets_wrong_is_said(
    install: Callable[..., None], entry: str, params: dict[str, object], says: str
) -> None:
    install(policies=f"order.strange = {entry}")
    with pytest.raises(PolicyError, match=f"order.strange: {says}"):
        load("order", "strange", params)


def test_a_name_that_two_offer_is_nobodys(install: Callable[..., None]) -> None:
    install(policies="order.fcfs = strange_policies:Good")
    with pytest.raises(PolicyError, match=r"order policy 'fcfs' is offered twice: .*Fcfs.*Good"):
        load("order", "fcfs", {})


def test_the_same_offer_found_twice_is_one(install: Callable[..., None]) -> None:
    install(policies="order.strange = strange_policies:Good")
    install(policies="order.strange = strange_policies:Good", distribution="strange_again")
    load("order", "strange", {})


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(PolicyError, match=r"no order policy is called 'x' \(there are: .*fcfs"):
        load("order", "x", {})
    for ask in (lambda: available("taste"), lambda: load("taste", "x", {})):
        with pytest.raises(PolicyError, match=r"no policy point is called 'taste' .*prefetch"):
            ask()


def test_profiles(install: Callable[..., None]) -> None:
    install(
        profiles="strange = strange_policies:PROFILE\nodd = strange_policies:NO_PROFILE\n"
        "broken = strange_broken:PROFILE"
    )
    assert {"passthrough", "fcfs", "strange"} <= set(available_profiles())
    assert load_profile("strange").order.name == "strange"
    with pytest.raises(PolicyError, match=r"profile odd: .* is not an agentsched Profile"):
        load_profile("odd")
    with pytest.raises(PolicyError, match=r"profile broken: cannot import .*no such GPU"):
        load_profile("broken")
    with pytest.raises(PolicyError, match=r"no profile is called 'x' \(there are: .*passthrough"):
        load_profile("x")


def test_builtin_profiles_are_complete() -> None:
    for name in ("passthrough", "fcfs"):
        profile = load_profile(name)
        assert isinstance(profile, Profile)
        assert profile.name == name
        assert profile.summary.endswith(".")
        for point in POINTS:
            choice = getattr(profile, point)
            assert load(point, choice.name, choice.params)
