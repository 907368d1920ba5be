"""Lets another environment's vLLM load the plugin from this installation, without installing it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

#: What the plugin is made of. Its two requirements, msgspec and networkx, are vLLM's as well.
_PACKAGES: Final = ("agentsched", "agentsched_graphs", "agentsched_policies", "agentsched_adapters")


def plugin_env(
    folder: Path, settings: Iterable[tuple[str, str]] = (), *, packages: Iterable[str] = ()
) -> dict[str, str]:
    """Environment variables with which a vLLM process finds and loads the plugin.

    `folder` gets links to our packages, and to those named in `packages`, and to the metadata in
    which vLLM and our own registry look for entry points.
    """
    site = folder / "site"
    site.mkdir(parents=True, exist_ok=True)
    for name in (*_PACKAGES, *packages):
        file = import_module(name).__file__
        assert file is not None
        home = Path(file).parent if Path(file).name == "__init__.py" else Path(file)
        _link(site / home.name, home)
    for entry in distribution("agentsched").files or ():
        if entry.name == "entry_points.txt":
            home = Path(str(entry.locate())).parent
            _link(site / home.name, home)
    env = {f"AGENTSCHED_PLUGIN_{name.upper()}": value for name, value in settings}
    return env | {"PYTHONPATH": str(site), "VLLM_PLUGINS": "agentsched"}


def _link(link: Path, target: Path) -> None:
    if not link.exists():
        link.symlink_to(target.absolute())
