"""What agents may ask for reaches the proxy through each load balancer; what operators do does not.

Read off the routes of the proxy itself: a path that is added later is not forgotten in a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentsched.config import Config
from agentsched.proxy.app import build_app, build_gateway

TOOLS = "/agentsched/v1/tools"
#: Asked of a replica by whoever runs it; that a balancer passes these on does no harm.
HEALTH = {"/healthz", "/readyz"}

Passes = Callable[[str], bool]


@pytest.fixture
async def paths() -> set[str]:
    """Every path that the proxy answers at, with something in the place of what varies."""
    app = build_app(build_gateway(Config(engines=[{"url": "http://127.0.0.1:1", "kind": "vllm"}])))
    found = {resource.canonical for resource in app.router.resources()}
    return {re.sub(r"\{[^}]*\}", "x", path) for path in found} - HEALTH


def agents(path: str) -> bool:
    """Whether it is for agents and their tools."""
    return path == TOOLS or not path.startswith(("/agentsched", "/metrics"))


def nginx(deploy: Path) -> Passes:
    text = (deploy / "nginx" / "agentsched.conf").read_text()
    locations = re.findall(r"(?m)^ *location (= )?(\S+) \{\s*(\S+)", text)
    exact = {path: verb != "return" for equals, path, verb in locations if equals}
    prefixes = {path: verb != "return" for equals, path, verb in locations if not equals}

    def passes(path: str) -> bool:
        found = max((p for p in prefixes if path.startswith(p)), key=len)
        return exact.get(path, prefixes[found])

    return passes


def matching(matches: list[tuple[str, str]]) -> Passes:
    """One that passes on what one of these takes: its kind and its path."""

    def takes(kind: str, value: str, path: str) -> bool:
        return path == value or (kind == "prefix" and path.startswith(value + "/"))

    return lambda path: any(takes(kind, value, path) for kind, value in matches)


def envoy(deploy: Path) -> Passes:
    config = yaml.safe_load((deploy / "envoy" / "envoy.yaml").read_text())
    [listener] = config["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    [host] = manager["route_config"]["virtual_hosts"]
    # Each match is of one kind.
    return matching([found for route in host["routes"] for found in route["match"].items()])


def gateway_api(deploy: Path) -> Passes:
    text = (deploy / "gateway-api" / "agentsched.yaml").read_text()
    parts: list[dict[str, Any]] = list(yaml.safe_load_all(text))
    [route] = (part for part in parts if part["kind"] == "HTTPRoute")
    kinds = {"PathPrefix": "prefix", "Exact": "path"}
    found = [match["path"] for rule in route["spec"]["rules"] for match in rule["matches"]]
    return matching([(kinds[path["type"]], path["value"]) for path in found])


@pytest.mark.parametrize("balancer", [nginx, envoy, gateway_api])
async def test_agents_paths_and_no_others_pass(
    balancer: Callable[[Path], Passes], deploy: Path, paths: set[str]
) -> None:
    passes = balancer(deploy)
    wanted = {path for path in paths if agents(path)}
    assert {"/v1/chat/completions", "/finish_session", "/tokenize", TOOLS} <= wanted
    assert {path for path in paths if passes(path)} == wanted
