"""A scenario: what is compared, on what, under which load. One TOML file says all of it.

`[workload]` is the composer's (`agentsched_bench.workload.spec`). Tables under `[variant.NAME]`
change the file where they say something: `[variant.full.engine]` has the true sizes, say.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentsched.model import ConfigError
from agentsched_bench.workload.spec import Workload

#: What a folder or a trace without a scenario is compared on: the same as the demo's.
DEFAULT_ARMS: Final = ("direct", "agentsched")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineKind(StrEnum):
    """What serves."""

    SIM = "sim"  # the embedded engine
    VLLM = "vllm"  # a real vLLM with a tiny model on this CPU
    URL = "url"  # whatever is there already


class EngineSpec(_Strict):
    """The engines: all alike, or those of `fleet`, each written as for `simulate --engine`, which
    then says all about sizes and tiers.

    `speed` is the embedded engine's; the load keeps step with it. `outages`, written
    `ENGINE@START+SECONDS`, happen to embedded and simulated engines, `slowdowns` (`...xFACTOR`) to
    simulated ones.
    """

    kind: EngineKind = EngineKind.SIM
    count: Annotated[int, Field(ge=1, le=1024)] = 1
    urls: tuple[str, ...] = ()
    reset_path: str | None = None
    preset: str = "cpu-2core"
    blocks: Annotated[int, Field(ge=2)] | None = None
    block_size: Annotated[int, Field(ge=1)] | None = None
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    speed: Annotated[float, Field(gt=0)] = 1.0
    tier: str | None = None
    arguments: tuple[str, ...] = ()
    plugin_settings: tuple[tuple[str, str], ...] = ()
    fleet: tuple[str, ...] = ()
    outages: tuple[str, ...] = ()
    slowdowns: tuple[str, ...] = ()

    @property
    def pace(self) -> float:
        """How many times faster than real all time goes in a live run: the load keeps step."""
        return self.speed if self.kind is EngineKind.SIM else 1.0


class ProxySpec(_Strict):
    """What all of our proxies have in common. `tenant_weights`: they know the load's weights."""

    max_wait: str = "15s"
    tenant_weights: bool = True


class ArmSpec(_Strict):
    """One side, where its short form does not do. See `agentsched_bench.compare.arms`."""

    name: str
    run: str
    ids: str | None = None
    client: str | None = None


class MeasureSpec(_Strict):
    """How it is measured. `alone` says how the time of a program alone becomes known.

    `tells_tools`: our proxies are told which tool a paused program waits for, as the answers of a
    model that calls tools would tell them; one of noise calls none. Pins by tool need it.
    `repeat_stalled`: a live run in which the machine stood still is made again, once.
    `deadlines` are multiples of a program's time alone, of which each program has one; clients
    whose convention for ids can say it do, unless `tells_deadlines` is false.
    """

    repeat: Annotated[int, Field(ge=1)] = 3
    dialect: Literal["chat", "completions", "responses", "messages"] = "chat"
    ids: str = "none"
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    attempts: Annotated[int, Field(ge=1)] = 6
    alone: Literal["model", "none"] = "model"
    sample_s: Annotated[float, Field(gt=0)] = 0.5
    client: str = "replay"
    slowdown_max: Annotated[float, Field(gt=1)] = 3.0
    rates: tuple[float, ...] = ()
    tells_tools: bool = False
    repeat_stalled: bool = True
    deadlines: tuple[Annotated[float, Field(gt=0)], ...] = ()
    tells_deadlines: bool = True


class Scenario(_Strict):
    """The whole file. `question` is what it asks, `expects` what its author thinks will come."""

    name: str
    question: str = ""
    expects: str = ""
    arms: tuple[str | ArmSpec, ...] = DEFAULT_ARMS
    baseline: str | None = None
    engine: EngineSpec = EngineSpec()
    proxy: ProxySpec = ProxySpec()
    measure: MeasureSpec = MeasureSpec()
    workload: Workload

    @property
    def weights(self) -> dict[str, float]:
        """Shares of tenants as our proxies are configured; those of one are as for everybody."""
        if not self.proxy.tenant_weights:
            return {}
        return {each.name: each.weight for each in self.workload.tenants if each.weight != 1.0}


def load_scenario(
    path: Path, *, variant: str | None = None, changes: Sequence[str] = ()
) -> Scenario:
    """Read a scenario. `changes` are `TABLE.KEY=VALUE`, the value as TOML.

    Raises:
        ConfigError: it cannot be read, or says what no scenario says; the text names the field.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    variants = table.pop("variant", {})
    if variant is not None:
        if variant not in variants:
            known = ", ".join(sorted(variants)) or "none"
            raise ConfigError(f"{path}: no variant {variant!r} (there are: {known})")
        table = _merged(table, variants[variant])
    table.setdefault("name", path.stem)
    return make_scenario(table, where=str(path), changes=changes)


def make_scenario(table: Mapping[str, Any], *, where: str, changes: Sequence[str] = ()) -> Scenario:
    """A scenario of its tables. Raises ConfigError."""
    for change in changes:
        table = _changed(table, change)
    try:
        return Scenario.model_validate(table)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise ConfigError(f"{where}: {'; '.join(problems)}") from error


def _changed(table: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The tables with `KEY=VALUE`; the value takes the place of what was there."""
    key, found, written = text.partition("=")
    path = key.strip().split(".")
    if not found or not all(path):
        raise ConfigError(f"not a change: {text!r} (write engine.blocks=700)")
    try:
        value: Any = tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        value = written  # a bare word is a text: nobody wants to quote twice in a shell
    return _put(table, path, value)


def _put(table: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    old = table.get(first)
    if rest:
        value = _put(old if isinstance(old, Mapping) else {}, rest, value)
    return {**table, first: value}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with what `above` says; tables are merged, everything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            merged[key] = _merged(old, value)
        else:
            merged[key] = value
    return merged
