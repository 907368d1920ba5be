from __future__ import annotations

from pathlib import Path

import pytest

from agentsched.cli import main
from agentsched_bench.vllm_local import LocalVllmConfig


def test_no_vllm_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the words in which every command says what went wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGENTSCHED_VLLM_PYTHON", raising=False)
    assert main(["engine", "vllm"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("agentsched: no vLLM found: ")
    assert said.count("\n") == 1


def test_impossible_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "vllm", "--blocks", "20"]) == 2
    assert "give 513 blocks" in capsys.readouterr().err


@pytest.mark.vllm
@pytest.mark.slow
def test_one_that_takes_too_long_says_how_it_gets_longer(
    vllm_config: LocalVllmConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Importing vLLM alone takes longer than a second; it is stopped in the middle of that."""
    python = str(vllm_config.python)
    assert main(["engine", "vllm", "--port", "0", "--python", python, "--start-timeout", "1"]) == 1
    first, said, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("starting vLLM (")
    assert said.startswith("agentsched: vLLM was not ready after 1 s; ")
    assert last == "agentsched: where it only needs longer, write --start-timeout 2"
