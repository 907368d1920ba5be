from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from agentsched_bench.vllm_local.cli import vllm

app = typer.Typer()
app.command()(vllm)


def test_no_vllm_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGENTSCHED_VLLM_PYTHON", raising=False)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: no vLLM found: ")
    assert result.stderr.count("\n") == 1


def test_impossible_sizes(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--blocks", "20"])
    assert result.exit_code == 2
    assert "give 513 blocks" in result.stderr
