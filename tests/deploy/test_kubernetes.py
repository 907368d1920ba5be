"""The chart and the plain manifests, against Kubernetes' own schemas."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import jsonschema
import kubernetes_validate
import pytest
import yaml

from agentsched.config import Config, EngineConfig
from agentsched.version import __version__

VERSIONS = ("1.27", "1.31", "1.34")
#: Kinds that no schema of Kubernetes knows, and what must be in them.
CUSTOM = {
    "ServiceMonitor": ("selector", "endpoints"),
    "PrometheusRule": ("groups",),
}


def objects(rendered: dict[str, str]) -> list[dict[str, Any]]:
    return [found for text in rendered.values() for found in yaml.safe_load_all(text) if found]


def by_kind(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in found}


@pytest.mark.parametrize("version", VERSIONS)
def test_is_what_kubernetes_takes(chart: ModuleType, version: str, changes: dict[str, Any]) -> None:
    for found in objects(chart.render(changes)):
        if found["kind"] in CUSTOM:
            assert set(CUSTOM[found["kind"]]) <= set(found["spec"])
        else:
            kubernetes_validate.validate(found, version, strict=True)


def test_a_mistake_would_be_seen(chart: ModuleType) -> None:
    found = by_kind(objects(chart.render()))["Deployment"]
    found["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found, VERSIONS[-1], strict=True)


def test_the_plain_manifests_are_the_chart(chart: ModuleType, deploy: Path) -> None:
    text = (deploy / "kubernetes" / "agentsched.yaml").read_text()
    assert text == chart.plain(), "run python deploy/render.py"
    plain = by_kind(list(yaml.safe_load_all(text)))
    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"} < set(plain)
    for found in plain.values():
        kubernetes_validate.validate(found, VERSIONS[0], strict=True)


def test_pods_may_do_little_and_are_given_time(chart: ModuleType) -> None:
    found = by_kind(objects(chart.render()))["Deployment"]
    pod = found["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    http = Config().http
    drains = (http.drain_notice + http.drain_timeout) / 1e9
    assert pod["terminationGracePeriodSeconds"] > drains + 5


def test_everything_selects_the_same_pods(chart: ModuleType, everything: dict[str, Any]) -> None:
    found = by_kind(objects(chart.render(everything)))
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    monitored = found["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= found["Service"]["metadata"]["labels"].items()
    scaled = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == (
        "Deployment",
        found["Deployment"]["metadata"]["name"],
    )
    assert "replicas" not in found["Deployment"]["spec"]  # the autoscaler's to say


def test_the_configuration_is_one_that_the_proxy_takes(
    chart: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = by_kind(objects(chart.render()))
    config = Config(**tomllib.loads(found["ConfigMap"]["data"]["agentsched.toml"]))
    assert [engine.name for engine in config.engines] == ["engine-0", "engine-1"]
    variables = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]["env"]
    for variable in variables:
        value = variable.get("value", "").replace("$(POD_NAME)", "agentsched-5d4f-x")
        monkeypatch.setenv(variable["name"], value)
    assert str(Config().store.spool) == "/var/lib/agentsched/spool"


@pytest.mark.parametrize("name", ["agentsched", "proxy"])
def test_what_a_service_puts_into_the_environment_does_no_harm(
    chart: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The kubelet sets NAME_PORT to a URL for each Service, over the image's own variables."""
    found = by_kind(objects(chart.render(name=name)))
    service = found["Service"]["metadata"]["name"]
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert service == name
    assert pod["enableServiceLinks"] is False
    # A container that is copied into another pod is safe, too: its own variables come first.
    links = {f"{service.upper()}_PORT": "tcp://10.96.0.10:8900"}
    own = {v["name"]: v.get("value", "") for v in pod["containers"][0]["env"]}
    for variable, value in (links | own).items():
        value = value.replace("$(POD_NAME)", "agentsched-5d4f-x")
        monkeypatch.setenv(variable, value)
    assert Config().port == pod["containers"][0]["ports"][0]["containerPort"]


def test_engines_are_what_the_configuration_takes(chart: ModuleType) -> None:
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    taken = schema["properties"]["engines"]["items"]
    fields = EngineConfig.model_fields
    assert set(taken["properties"]) == set(fields) - {"api_key"}
    kinds = get_args(fields["kind"].annotation)
    assert tuple(taken["properties"]["kind"]["enum"]) == kinds
    engines: list[dict[str, Any]] = [{"url": "http://gpu-0:8000"}]
    engines += [{"id": kind, "url": "http://gpu-1:8000", "kind": kind} for kind in kinds]
    engines[0] |= {"models": ["an-adapter", 'a "b" <c>']}
    engines[1] |= {"lmcache": "http://lmcache:9000", "lmcache_instance": "one"}
    engines[2] |= {"kv_events": "tcp://gpu-1:5557"}
    jsonschema.validate(chart.values_of(chart.CHART, {"engines": engines}), schema)
    found = by_kind(objects(chart.render({"engines": engines})))
    config = Config(**tomllib.loads(found["ConfigMap"]["data"]["agentsched.toml"]))
    assert config.engines == tuple(EngineConfig.model_validate(one) for one in engines)


def test_a_changed_configuration_is_rolled_out(chart: ModuleType) -> None:
    def checksum(changes: dict[str, Any]) -> str:
        found = by_kind(objects(chart.render(changes)))["Deployment"]
        return str(found["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) != checksum({"config": 'profile = "fcfs"\n'})


def test_the_values_are_those_of_their_schema(
    chart: ModuleType, everything: dict[str, Any]
) -> None:
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    jsonschema.validate(chart.values_of(chart.CHART), schema)
    jsonschema.validate(chart.values_of(chart.CHART, everything), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(chart.values_of(chart.CHART, {"engines": []}), schema)


def test_its_version_is_the_programs(chart: ModuleType) -> None:
    meta = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert meta["appVersion"] == meta["version"] == __version__


def test_alerts_come_with_it(chart: ModuleType, deploy: Path, everything: dict[str, Any]) -> None:
    rule = by_kind(objects(chart.render(everything)))["PrometheusRule"]
    assert rule["spec"] == yaml.safe_load((deploy / "prometheus" / "alerts.yaml").read_text())


def test_what_the_renderer_does_not_know_is_refused(chart: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("name: x\n")
    for template in ("{{ lookup 1 2 }}", "{{ if .Values.a }}", "{{ .Values.a.b.c }}", "{{ end }}"):
        (tmp_path / "templates" / "a.yaml").write_text(template)
        with pytest.raises(chart.TemplateError):
            chart.Chart(tmp_path, {"a": 1}, name="x", namespace="y").render()


def test_the_gateways_route_fits_the_service(chart: ModuleType, deploy: Path) -> None:
    text = (deploy / "gateway-api" / "agentsched.yaml").read_text()
    route = by_kind(list(yaml.safe_load_all(text)))["HTTPRoute"]
    service = by_kind(objects(chart.render()))["Service"]
    [rule] = route["spec"]["rules"]
    [backend] = rule["backendRefs"]
    assert backend["name"] == service["metadata"]["name"]
    assert backend["port"] == service["spec"]["ports"][0]["port"]
    assert re.fullmatch(r"0s", rule["timeouts"]["request"])
