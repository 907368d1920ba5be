"""Alerts and dashboard: Prometheus takes them, and what they ask for is there in a real scrape."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import yaml
from live import eventually
from prometheus_client.parser import text_string_to_metric_families

from agentsched.config import Config
from agentsched.model import SECOND, Limits
from agentsched.proxy.serve import running
from agentsched_bench.engine.cost import preset
from agentsched_bench.engine.requests import EngineConfig
from agentsched_bench.engine.server import ServerConfig, running_engine

#: Of what only a configured store or bus has; their own rooms test that they are shown.
#: And of what is only known when programs do not fit (kernel/bounds.py).
ELSEWHERE = re.compile(r"agentsched_(store|bus)_\w+|agentsched_sensible_wait_seconds")
_NAME = re.compile(r"\b(?:agentsched|gen_ai|process)_\w+")


@pytest.fixture(scope="module")
def alerts() -> list[dict[str, Any]]:
    path = Path(__file__).parent.parent.parent / "deploy" / "prometheus" / "alerts.yaml"
    groups = yaml.safe_load(path.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture
async def scrape(tmp_path: Path) -> AsyncIterator[str]:
    """The metrics of a proxy that has served two tenants on an engine with a small cache."""
    engine = EngineConfig.from_preset(preset("cpu-2core"))
    async with running_engine(ServerConfig(engine=engine, models=("sim",), speed=1_000)) as served:
        config = Config(
            port=0,
            engines=[{"url": served.url, "id": "e0", "kind": "vllm"}],
            upstream={"probe_interval": "50ms"},
        )
        async with running(config) as (_, url), httpx.AsyncClient(base_url=url, timeout=30) as c:
            await asyncio.gather(*(agent(c, i) for i in range(6)))
            yield (await c.get("/metrics")).text


async def agent(client: httpx.AsyncClient, number: int) -> None:
    """Three steps of one program, streamed; then it is released."""
    messages = [{"role": "user", "content": f"task {number} " * 50}]
    headers = {
        "x-agentsched-program": f"run-{number}",
        "x-agentsched-tenant": f"team-{number % 2}",
    }
    program = ""
    for _ in range(3):
        body = {"model": "sim", "messages": messages, "stream": True, "max_tokens": 8}
        async with client.stream(
            "POST", "/v1/chat/completions", json=body, headers=headers
        ) as answer:
            assert answer.status_code == 200
            program = answer.headers["x-agentsched-program"]
            async for _ in answer.aiter_bytes():
                pass
        messages += [
            {"role": "assistant", "content": "done"},
            {"role": "user", "content": "go on"},
        ]
    await client.post(f"/agentsched/v1/programs/{program}/release")


def samples(text: str) -> set[str]:
    """Names at a scrape; families without a sample yet count by their name."""
    found = set()
    for family in text_string_to_metric_families(text):
        found |= {sample.name for sample in family.samples}
        if family.type == "counter":
            found.add(f"{family.name}_total")
        if family.type == "histogram":
            found.add(f"{family.name}_bucket")
        found.add(family.name)
    return found


def names(query: str) -> set[str]:
    bare = re.sub(r"\b(?:by|on) \([^)]*\)|\{[^}]*\}", "", query)  # labels are no metrics
    return {n for n in _NAME.findall(bare) if not ELSEWHERE.fullmatch(n)}


def queries(board: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (panel["title"], target["expr"])
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]


def test_the_dashboard_is_as_drawn(dashboard: ModuleType, deploy: Path) -> None:
    board = json.loads((deploy / "grafana" / "agentsched.json").read_text())
    assert board == dashboard.dashboard(), "run python deploy/grafana/dashboard.py"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(places) == len(set(places))


def test_what_replicas_want_is_added_up(
    alerts: list[dict[str, Any]], dashboard: ModuleType, deploy: Path
) -> None:
    """Each counts its own programs alone: the greatest of their words is a part of the load."""
    asked = [alert["expr"] for alert in alerts]
    asked += [query for _, query in queries(dashboard.dashboard())]
    page = (deploy.parent / "docs" / "operations.md").read_text()
    asked += re.findall(r"^ +query: (.*)$", page, re.MULTILINE)
    own = re.compile(r"\w+ by \([\w, ]+\) \(agentsched_(?:pressure|engine_wanted_tokens)\b")
    found = [match[0] for query in asked for match in own.finditer(query)]
    assert len(found) == 4
    assert {match.partition(" ")[0] for match in found} == {"sum"}


@pytest.mark.slow
async def test_every_panel_and_alert_asks_for_what_there_is(
    scrape: str, dashboard: ModuleType, alerts: list[dict[str, Any]]
) -> None:
    known = samples(scrape)
    for title, query in queries(dashboard.dashboard()):
        assert names(query) - known == set(), f"the panel {title}"
    for alert in alerts:
        assert names(alert["expr"]) - known == set(), alert["alert"]


@pytest.mark.slow
async def test_what_agents_see_is_shown_beyond_the_wait_bound(
    scrape: str, dashboard: ModuleType
) -> None:
    """A quantile cannot lie above its histogram's last bucket."""
    ends: dict[str, float] = {}
    for family in text_string_to_metric_families(scrape):
        for sample in family.samples:
            end = float(sample.labels.get("le", "inf"))
            if end < float("inf"):
                ends[sample.name] = max(end, ends.get(sample.name, 0.0))
    asked = [query for title, query in queries(dashboard.dashboard()) if "agents see" in title]
    assert len(asked) == 4
    bound = Limits().wait_ns_max / SECOND
    for query in asked:
        assert min(ends[name] for name in names(query)) > 2 * bound, query


async def test_engines_that_never_answered_are_down() -> None:
    """Else the alerts for them would have nothing to compare."""
    names = ("e0", "e1")
    engines = [{"url": f"http://127.0.0.1:9/{name}", "id": name} for name in names]
    config = Config(port=0, engines=engines)
    async with (
        running(config) as (gateway, url),
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        text = (await client.get("/metrics")).text
        for name in names:
            assert f'agentsched_engine_up{{engine="{name}"}} 0.0' in text
        await client.delete("/agentsched/v1/engines/e0")
        await eventually(lambda: len(gateway.fleet.members) == 1)
        text = (await client.get("/metrics")).text
        assert re.findall(r"agentsched_engine_\w+{engine=\"(e\d)\"}", text) == ["e1", "e1"]


@pytest.mark.slow
async def test_panels_show_values_under_load(scrape: str, dashboard: ModuleType) -> None:
    # In good order these have nothing to count.
    quiet = {
        "agentsched_rejects_total",
        "agentsched_unpins_total",
        "agentsched_hints_total",
        "agentsched_prefetches_total",
        "gen_ai_execute_tool_duration_seconds_bucket",
    }
    there = {
        sample.name
        for family in text_string_to_metric_families(scrape)
        for sample in family.samples
    }
    asked = set().union(*(names(query) for _, query in queries(dashboard.dashboard())))
    assert asked - there - quiet == set()


@pytest.mark.slow
async def test_labels_are_few(scrape: str) -> None:
    series: dict[str, int] = {}
    for family in text_string_to_metric_families(scrape):
        for sample in family.samples:
            assert not {"program", "step", "conversation"} & set(sample.labels), sample.name
            if "le" not in sample.labels:
                series[family.name] = series.get(family.name, 0) + 1
    assert max(series.values()) < 60


def test_runbook_has_each_alert(alerts: list[dict[str, Any]], deploy: Path) -> None:
    text = (deploy.parent / "docs" / "operations.md").read_text()
    entries = set(re.findall(r"^### (Agentsched\w+)$", text, re.MULTILINE))
    assert entries == {alert["alert"] for alert in alerts}
    for alert in alerts:
        assert alert["annotations"]["runbook"].endswith("#" + alert["alert"].lower())


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    assert found, "scripts/install-services installs it"
    return found


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.services
def test_prometheus_takes_the_rules(promtool: str, deploy: Path) -> None:
    run(promtool, "check", "rules", "alerts.yaml", cwd=deploy / "prometheus")


@pytest.mark.services
def test_each_alert_fires_when_it_should(
    promtool: str, deploy: Path, alerts: list[dict[str, Any]]
) -> None:
    run(promtool, "test", "rules", "alerts_test.yaml", cwd=deploy / "prometheus")
    tests = yaml.safe_load((deploy / "prometheus" / "alerts_test.yaml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == {alert["alert"] for alert in alerts}


@pytest.mark.services
async def test_prometheus_reads_the_metrics(promtool: str, scrape: str) -> None:
    """`promtool check metrics` also has opinions on names; conventions' ones are not ours."""
    process = await asyncio.create_subprocess_exec(
        *(promtool, "check", "metrics"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate(scrape.encode())
    said = [line for line in output.decode().splitlines() if "agentsched_" in line]
    assert process.returncode in (0, 3)  # 3: only opinions
    assert said == []
