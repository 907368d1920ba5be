from __future__ import annotations

from pathlib import Path

import pytest

from agentsched.cli import main


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
