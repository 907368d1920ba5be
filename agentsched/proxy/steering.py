"""Changes at run time: other policies and limits, engines that come and go, a reread file.

A change is checked whole before any of it is made: what is wrong changes nothing and says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentsched.compose import SchedulerConfig, choices_of, remake_policies
from agentsched.config import Config, EngineConfig
from agentsched.model import ConfigError, EngineId, Limits, Reconfigured
from agentsched.proxy.fleet import Member
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.tenants import apply_tenants

log = logging.getLogger(__name__)

#: Parts of the configuration that a running proxy takes over from a reread file.
_LIVE: Final = frozenset(
    {"profile", "policies", "limits", "tenants", "engines", "admin_key", "log_level", "auth"}
)
#: Read at each request or probe: the new values count from the next one on.
_READ_EACH_TIME: Final = frozenset({"http", "upstream"})
_LIVE_PARTS: Final = _LIVE | _READ_EACH_TIME
#: What of these parts is set up once. With the listener: who follows the store's keys and a
#: provider's, and how often (a gate that asked for keys that nobody follows would shut everybody
#: out), and what is known of a request before anybody reads it. With an engine's adapter: how long
#: its connections wait.
_AT_START: Final[Mapping[str, tuple[str, ...]]] = {
    "auth": ("mode", "oidc", "refresh_interval"),
    "http": ("header_bytes_max", "headers_max", "header_timeout", "keepalive_timeout"),
    "upstream": ("connect_timeout", "first_byte_timeout", "idle_timeout"),
}

MakeMember = Callable[[EngineConfig, Config], Member]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """What a reread file changed, and what in it waits for a restart, the old value in force."""

    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]


class Steering:
    """Makes changes to a running proxy. All methods are for the event loop's thread."""

    def __init__(
        self,
        gateway: Gateway,
        *,
        make_member: MakeMember,
        reread: Callable[[], Config] | None = None,
    ) -> None:
        self._gateway = gateway
        self._make_member = make_member
        self._reread = reread
        self._tasks: set[asyncio.Task[None]] = set()
        #: What each engine that stays was made from, by the file or at run time.
        self._described = _by_name(gateway.config)

    @property
    def config(self) -> Config:
        """What is in force."""
        return self._gateway.config

    def choose(self, config: SchedulerConfig, *, limits: Limits | None = None) -> None:
        """Put other policies in force; what waits is decided by them at once.

        Raises:
            PolicyError: a name is unknown or parameters are refused. Nothing has changed then.
        """
        host = self._gateway.host
        choices = choices_of(config)
        remake_policies(host.scheduler.policies, config.profile, choices)
        host.feed(Reconfigured(profile=config.profile, choices=choices, limits=limits))
        log.info("policies are now %s: %s", config.profile, dict(host.scheduler.policies.names))

    def add_engine(self, engine: EngineConfig) -> None:
        """Begin to watch an engine; it gets work once it answers, and has gone if it is just going.

        Raises:
            ConfigError: an engine of this name is there already.
        """
        key = EngineId(engine.name)
        if key in self._gateway.fleet.staying:
            raise ConfigError(f"an engine is called {key} already")
        self._described[engine.name] = engine
        self._gateway.fleet.add(self._make_member(engine, self._gateway.config))

    def remove_engine(self, engine: EngineId) -> None:
        """Give an engine no new work, and forget it when what runs there has ended.

        Raises:
            ConfigError: no engine has this name, or it is the last one.
        """
        fleet = self._gateway.fleet
        if engine not in fleet.members:
            raise ConfigError(f"no engine is called {engine}")
        if fleet.staying == [engine]:
            raise ConfigError("the last engine stays: without one every request would fail")
        patience = self._gateway.config.http.drain_timeout
        self._described.pop(engine, None)
        if fleet.leave(engine):
            self._own(fleet.remove(engine, patience=patience), f"remove {engine}")

    def reload(self) -> Reloaded:
        """Read the configuration again and take over what a running proxy can.

        Raises:
            ConfigError: there is no file, or it is wrong; the old configuration stays in force.
            PolicyError: it names policies that there are not; likewise.
        """
        if self._reread is None:
            raise ConfigError("this proxy was started without a configuration file")
        old = self._gateway.config
        new, needs_restart = _in_force(old, self._reread())
        self._check_engines(old, new)
        different = {key for key in Config.model_fields if getattr(old, key) != getattr(new, key)}
        if different & {"profile", "policies", "limits"}:
            self._choose_anew(new, different)
        self._gateway.follow(new)
        apply_tenants(self._gateway, old.tenants, new.tenants)
        if "engines" in different:
            self._match_engines(old, new)
        if "log_level" in different:
            logging.getLogger().setLevel(new.log_level.upper())
        reloaded = Reloaded(changed=tuple(sorted(different)), needs_restart=needs_restart)
        log.info("configuration read again: %s", reloaded)
        return reloaded

    def _choose_anew(self, new: Config, different: set[str]) -> None:
        """Take policies and limits from a reread file, each where the file says something new.

        Raises:
            PolicyError: it names policies that there are not.
        """
        scheduler = new.scheduler()
        limits = scheduler.limits if "limits" in different else None
        if not different & {"profile", "policies"}:
            active = self._gateway.host.scheduler.policies
            scheduler = SchedulerConfig(profile=active.profile, choices=active.choices)
        self.choose(scheduler, limits=limits)

    def _check_engines(self, old: Config, new: Config) -> None:
        """Some engine stays: without one every request would fail.

        Raises:
            ConfigError: none would.
        """
        if not new.engines:
            raise ConfigError("no engine is given")
        gone, staying = _no_more(old, new), self._gateway.fleet.staying
        if not _described_anew(old, new) and all(engine in gone for engine in staying):
            raise ConfigError("the last engine stays: the others were removed at run time")

    def _match_engines(self, old: Config, new: Config) -> None:
        """New ones are added before old ones go; one that is described anew does both.

        Where the file says the same as before, what was changed at run time stays.
        """
        fleet = self._gateway.fleet
        for name, engine in _described_anew(old, new).items():
            if EngineId(name) not in fleet.staying:
                self.add_engine(engine)
            elif self._described.get(name) != engine:
                self._described[name] = engine
                member = self._make_member(engine, new)
                patience = new.http.drain_timeout
                self._own(fleet.replace(member, patience=patience), f"move {name}")
        for name in _no_more(old, new):
            if EngineId(name) in fleet.members:
                self.remove_engine(EngineId(name))

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Stop waiting for engines that go."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _by_name(config: Config) -> dict[str, EngineConfig]:
    return {engine.name: engine for engine in config.engines}


def _described_anew(old: Config, new: Config) -> dict[str, EngineConfig]:
    """Engines of which a reread file says something else than before, or for the first time."""
    before = _by_name(old)
    return {name: engine for name, engine in _by_name(new).items() if before.get(name) != engine}


def _no_more(old: Config, new: Config) -> list[str]:
    after = _by_name(new)
    return [name for name in _by_name(old) if name not in after]


def _in_force(old: Config, wanted: Config) -> tuple[Config, tuple[str, ...]]:
    """What counts from now on of a reread configuration, and what of it does not until a restart.

    What waits keeps its old value whole, so that no reader of it sees half of a change.

    Raises:
        ConfigError: a file of workflows is wrong.
    """
    waits = {
        key
        for key in Config.model_fields
        if key not in _LIVE_PARTS and getattr(old, key) != getattr(wanted, key)
    }
    kept = {key: getattr(old, key) for key in waits}
    # The files may have changed, or gone, under the same names.
    kept["declared"] = old.declared
    if old.declared != wanted.declared:
        waits.add("workflows")
    for name, keys in _AT_START.items():
        part = getattr(wanted, name)
        at_start = {key: getattr(getattr(old, name), key) for key in keys}
        waits |= {f"{name}.{k}" for k, value in at_start.items() if value != getattr(part, k)}
        kept[name] = part.model_copy(update=at_start)
    return wanted.model_copy(update=kept), tuple(sorted(waits))
