"""Images, compose, systemd, and load balancers: checked with what reads them, where it is there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from agentsched.cli import MISUSED
from agentsched.config import Config
from agentsched_bench.engine.cli import sim

REPOSITORY = Path(__file__).parent.parent.parent


class Dockerfile:
    """Instructions of a Dockerfile, lines joined, comments out."""

    def __init__(self, path: Path) -> None:
        text = re.sub(r"(?m)^\s*#.*\n", "", path.read_text()).replace("\\\n", " ")
        self.steps = [
            (word.upper(), rest.strip())
            for word, _, rest in (line.strip().partition(" ") for line in text.splitlines())
            if word
        ]

    def of(self, word: str) -> list[str]:
        return [rest for name, rest in self.steps if name == word]


@pytest.mark.parametrize("name", ["Dockerfile", "engine.Dockerfile"])
def test_an_image_is_pinned_and_copies_what_there_is(deploy: Path, name: str) -> None:
    file = Dockerfile(deploy / name)
    [base] = file.of("ARG")
    assert re.search(r"=[\w./-]+:v?\d+\.\d+\.\d+", base), "a version, not a moving tag"
    assert all("${" in source for source in file.of("FROM"))
    ignored = (deploy / f"{name}.dockerignore").read_text()
    for copied in file.of("COPY"):
        if not copied.startswith("--from"):
            for source in copied.split()[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert f"!{source}" in ignored.splitlines(), source
    for step in file.of("RUN"):
        assert "--no-cache-dir" in step or "pip install" not in step or file.of("ENV"), step
        assert not re.search(r"\b(sudo|curl|wget|apt-get)\b", step)


def test_the_proxys_image_is_small_and_harmless(deploy: Path) -> None:
    file = Dockerfile(deploy / "Dockerfile")
    assert file.of("USER") == ["65532:65532"]
    assert file.of("STOPSIGNAL") == ["SIGTERM"]
    assert file.of("ENTRYPOINT") == ['["agentsched"]']
    assert "/healthz" in file.of("HEALTHCHECK")[0]
    words = [word for word, _ in file.steps]
    assert not {"RUN", "COPY"} & set(words[words.index("USER") :])
    # Of the build only the environment comes over: no sources, no compiler, no cache.
    assert [c for c in file.of("COPY") if c.startswith("--from")] == [
        "--from=build /opt/agentsched /opt/agentsched"
    ]


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(300)
async def test_what_the_image_does_works(deploy: Path, tmp_path: Path) -> None:
    """The same steps in a folder: copy what is copied, install what is installed, run, look."""
    file = Dockerfile(deploy / "Dockerfile")
    source = tmp_path / "src"
    source.mkdir()
    for copied in file.of("COPY"):
        if copied.startswith("--from"):
            continue
        *names, target = copied.split()
        for name in names:
            skip = shutil.ignore_patterns("__pycache__", "results", "node_modules")
            if (REPOSITORY / name).is_dir():
                shutil.copytree(REPOSITORY / name, source / target, ignore=skip)
            else:
                shutil.copy(REPOSITORY / name, source / target)
    venv = tmp_path / "venv"
    python = str(venv / "bin" / "python")
    await do(source, [sys.executable, "-m", "venv", str(venv)])
    for step in file.of("RUN"):
        for command in re.findall(r"/opt/agentsched/bin/pip ([^&]+)", step):
            await do(source, pip(python, *shlex.split(command)))
    [check] = file.of("HEALTHCHECK")
    healthcheck = json.loads(check[check.index("CMD") + 3 :])
    await serve_and_look(venv, tmp_path, healthcheck)


def pip(python: str, verb: str, *arguments: str) -> list[str]:
    """pip for that interpreter: uv's where there is one, which shares what it fetched before."""
    uv = shutil.which("uv")
    if uv is None:
        return [python, "-m", "pip", verb, *arguments]
    return [uv, "pip", verb, "--python", python, *arguments]


async def do(folder: Path, command: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(*command, cwd=folder)
    assert await process.wait() == 0, command


async def serve_and_look(venv: Path, folder: Path, healthcheck: list[str]) -> None:
    """Run the image's command, wait for its word, and ask as its health check does."""
    config = folder / "agentsched.toml"
    config.write_text('[[engines]]\nurl = "http://127.0.0.1:9"\n')
    environment = {"PATH": f"{venv}/bin:{os.environ['PATH']}", "AGENTSCHED_PORT": "0"}
    process = await asyncio.create_subprocess_exec(
        str(venv / "bin" / "agentsched"),
        *("serve", "--config", str(config)),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
        cwd=folder,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            line = (await process.stdout.readline()).decode()
        port = re.findall(r"http://[\d.]+:(\d+)", line)[0]
        look = await asyncio.create_subprocess_exec(
            *healthcheck, env=environment | {"AGENTSCHED_PORT": port}
        )
        assert await look.wait() == 0
    finally:
        process.terminate()
        async with asyncio.timeout(30):
            assert await process.wait() == 0


class TestCompose:
    @pytest.fixture
    def compose(self, deploy: Path) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((deploy / "compose.yaml").read_text())
        return found

    def test_has_all_parts(self, compose: dict[str, Any]) -> None:
        assert set(compose["services"]) == {
            *("proxy", "engine-0", "engine-1"),
            *("postgres", "mosquitto", "prometheus", "grafana"),
        }
        known = {
            *("image", "build", "restart", "read_only", "tmpfs", "cap_drop", "security_opt"),
            *("command", "healthcheck", "environment", "ports", "volumes", "depends_on"),
            "stop_grace_period",
        }
        for name, service in compose["services"].items():
            assert set(service) <= known, name
            tag = service["image"].rpartition(":")[2]
            assert tag not in ("latest", ""), name

    def test_what_it_mounts_is_there(self, compose: dict[str, Any], deploy: Path) -> None:
        named = set(compose["volumes"])
        for service in compose["services"].values():
            for volume in service.get("volumes", ()):
                source = volume.split(":")[0]
                assert source in named or (deploy / source).is_file(), source

    def test_nothing_is_open_to_the_network(self, compose: dict[str, Any]) -> None:
        ports = [port for s in compose["services"].values() for port in s.get("ports", ())]
        assert ports
        assert all(port.startswith("127.0.0.1:") for port in ports)

    def test_whom_it_waits_for_can_be_healthy(self, compose: dict[str, Any]) -> None:
        services = compose["services"]
        for service in services.values():
            wants = service.get("depends_on", {})
            for name, how in wants.items() if isinstance(wants, dict) else ():
                assert name in services
                healthy = how["condition"] == "service_healthy"
                assert not healthy or "healthcheck" in services[name]

    def test_the_proxys_configuration_fits(
        self, compose: dict[str, Any], deploy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proxy = compose["services"]["proxy"]
        for name, value in proxy["environment"].items():
            monkeypatch.setenv(name, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))
        text = (deploy / "compose" / "agentsched.toml").read_text()
        config = Config(**tomllib.loads(text))
        hosts = {engine.url.host for engine in config.engines}
        assert hosts <= set(compose["services"])
        assert config.store.url is not None
        assert "@postgres/" in config.store.url.get_secret_value()
        assert config.bus.url is not None
        assert config.bus.url.get_secret_value() == "mqtt://mosquitto:1883"

    def test_engines_are_started_by_a_command_that_there_is(self, compose: dict[str, Any]) -> None:
        app = typer.Typer()
        app.command()(sim)
        for name in ("engine-0", "engine-1"):
            verbs = compose["services"][name]["command"][:2]
            assert verbs == ["engine", "sim"]
            options = [w for w in compose["services"][name]["command"] if w.startswith("--")]
            shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
            assert shown.exit_code == 0
            assert all(option in shown.output for option in options)


@pytest.mark.services
def test_prometheus_takes_the_composes_configuration(deploy: Path, tmp_path: Path) -> None:
    text = (deploy / "compose" / "prometheus.yml").read_text()
    path = tmp_path / "prometheus.yml"
    path.write_text(text.replace("/etc/prometheus", str(deploy / "prometheus")))
    promtool = shutil.which("promtool")
    assert promtool, "scripts/install-services installs it"
    done = subprocess.run([promtool, "check", "config", str(path)], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.services
def test_systemd_takes_the_unit(deploy: Path, tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze")
    assert verify, "scripts/install-services installs it"
    text = (deploy / "systemd" / "agentsched.service").read_text()
    path = tmp_path / "agentsched.service"
    path.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", text))
    done = subprocess.run([verify, "verify", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_unit_gives_time_to_drain(deploy: Path) -> None:
    text = (deploy / "systemd" / "agentsched.service").read_text()
    [limit] = re.findall(r"TimeoutStopSec=(\d+)", text)
    http = Config().http
    assert int(limit) > (http.drain_notice + http.drain_timeout) / 1e9 + 5


def test_the_unit_does_not_start_again_what_is_configured_wrongly(deploy: Path) -> None:
    """It never reached systemd's limit of starts: a wrong file was a line in the log for ever."""
    text = (deploy / "systemd" / "agentsched.service").read_text()
    assert re.findall(r"(?m)^RestartPreventExitStatus=(\d+)$", text) == [str(MISUSED)]


def test_the_unit_sends_nobody_to_an_example(deploy: Path) -> None:
    assert "example." not in (deploy / "systemd" / "agentsched.service").read_text()


class TestEnvoy:
    @pytest.fixture
    def manager(self, deploy: Path) -> dict[str, Any]:
        config = yaml.safe_load((deploy / "envoy" / "envoy.yaml").read_text())
        [listener] = config["static_resources"]["listeners"]
        found: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
        return found

    def test_lets_streams_be(self, manager: dict[str, Any]) -> None:
        routes = manager["route_config"]["virtual_hosts"][0]["routes"]
        assert all(r["route"]["timeout"] == "0s" for r in routes)
        # As nginx's: whoever has no answer yet is sent to another replica.
        for again in (r["route"]["retry_policy"] for r in routes):
            assert again["retry_on"] == "connect-failure,reset,retriable-status-codes"
            assert again["retriable_status_codes"] == [503]
        silence = int(manager["stream_idle_timeout"].rstrip("s"))
        assert silence > Config().upstream.first_byte_timeout / 1e9

    def test_its_clusters_are_there(self, deploy: Path, manager: dict[str, Any]) -> None:
        config = yaml.safe_load((deploy / "envoy" / "envoy.yaml").read_text())
        clusters = {cluster["name"] for cluster in config["static_resources"]["clusters"]}
        routes = manager["route_config"]["virtual_hosts"][0]["routes"]
        assert {route["route"]["cluster"] for route in routes} == clusters
