"""What stands between the balancer and the engines: our proxy, or one that others run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentsched_bench.cluster.processes import AGENTSCHED, Member
from agentsched_bench.ports import free_port

TENANTS: Final = {"red": 1.0, "blue": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where replicas run and what they share. Empty URLs: there is none of it."""

    folder: Path
    engines: Sequence[str]
    model: str = "sim"
    store: str = ""
    broker: str = ""
    settings: dict[str, object] = field(default_factory=dict)


def agentsched(place: Place, number: int) -> Member:
    """One replica of ours."""
    port, name = free_port(), f"replica-{number}"
    config: dict[str, object] = {
        "port": port,
        "log_level": "info",
        "engines": [{"url": url, "id": f"e{n}"} for n, url in enumerate(place.engines)],
        "tenants": {tenant: {"weight": weight} for tenant, weight in TENANTS.items()},
        "upstream": {"probe_interval": "500ms"},
        "http": {"drain_notice": "1s"},
        **place.settings,
    }
    if place.store:
        spool = str(place.folder / f"spool-{number}")
        config["store"] = {"url": place.store, "replica": name, "spool": spool}
    if place.broker:
        config["bus"] = {"url": place.broker, "replica": name}
    file = place.folder / f"{name}.toml"
    file.write_text(_toml(config))
    command = [*AGENTSCHED, "serve", "--config", str(file)]
    return Member(name, command, port=port, folder=place.folder)


def vllm_router(place: Place, number: int, *, program: str) -> Member:
    """One vllm-router, which is vLLM's own (Rust), with the policy that needs no ids."""
    port = free_port()
    command = [program, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", *place.engines, "--policy", "cache_aware"]
    command += ["--prometheus-port", str(free_port()), "--log-level", "warning"]
    command += ["--health-check-interval-secs", "1", "--health-failure-threshold", "2"]
    command += ["--health-success-threshold", "1"]
    return Member(f"router-{number}", command, port=port, folder=place.folder, ready="/health")


def litellm(place: Place, number: int, *, program: str) -> Member:
    """One LiteLLM proxy without a database, as its quick start has it, with retries."""
    port, file = free_port(), place.folder / f"litellm-{number}.json"
    models = [
        {
            "model_name": place.model,
            "litellm_params": {
                "model": f"hosted_vllm/{place.model}",
                "api_base": f"{url}/v1",
                "api_key": "none",
            },
        }
        for url in place.engines
    ]
    settings = {"num_retries": 2, "routing_strategy": "least-busy", "cooldown_time": 2}
    file.write_text(json.dumps({"model_list": models, "router_settings": settings}))
    command = [program, "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        # It listens on the loopback only, and has no keys to guard.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    return Member(
        f"litellm-{number}",
        command,
        port=port,
        folder=place.folder,
        ready="/health/liveliness",
        environment=environment,
        start_s=300.0,  # over a minute on a machine of its own
    )


def _toml(config: dict[str, object]) -> str:
    """Tables one level deep, and lists of inline tables."""
    lines: list[str] = []
    tables: list[str] = []
    for key, value in config.items():
        if isinstance(value, dict):
            tables.append(f"[{key}]")
            tables += [f"{name} = {_value(item)}" for name, item in value.items()]
        else:
            lines.append(f"{key} = {_value(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _value(value: object) -> str:
    match value:
        case dict():
            return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + " }"
        case list():
            return "[" + ", ".join(_value(item) for item in value) + "]"
        case _:
            return json.dumps(value)
