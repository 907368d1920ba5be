"""The sides of a comparison, in short: what a word means, what it needs, whether it is there.

    direct                    the engine alone; several engines: in turn
    unlimited                 the same with a KV pool that holds everything (engines that we start)
    PROFILE[,POINT=POLICY][,POINT.PARAMETER=VALUE]   our proxy
    plugin[:PROFILE]          vLLM with our scheduler inside; with a profile our proxy before it
    vllm-router               round robin
    vllm-router-programs      its program scheduling, with x-session-id
    litellm                   LiteLLM's proxy
    NAME=URL                  whatever answers there
    NAME=COMMAND              a command; {port} is where it must listen, {engine} an engine's URL,
                              {engines} all of them, separated by blanks

Any of them takes `@STYLE` at its end: how programs name themselves (`agentsched@session`).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

import agentsched
from agentsched.model import ConfigError
from agentsched.policy import Choice
from agentsched_bench.compare.scenario import ArmSpec, EngineKind, EngineSpec, Scenario
from agentsched_bench.live.identity import style
from agentsched_bench.sim.arms import Arm, parse_arm

PEERS: Final = Path(".venv-peers")
ROUTER: Final = "vllm-router"
ROUTER_PROGRAMS: Final = "vllm-router-programs"
LITELLM: Final = "litellm"
PLUGIN: Final = "plugin"


class Kind(StrEnum):
    """How an arm comes to be."""

    DIRECT = "direct"
    UNLIMITED = "unlimited"
    PROXY = "proxy"
    PLUGIN = "plugin"
    ROUTER = "router"
    LITELLM = "litellm"
    URL = "url"
    COMMAND = "command"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One arm. `missing` says why it cannot run, empty when it can. `profile` is our proxy's."""

    name: str
    text: str
    kind: Kind
    ids: str = "none"
    profile: str | None = None
    choices: Mapping[str, Choice] = field(default_factory=dict)
    command: str = ""
    url: str = ""
    about: str = ""
    version: str = ""
    missing: str = ""
    client: str = "replay"

    @property
    def needs_own_engine(self) -> str:
        """Which variant of the engine it runs on; sides with the same one share it."""
        return self.kind.value if self.kind in (Kind.PLUGIN, Kind.UNLIMITED) else "plain"


def sides_of(scenario: Scenario, *, only: Sequence[str] = (), peers: Path = PEERS) -> list[Side]:
    """The scenario's arms, in order; those of `only` where that is not empty.

    Raises:
        ConfigError: an arm is none, two have one name, or `only` names none of them.
    """
    sides = [_side(arm, scenario, peers=peers) for arm in scenario.arms]
    names = [side.name for side in sides]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two arms are called {twice[0]!r}: name them, as in [[arms]]")
    for name in only:
        if name not in names:
            raise ConfigError(f"no arm is called {name!r} ({', '.join(names)})")
    chosen = [side for side in sides if not only or side.name in only]
    if not chosen:
        raise ConfigError("no arm is left to run")
    return chosen


def _side(arm: str | ArmSpec, scenario: Scenario, *, peers: Path) -> Side:
    measure = scenario.measure
    if isinstance(arm, ArmSpec):
        side = parse_side(arm.run, engine=scenario.engine, ids=measure.ids, peers=peers)
        ids = arm.ids if arm.ids is not None else side.ids
        style(ids)
        client = arm.client or measure.client
        return replace(side, name=arm.name, ids=ids, client=client)
    side = parse_side(arm, engine=scenario.engine, ids=measure.ids, peers=peers)
    return replace(side, client=measure.client)


def parse_side(text: str, *, engine: EngineSpec, ids: str = "none", peers: Path = PEERS) -> Side:
    """Read an arm's short form. Raises ConfigError."""
    body, found, styled = text.rpartition("@")
    if found and "/" not in styled and styled:
        style(styled)
        chosen, said = styled, body
    else:
        chosen, said = ids, text
    word, _, rest = said.partition(":")
    match word:
        case "direct" | "unlimited":
            kind = Kind(word)
            side = Side(name=text, text=text, kind=kind, ids=chosen, about=_ABOUT[kind])
        case "plugin":
            side = _plugin(text, profile=rest or None, ids=chosen)
        case "vllm-router" | "vllm-router-programs":
            side = _router(text, is_programs=word == ROUTER_PROGRAMS, ids=chosen, peers=peers)
        case "litellm":
            side = _litellm(text, ids=chosen, peers=peers)
        case _ if (named := _named(said)) is not None:
            side = _foreign(*named, ids=chosen)
        case _:
            side = _ours(text, said, ids=chosen)
    return replace(side, missing=side.missing or _misfit(side, engine))


_ABOUT: Final = {
    Kind.DIRECT: "the engine alone",
    Kind.UNLIMITED: "the engine alone, with room for everything",
}


def _misfit(side: Side, engine: EngineSpec) -> str:
    if side.kind is Kind.PLUGIN and engine.kind is not EngineKind.VLLM:
        return 'the plugin lives in vLLM (engine.kind = "vllm")'
    if side.kind is Kind.UNLIMITED and engine.kind is EngineKind.URL:
        return "only an engine that is started here can have room for everything"
    return ""


def _named(text: str) -> tuple[str, str] | None:
    """`NAME=URL` or `NAME=COMMAND`, but not a profile with changes."""
    name, found, rest = text.partition("=")
    is_command = " " in rest.strip() or "{port}" in rest
    if not found or "," in name or not (is_command or "://" in rest):
        return None
    return name, rest


def _foreign(name: str, rest: str, *, ids: str) -> Side:
    if rest.startswith(("http://", "https://")):
        return Side(name=name, text=f"{name}={rest}", kind=Kind.URL, ids=ids, url=rest, about=rest)
    if "{port}" not in rest:
        raise ConfigError(f"{name}: the command does not say where {{port}} goes: {rest!r}")
    return Side(
        name=name, text=f"{name}={rest}", kind=Kind.COMMAND, ids=ids, command=rest, about=rest
    )


def _policies(text: str) -> Arm:
    """What a proxy can be run with: it knows no future, and changes no engine."""
    arm = parse_arm(text)
    if arm.knows or arm.is_unlimited:
        raise ConfigError(
            f"{text!r} is an oracle, or an engine of its own, and no proxy: `agentsched simulate` "
            "plays those"
        )
    return arm


def _ours(text: str, said: str, *, ids: str) -> Side:
    arm = _policies(said)
    return Side(
        name=text,
        text=text,
        kind=Kind.PROXY,
        ids=ids,
        profile=arm.profile,
        choices=arm.choices,
        about=f"our proxy, {said}",
        version=agentsched.__version__,
    )


def _plugin(text: str, *, profile: str | None, ids: str) -> Side:
    choices: Mapping[str, Choice] = {}
    if profile is not None:
        arm = _policies(profile)
        profile, choices = arm.profile, arm.choices
    before = f", our proxy ({profile}) before it" if profile else ""
    return Side(
        name=text,
        text=text,
        kind=Kind.PLUGIN,
        ids=ids,
        profile=profile,
        choices=choices,
        about=f"vLLM with our scheduler inside{before}",
        version=agentsched.__version__,
    )


def _router(text: str, *, is_programs: bool, ids: str, peers: Path) -> Side:
    found = find_peer("vllm-router", peers=peers)
    # Its program mode knows nothing without an id: that is how its users run it.
    own = "session" if is_programs and ids == "none" else ids
    return Side(
        name=text,
        text=text,
        kind=Kind.ROUTER,
        ids=own,
        command="programs" if is_programs else "round_robin",
        about="vllm-router, program scheduling" if is_programs else "vllm-router, round robin",
        version=_version("vllm-router", found),
        missing="" if found else f"vllm-router is not in {peers} (scripts/install-peers)",
    )


def _litellm(text: str, *, ids: str, peers: Path) -> Side:
    found = find_peer("litellm", peers=peers)
    return Side(
        name=text,
        text=text,
        kind=Kind.LITELLM,
        ids=ids,
        about="LiteLLM's proxy",
        version=_version("litellm", found),
        missing="" if found else f"litellm is not in {peers} (scripts/install-peers)",
    )


def find_peer(command: str, *, peers: Path = PEERS) -> str | None:
    """Where a peer's command is: in the peers' environment, in one of its own, or on the path."""
    for place in (peers, peers.with_name(f".venv-{command}")):
        beside = place / "bin" / command
        if beside.is_file():
            return str(beside.absolute())
    return shutil.which(command)


def _version(package: str, command: str | None) -> str:
    python = Path(command).parent / "python" if command else None
    if python is None or not python.is_file():
        return ""
    ask = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run(
        [str(python), "-c", ask], capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout.strip()
