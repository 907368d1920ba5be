"""A proxy in front of an embedded engine that plays answers back, and examples run as users do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from live import small_engine

from agentsched.config import Config
from agentsched.kernel import JournalEntry
from agentsched.proxy.gateway import Gateway
from agentsched.proxy.serve import running
from agentsched_bench.engine.playback import Playback, Script, ScriptedAnswer, ScriptedCall
from agentsched_bench.engine.server import ServerConfig, running_engine

ROOT = Path(__file__).parents[2]
_LIMIT_S = 90.0


@dataclass(slots=True)
class Stand:
    """What runs; `entries` is the journal."""

    gateway: Gateway
    url: str
    entries: list[JournalEntry] = field(default_factory=list)

    def events(self, kind: type) -> list[Any]:
        return [e.event for e in self.entries if isinstance(e.event, kind)]

    async def run(self, example: str, *arguments: str, python: str = sys.executable) -> str:
        """What the example prints; it must end well and say nothing else."""
        environment = {
            "AGENTSCHED_URL": self.url,
            "HOME": "/nonexistent",
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "LANGSMITH_TRACING": "false",
            "MSWEA_SILENT_STARTUP": "1",
            "MSWEA_GLOBAL_CONFIG_DIR": "/tmp",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        process = await asyncio.create_subprocess_exec(
            python,
            str(ROOT / "examples" / example),
            *arguments,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_LIMIT_S):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, err.decode()
        return out.decode().strip()


def script(match: str, *answers: str | tuple[str, dict[str, Any]]) -> Script:
    """Answers to conversations that begin so: text, or a tool with its arguments."""
    played = [
        ScriptedAnswer(text=a)
        if isinstance(a, str)
        else ScriptedAnswer(tool_calls=(ScriptedCall(name=a[0], arguments=a[1]),))
        for a in answers
    ]
    return Script(match=match, answers=tuple(played))


@contextlib.asynccontextmanager
async def _stand(*scripts: Script, **settings: Any) -> AsyncIterator[Stand]:
    engine = small_engine(blocks=2_049)
    entries: list[JournalEntry] = []

    class Sink:
        def write(self, entry: JournalEntry) -> None:
            entries.append(entry)

    config = ServerConfig(engine=engine, models=("sim",), speed=200, playback=Playback(scripts))
    async with running_engine(config) as sim:
        given = Config(port=0, engines=[{"url": sim.url, "id": "e0"}], **settings)
        async with running(given, sinks=[Sink()]) as (gateway, url):
            yield Stand(gateway, url, entries)
            assert not gateway.host.scheduler.steps
            gateway.host.scheduler.check()


@pytest.fixture
def stand() -> Callable[..., AbstractAsyncContextManager[Stand]]:
    return _stand


@pytest.fixture
def plays() -> Callable[..., Script]:
    return script


@pytest.fixture
def installed_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example's policy as `pip install` would leave it; its name."""
    source = ROOT / "examples/policy"
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    [(group, entries)] = project["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    shutil.copy(source / "shortest_prompt.py", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return str(next(iter(entries)).partition(".")[2])


@pytest.fixture(scope="session")
def frameworks() -> str:
    """The Python that has the agent frameworks (scripts/install-frameworks makes it)."""
    python = ROOT / ".venv-frameworks/bin/python"
    assert python.exists(), "no .venv-frameworks: run scripts/install-frameworks"
    return str(python)
