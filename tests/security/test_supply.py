"""What the image is made of: pinned with hashes, as wanted, listed, and asked about."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent.parent
LOCK = ROOT / "requirements.lock"
EXTRAS = ("proxy", "yaml", "store", "mqtt", "otel", "auth")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+?)(?: ; (.*?))?(?: \\)?$", re.MULTILINE)


def pins() -> dict[str, Version]:
    return {canonicalize_name(m[1]): Version(m[2]) for m in _PIN.finditer(LOCK.read_text())}


def wanted() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = list(project["dependencies"])
    for extra in EXTRAS:
        texts += project["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


class TestLock:
    def test_holds_all_that_is_wanted_in_its_range(self) -> None:
        pinned = pins()
        for requirement in wanted():
            version = pinned.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement}: run scripts/lock"
            assert requirement.specifier.contains(version), f"{requirement}: run scripts/lock"

    def test_every_pin_has_hashes(self) -> None:
        blocks = re.split(r"\n(?=[A-Za-z0-9])", LOCK.read_text().strip())
        # One package may have two versions, for one Python each.
        assert len(blocks) >= len(pins()) > 40
        for block in blocks:
            assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", block), block.splitlines()[0]

    def test_nothing_comes_from_elsewhere(self) -> None:
        text = LOCK.read_text()
        assert "://" not in text
        assert not re.search(r"^(-e|-f|--(find-links|trusted-host|extra))", text, re.MULTILINE)

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not here")
    def test_resolves_as_it_is(self, tmp_path: Path) -> None:
        """pip's own check of names, versions and hashes, without installing anything."""
        made = subprocess.run(
            [
                *("uv", "pip", "install", "--dry-run", "--require-hashes", "--no-deps"),
                *("--quiet", "--target", str(tmp_path), "-r", str(LOCK)),
            ],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert made.returncode == 0, made.stderr


def test_the_image_is_made_of_it() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    assert "--require-hashes" in text
    assert "requirements.lock" in text
    assert re.search(r"^USER \d+", text, re.MULTILINE), "not root"


@pytest.mark.parametrize("name", ["lock", "sbom", "audit"])
def test_scripts_say_what_they_do(name: str) -> None:
    script = ROOT / "scripts" / name
    told = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert told.stdout.startswith(f"usage: scripts/{name}")


def test_the_checks_tell_what_they_could_not_do(tmp_path: Path) -> None:
    """A tool that cannot be had is a third answer: neither good nor a failure."""
    alone = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    told = subprocess.run(
        [ROOT / "scripts" / "sbom", tmp_path / "x.json"],
        env=alone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 3
    assert "sbom: uv is needed" in told.stderr


#: What pip-audit writes and how it ends: a finding, nothing found, and two ways not to know.
FOUND = """Found 1 known vulnerability in 1 package
Name    Version ID             Fix Versions
------- ------- -------------- ------------
aiohttp 3.9.0   CVE-2024-23334 3.9.2
"""
NONE = "No known vulnerabilities found\n"
AWAY = "ERROR:pip_audit._cli:Failed to connect: retries exceeded\n"
UNKNOWN = "ERROR:pip_audit._cli:x: Dependency not found and could not be audited\n"


class TestWhatAnAuditSays:
    """By a pip-audit that says what it is told to: the real one finds something on few days."""

    @pytest.fixture
    def audit(self, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
        def run(says: str, ends: int, *arguments: str) -> subprocess.CompletedProcess[str]:
            (tmp_path / "said").write_text(says)
            tool = tmp_path / "uv"
            tool.write_text(f'#!/bin/sh\ncat "{tmp_path}/said"\nexit {ends}\n')
            tool.chmod(0o755)
            return subprocess.run(
                [ROOT / "scripts" / "audit", *arguments],
                env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)},
                capture_output=True,
                text=True,
                check=False,
            )

        return run

    @pytest.mark.parametrize("arguments", [(), ("--strict",)])
    def test_a_finding_fails_and_is_shown(self, audit: Any, arguments: tuple[str, ...]) -> None:
        told = audit(FOUND, 1, *arguments)
        assert told.returncode == 1
        assert "CVE-2024-23334 3.9.2" in told.stdout
        assert "NOT AUDITED" not in told.stderr

    @pytest.mark.parametrize("arguments", [(), ("--strict",)])
    def test_nothing_found_passes(self, audit: Any, arguments: tuple[str, ...]) -> None:
        told = audit(NONE, 0, *arguments)
        assert (told.returncode, told.stdout, told.stderr) == (0, NONE, "")

    @pytest.mark.parametrize("says", [AWAY, UNKNOWN, ""])
    @pytest.mark.parametrize(("arguments", "code"), [((), 0), (("--strict",), 3)])
    def test_not_to_know_is_neither(
        self, audit: Any, says: str, arguments: tuple[str, ...], code: int
    ) -> None:
        told = audit(says, 1, *arguments)
        assert told.returncode == code
        assert told.stdout == says
        assert "NOT AUDITED" in told.stderr

    def test_integration_asks_and_fails_with_it(self) -> None:
        lines = (ROOT / ".ci" / "run").read_text().splitlines()
        (asks,) = [line for line in lines if line.startswith("scripts/audit")]
        assert "status=1" in asks
        assert lines.index(asks) > lines.index('scripts/test "$@" </dev/null || status=$?')


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not here")
class TestScripts:
    def test_the_list_of_parts_is_whole(self, tmp_path: Path) -> None:
        output = tmp_path / "sbom.json"
        subprocess.run([ROOT / "scripts" / "sbom", output], check=True, timeout=110)
        found = json.loads(output.read_text())
        assert found["bomFormat"] == "CycloneDX"
        listed = {canonicalize_name(c["name"]): Version(c["version"]) for c in found["components"]}
        assert listed == pins()
        assert found["metadata"]["component"]["name"] == "agentsched"

    def test_an_audit_that_cannot_be_made_says_so(self) -> None:
        """It finds nothing, or could not ask; it never passes in silence."""
        told = subprocess.run(
            [ROOT / "scripts" / "audit"], capture_output=True, text=True, timeout=110, check=False
        )
        said = told.stdout + told.stderr
        assert told.returncode == 0, said
        assert "No known vulnerabilities found" in said or "NOT AUDITED" in said
