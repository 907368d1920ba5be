"""Which vLLM the plugin was tested on, and what is said about any other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

#: Tested with each of these (major, minor). The scheduler's interface is not public: another
#: version may lack what we hook, or mean something else by it.
SUPPORTED: Final = frozenset({(0, 32)})
#: `1` lets the plugin work on any version, at the operator's own risk.
OVERRIDE_VARIABLE: Final = "AGENTSCHED_PLUGIN_ANY_VERSION"
#: `1` treats every version as untested: to see beforehand what an upgrade of vLLM will do.
UNTESTED_VARIABLE: Final = "AGENTSCHED_PLUGIN_UNTESTED"


def refusal(version: str | None = None, environ: Mapping[str, str] | None = None) -> str | None:
    """Why the plugin does not work with this vLLM; None when it does.

    `version` None asks the installed vLLM, `environ` None the process's environment.
    """
    environ = os.environ if environ is None else environ
    if version is None:
        from vllm import __version__ as version  # type: ignore[import-not-found, no-redef]
    assert version is not None
    is_tested = _minor(version) in SUPPORTED and environ.get(UNTESTED_VARIABLE, "") != "1"
    if is_tested or environ.get(OVERRIDE_VARIABLE, "") == "1":
        return None
    tested = ", ".join(f"{major}.{minor}" for major, minor in sorted(SUPPORTED))
    return (
        f"agentsched's plugin was not tested with vLLM {version} (tested: {tested}) and stays off: "
        f"the engine runs as stock. Set {OVERRIDE_VARIABLE}=1 to use it all the same."
    )


def _minor(version: str) -> tuple[int, int] | None:
    major, _, rest = version.partition(".")
    minor, *_ = rest.split(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None
