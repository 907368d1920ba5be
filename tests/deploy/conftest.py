"""Where the files of `deploy/` are, and its scripts as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent


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
