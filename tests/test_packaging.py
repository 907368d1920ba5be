"""What a user gets: the wheel, built here and installed alone into a fresh environment.

Needs the package registry that pip or uv is configured for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import agentsched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {
    "agentsched",
    "agentsched_graphs",
    "agentsched_policies",
    "agentsched_adapters",
    "agentsched_bench",
}

LOAD_POLICIES = """
from importlib.metadata import entry_points
from agentsched.policy import load
for entry in entry_points(group="agentsched.policies"):
    point, _, name = entry.name.partition(".")
    print(entry.name, type(load(point, name, {})).__name__)
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command to its end, away from our own environment; returns what it printed."""
    hidden = {"PYTHONPATH", "VIRTUAL_ENV", "COVERAGE_PROCESS_START"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key not in hidden},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    if shutil.which("uv"):
        run("uv", "build", "--quiet", "--wheel", "--out-dir", out, ROOT)
    else:
        run(sys.executable, "-m", "build", "--wheel", "--outdir", out, ROOT)
    [path] = out.glob("*.whl")
    return path


def environment(venv: Path, wanted: str) -> Path:
    """The interpreter of a new environment that holds `wanted` and what it requires."""
    interpreter = venv / "bin" / "python"
    if shutil.which("uv"):
        run("uv", "venv", "--quiet", "--python", sys.executable, venv)
        run("uv", "pip", "install", "--quiet", "--python", interpreter, wanted)
    else:
        run(sys.executable, "-m", "venv", venv)
        run(interpreter, "-m", "pip", "install", "--quiet", wanted)
    return interpreter


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the wheel and no extras."""
    return environment(tmp_path_factory.mktemp("venv") / "v", str(wheel))


@pytest.fixture(scope="module")
def serving(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the wheel with the extra `proxy` alone, as the README installs it."""
    return environment(tmp_path_factory.mktemp("venv") / "v", f"{wheel}[proxy]")


@pytest.fixture(scope="module")
def files(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(wheel: Path, files: list[str]) -> Message:
    [name] = [f for f in files if f.endswith(".dist-info/METADATA")]
    with zipfile.ZipFile(wheel) as archive:
        return message_from_bytes(archive.read(name))


def test_only_distinctive_names_are_installed(files: list[str]) -> None:
    tops = {name.partition("/")[0] for name in files}
    assert tops == PACKAGES | {f"agentsched-{agentsched.__version__}.dist-info"}


def test_no_tests_and_no_leftovers(files: list[str]) -> None:
    parts = {part for name in files for part in name.split("/")}
    assert not parts & {"tests", "conftest.py", "__pycache__", "results"}
    assert not [part for part in parts if part.startswith("test_")]


def test_types_and_samples_ship(files: list[str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(files)
    samples = [name for name in files if name.startswith("agentsched_bench/workload/samples/")]
    assert [name for name in samples if ".jsonl" in name]


def test_every_module_ships(files: list[str]) -> None:
    roots = (ROOT, *(ROOT / name for name in ("graphs", "policies", "adapters", "bench")))
    wanted = {
        str(path.relative_to(root))
        for root in roots
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
    }
    assert {name for name in files if name.endswith(".py")} == wanted


def test_metadata(metadata: Message) -> None:
    assert metadata["Name"] == "agentsched"
    assert metadata["Version"] == agentsched.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    always = [r for r in metadata.get_all("Requires-Dist") or () if "extra ==" not in r]
    names = {requirement.partition("<")[0].partition(">")[0] for requirement in always}
    assert names == {"networkx", "msgspec"}
    extras = set(metadata.get_all("Provides-Extra") or ())
    assert extras == set(PROJECT["optional-dependencies"])


def test_bare_install_imports(python: Path, tmp_path: Path) -> None:
    code = (
        f"import {', '.join(sorted(PACKAGES))}; print(agentsched.__version__, agentsched.__file__)"
    )
    version, _, file = run(python, "-I", "-c", code, cwd=tmp_path).strip().partition(" ")
    assert version == agentsched.__version__
    assert Path(file).is_relative_to(python.parent.parent)


def test_policies_load_in_a_bare_install(python: Path, tmp_path: Path) -> None:
    loaded = run(python, "-I", "-c", LOAD_POLICIES, cwd=tmp_path).splitlines()
    wanted = PROJECT["entry-points"]["agentsched.policies"]
    assert {line.partition(" ")[0] for line in loaded} == set(wanted)


def test_bare_install_says_what_the_command_line_needs(python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [python.parent / "agentsched", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "agentsched: the command line is not installed (pip install 'agentsched[all]')\n"
    )


SERVE = ("serve", "--engine", "http://127.0.0.1:1", "--port", "0")


def test_the_extra_proxy_is_enough_to_serve(serving: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [serving.parent / "agentsched", *SERVE],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as proxy:
        assert proxy.stdout is not None
        said = proxy.stdout.readline()  # its end, if it does not get so far
        proxy.terminate()
        _, errors = proxy.communicate(timeout=60)
    assert said.startswith("agentsched ready on http://127.0.0.1:"), errors
    assert proxy.returncode == 0, errors


@pytest.mark.parametrize(
    ("name", "value", "extra"),
    [
        ("AGENTSCHED_STORE__URL", "sqlite:///a.db", "store"),
        ("AGENTSCHED_BUS__URL", "mqtt://127.0.0.1:1", "mqtt"),
        ("AGENTSCHED_TELEMETRY__OTLP_ENDPOINT", "http://127.0.0.1:1", "otel"),
    ],
)
def test_what_needs_another_extra_says_which(
    serving: Path, tmp_path: Path, name: str, value: str, extra: str
) -> None:
    done = subprocess.run(
        [serving.parent / "agentsched", *SERVE],
        cwd=tmp_path,
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"pip install 'agentsched[{extra}]'" in done.stderr


def test_commands_load_with_all_extras() -> None:
    """In the environment of the tests, which holds the extras and the tree itself."""
    code = (
        "from importlib.metadata import entry_points\n"
        "for entry in entry_points(group='agentsched.commands'):\n"
        "    entry.load()\n    print(entry.name)"
    )
    loaded = run(sys.executable, "-W", "error", "-c", code).splitlines()
    assert set(loaded) == set(PROJECT["entry-points"]["agentsched.commands"])


@pytest.mark.slow
def test_the_dashboard_comes_with_it(files: list[str]) -> None:
    for name in ("index.html", "dashboard.js", "dashboard.css", "icon.svg"):
        assert f"agentsched/dashboard/assets/{name}" in files
