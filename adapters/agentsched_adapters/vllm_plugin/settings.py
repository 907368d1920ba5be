"""What an operator may set, from `AGENTSCHED_PLUGIN_*` variables of the engine's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final

import msgspec

from agentsched.model import ConfigError
from agentsched.model.time import MILLISECOND, MINUTE, SECOND, Nanos, parse_span

_PREFIX: Final = "AGENTSCHED_PLUGIN_"


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSettings:
    """How much of the KV pool may be pinned, for how long, and in which order requests wait.

    `budget` is the share of the pool that pins may hold together, `tenant_budget` that of one
    tenant's. `grace` is how long a finished step's blocks stay before anybody said how long they
    should (0s: not at all). `order` and `pin` are names of policies, as the proxy has them; empty
    means vLLM's own order, and no pins but the grace and those asked for. A request that waited
    for `wait_max`, or that `bypasses_max` later ones overtook, goes next. `order_budget` is the
    time per engine step that ordering may take; beyond it, requests go as they came.
    """

    budget: float = 0.8
    tenant_budget: float = 0.8
    grace: Nanos = Nanos(2 * SECOND)
    ttl_max: Nanos = Nanos(10 * MINUTE)
    pins_max: int = 4_096
    order: str = ""
    order_params: Mapping[str, object] = field(default_factory=dict)
    pin: str = ""
    pin_params: Mapping[str, object] = field(default_factory=dict)
    wait_max: Nanos = Nanos(2 * MINUTE)
    bypasses_max: int = 1_000
    order_budget: Nanos = Nanos(MILLISECOND)

    def __post_init__(self) -> None:
        for name in ("budget", "tenant_budget"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{variable(name)} is a share between 0 and 1")
        for name in ("grace", "ttl_max", "pins_max", "wait_max", "bypasses_max", "order_budget"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{variable(name)} must not be negative")


_DEFAULTS: Final = PluginSettings()
_SPANS: Final = frozenset({"grace", "ttl_max", "wait_max", "order_budget"})


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return _PREFIX + name.upper()


def from_environ(environ: Mapping[str, str] | None = None) -> PluginSettings:
    """The settings of an environment (None: this process's); what is not set has its default.

    Raises:
        ConfigError: a value is none; the text names its variable.
    """
    environ = os.environ if environ is None else environ
    given = {
        one.name: _read(one.name, environ[variable(one.name)])
        for one in fields(PluginSettings)
        if environ.get(variable(one.name), "") != ""
    }
    return PluginSettings(**given)  # type: ignore[arg-type]


def _read(name: str, text: str) -> object:
    default = getattr(_DEFAULTS, name)
    try:
        if name in _SPANS:
            return parse_span(text)
        if isinstance(default, Mapping):
            return msgspec.json.decode(text, type=dict[str, object])
        return type(default)(text)
    except (ConfigError, ValueError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{variable(name)}={text!r}: {error}") from None
