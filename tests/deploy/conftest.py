"""Where the files of `deploy/` are, and its scripts as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
#: Sets of values that take every branch of the templates.
CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "everything": {
        "serviceMonitor.enabled": True,
        "serviceMonitor.bearerTokenSecret": {"name": "metrics", "key": "token"},
        "prometheusRule.enabled": True,
        "networkPolicy.fromNamespaces": ["agents", "research"],
        "autoscaling.liveRequests": 200,
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"kind": "cpu"},
        "tolerations": [{"key": "cpu", "operator": "Exists"}],
    },
    "little": {
        "autoscaling.enabled": False,
        "podDisruptionBudget.enabled": False,
        "networkPolicy.enabled": False,
        "secretName": "",
    },
}


def _load(path: Path) -> ModuleType:
    name = f"deploy_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def deploy() -> Path:
    return ROOT / "deploy"


@pytest.fixture(scope="session")
def chart() -> ModuleType:
    """deploy/render.py."""
    return _load(ROOT / "deploy" / "render.py")


@pytest.fixture(scope="session")
def dashboard() -> ModuleType:
    """deploy/grafana/dashboard.py."""
    return _load(ROOT / "deploy" / "grafana" / "dashboard.py")


@pytest.fixture(params=CHANGES)
def changes(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each set of changed values."""
    return CHANGES[request.param]


@pytest.fixture
def everything() -> dict[str, Any]:
    """The changed values that switch everything on."""
    return CHANGES["everything"]
